"""The values of a JSON or JSON-lines file with their line numbers; one that is damaged does not cost the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[ \t\r\n,\[\]]*")
_NEXT_OBJECT = re.compile(r"[\n,][ \t\r]*(?=\{)")

Value = tuple[int, Any, str]
"""Line, value, and what is wrong with it; nothing is wrong with a value that could be read."""


def json_values(text: str) -> Iterator[Value]:
    """The values of JSON lines, or the elements of a list; also of objects that are spread over several lines."""
    return _elements(text) if text.lstrip().startswith("[") or _goes_on(text.strip()) else _lines(text)


def _goes_on(text: str) -> bool:
    """Whether the first object does not end on its line. Where the next line is one too, it is only damaged."""
    first, _, rest = text.partition("\n")
    if not first.startswith("{") or not rest or rest.startswith("{"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


def _lines(text: str) -> Iterator[Value]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line), ""
            except (ValueError, RecursionError) as error:
                yield number, None, f"no valid JSON: {_reason(error)}"


def _elements(text: str) -> Iterator[Value]:
    line, counted, position = 1, 0, _skip(text, 0)
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
            yield line, value, ""
        except (ValueError, RecursionError) as error:
            yield line, None, f"no valid JSON: {_reason(error)}"
            # The next object begins on the line where the error was found, or after it.
            failed = error.pos if isinstance(error, json.JSONDecodeError) else position
            following = _NEXT_OBJECT.search(text, max(position + 1, text.rfind("\n", 0, failed)))
            end = following.end() if following else len(text)
        position = _skip(text, end)


def _skip(text: str, position: int) -> int:
    """Past what stands between two elements."""
    match = _BETWEEN.match(text, position)
    assert match is not None
    return match.end()


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
