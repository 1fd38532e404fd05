"""Reads a file of examples in any of the known formats; what is wrong with a record is said, and the rest is kept."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import UserError
from data_pipeline.examples.chat_text import START_HEADER, turns
from data_pipeline.examples.json_values import Value, json_values
from data_pipeline.examples.prompts import Format, PromptStyle, alpaca_prompt
from data_pipeline.examples.records import (
    ChatText,
    Completion,
    Content,
    Conversation,
    PlainText,
    Problem,
    Record,
    as_json,
)
from data_pipeline.examples.text_files import LABEL, MARK, documents, questions_and_answers

FORMATS: tuple[Format, ...] = get_args(Format)
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_FIELDS: dict[Format, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
}
_JSON_SUFFIXES, _TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson"), (".txt", ".text", ".md", "")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class RecordFile:
    """What a file held, in its order."""

    path: str
    format: Format
    records: list[Record]
    problems: list[Problem]


def read_records(path: str | Path, format: Format | Literal["auto"] = "auto") -> RecordFile:
    """Read the examples of one file.

    Args:
        format: one of `FORMATS`, or "auto" to tell by the content.

    Raises:
        UserError: the file cannot be read, or its format is unknown or ambiguous.
    """
    if format not in (*FORMATS, "auto"):
        raise UserError(f"{format!r} is no format of examples; {_choose()}")
    text = _read(Path(path))
    values = list(json_values(text)) if _is_json(Path(path), text, format) else None
    if format == "auto":
        format = _format_of_text(Path(path), text) if values is None else _format_of_values(path, values)
    if values is not None:
        found = _from_values(str(path), values, format)
    else:
        found = (questions_and_answers if format == "qa" else documents)(str(path), text)
    records: list[Record] = []
    problems: list[Problem] = []
    broken = [number for number, line in enumerate(text.split("\n"), 1) if _HALF_CHARACTER.search(line)]
    for one in found:
        if isinstance(one, Record):
            one = _unreadable(one, broken) or one
        if isinstance(one, Problem):
            problems.append(one)
        else:
            records.append(one)
    return RecordFile(str(path), format, records, problems)


def _read(path: Path) -> str:
    """Lines end in a line feed; a byte that is not UTF-8 becomes half a character, which no valid text holds."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the examples in {path}: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; save it as UTF-8")
    text = content.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unreadable(record: Record, broken: list[int]) -> Problem | None:
    """What is wrong when a record holds a byte that is not UTF-8; `broken` are the lines that do."""
    found = _HALF_CHARACTER.search(as_json(vars(record.content)))
    if not found:
        return None
    place = bisect.bisect_left(broken, record.line)
    line = broken[place] if place < len(broken) else record.line
    code = ord(found[0])
    what = f"byte 0x{code - 0xDC00:02X} is no UTF-8" if 0xDC80 <= code <= 0xDCFF else "half of a character"
    return Problem(record.path, line, f"{what}; save the file as UTF-8")


def _is_json(path: Path, text: str, format: str) -> bool:
    if format in _FIELDS or format == "chat_text":
        return True
    if path.suffix.lower() in _JSON_SUFFIXES:
        return format != "qa"
    return format == "auto" and re.match(r'\s*(\[\s*)?\{\s*"', text) is not None


def _format_of_text(path: Path, text: str) -> Format:
    """Raises UserError when it is not clear."""
    parts = [MARK.split(line) for line in text.split("\n")]
    labels = {label[1].lower() for line in parts for part in line if (label := LABEL.match(part))}
    marks = any(len(line) > 1 for line in parts)
    asks, answers = labels & {"pregunta", "question"}, labels & {"respuesta", "answer"}
    if asks and marks:
        return "qa"
    if asks and answers:
        raise UserError(
            f"{path} has questions and answers, but no line of three hashes (###) between them; "
            "say whether its format is qa or text"
        )
    if not text.strip():
        raise UserError(f"{path} is empty")
    if path.suffix.lower() in _TEXT_SUFFIXES and "\0" not in text:
        return "text"
    raise UserError(f"the format of {path} is unknown; {_choose()}")


def _choose() -> str:
    return f"say which it is: format may be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _format_of_values(path: str | Path, values: list[Value]) -> Format:
    """Raises UserError when it is not clear."""
    first_line: dict[Format, int] = {}
    for line, value, _ in values:
        for format in _formats_of(value):
            first_line.setdefault(format, line)
    if len(first_line) == 1:
        return next(iter(first_line))
    if first_line:
        seen = " or ".join(f"{format} (line {line})" for format, line in first_line.items())
        raise UserError(f"{path} could be {seen}; {_choose()}")
    fields = sorted({str(key) for _, value, _ in values if isinstance(value, dict) for key in value})
    known = "; ".join(f"{format}: {', '.join(names)}" for format, names in {**_FIELDS, "text": ("text",)}.items())
    what = f"has only the fields {', '.join(fields[:12])}" if fields else "holds no JSON objects"
    raise UserError(f"the format of {path} is unknown: it {what}. Known fields are {known}; {_choose()}")


def _formats_of(value: Any) -> list[Format]:
    """A field `text` counts only where there is no other: it is often the same once more, written out."""
    if not isinstance(value, dict):
        return []
    found = [format for format, names in _FIELDS.items() if all(name in value for name in names)]
    if found or not isinstance(value.get("text"), str):
        return found
    return ["chat_text" if START_HEADER in value["text"] else "text"]


def _from_values(path: str, values: list[Value], format: Format) -> Iterator[Record | Problem]:
    for line, value, reason in values:
        if not reason and not isinstance(value, dict):
            reason = "a record is a JSON object, with braces around it"
        if not reason:
            try:
                yield Record(path, line, *_ROWS[format](value))
                continue
            except ValueError as error:
                reason = str(error)
        yield Problem(path, line, reason)


def _text(row: dict[str, Any], field: str, may_be_empty: bool = False) -> str:
    """Raises ValueError when it is missing, no text, or empty."""
    if field not in row:
        if may_be_empty:
            return ""
        raise ValueError(f"it has no field {field!r}")
    value = row[field]
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{field!r} must be text, not {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise ValueError(f"{field!r} is empty")
    return value


def _alpaca(row: dict[str, Any]) -> tuple[Content, PromptStyle]:
    prompt = alpaca_prompt(_text(row, "instruction"), _text(row, "input", may_be_empty=True))
    return Completion(prompt, f"\n{_text(row, 'output')}"), PromptStyle("alpaca")


def _prompt_completion(row: dict[str, Any]) -> tuple[Content, PromptStyle]:
    return Completion(_text(row, "prompt"), _text(row, "completion")), PromptStyle("prompt_completion")


def _messages(row: dict[str, Any]) -> tuple[Content, PromptStyle]:
    return _conversation("messages", _turns(row, "messages"))


def _sharegpt(row: dict[str, Any]) -> tuple[Content, PromptStyle]:
    found = []
    for turn in _turns(row, "conversations"):
        speaker = _text(turn, "from")
        if speaker not in _SHAREGPT_ROLES:
            raise ValueError(f"'from' is {speaker!r}, none of {', '.join(_SHAREGPT_ROLES)}")
        found.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return _conversation("sharegpt", found)


def _turns(row: dict[str, Any], field: str) -> list[dict[str, Any]]:
    found = row.get(field)
    if not isinstance(found, list) or not found or not all(isinstance(turn, dict) for turn in found):
        raise ValueError(f"{field!r} must be a list of objects, one a turn")
    return found


def _conversation(format: Format, messages: list[dict[str, Any]]) -> tuple[Content, PromptStyle]:
    for number, message in enumerate(messages, 1):
        role = _text(message, "role")
        if role not in ROLES:
            raise ValueError(f"the role of message {number} is {role!r}, none of {', '.join(ROLES)}")
        try:
            _text({"content": None, **message}, "content", may_be_empty=role in ("system", "tool"))
        except ValueError as error:
            raise ValueError(f"message {number} ({role}): {error}") from error
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    return Conversation(tuple(messages)), PromptStyle(format, system=system)


def _chat_text(row: dict[str, Any]) -> tuple[Content, PromptStyle]:
    text = _text(row, "text")
    found = turns(text)
    first = found[0]
    system = first.content if first.role == "system" else ""
    return ChatText(text), PromptStyle(
        "chat_text", system=system, after_header=first.after_header, after_turn=first.rest if len(found) > 1 else ""
    )


def _plain_text(row: dict[str, Any]) -> tuple[Content, PromptStyle]:
    return PlainText(_text(row, "text")), PromptStyle("text")


_ROWS: dict[Format, Callable[[dict[str, Any]], tuple[Content, PromptStyle]]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "chat_text": _chat_text,
    "text": _plain_text,
}
