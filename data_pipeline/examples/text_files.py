"""Examples in plain text files: blocks of a question and its answer, and documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_pipeline.examples.prompts import PromptStyle, qa_prompt
from data_pipeline.examples.records import Completion, PlainText, Problem, Record

_QUESTION, _ANSWER = ("pregunta", "question"), ("respuesta", "answer")
LABEL = re.compile(rf"\s*({'|'.join(_QUESTION + _ANSWER)})\s*:\s*(.*)", re.IGNORECASE | re.DOTALL)
# Three hashes on a line of their own, or glued to the end of an answer or the beginning of a question; no heading.
MARK = re.compile(rf"^\s*###(?!#)\s*(?=$|(?:{'|'.join(_QUESTION)})\s*:)|(?<!#)###\s*$", re.IGNORECASE)
_SEPARATORS = ("---", "<|endoftext|>")


@dataclass
class _Block:
    """What stands between two marks, or from one question to the next."""

    line: int = 0
    stray: bool = False
    """Whether text stands before the question."""
    labels: list[str] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    """The lines behind each label."""

    def add(self, line: str, number: int) -> None:
        label = LABEL.match(line)
        if line.strip() and not self.line:
            self.line = number
        if label:
            self.labels.append(label[1].capitalize())
            self.texts.append([label[2]])
        elif self.texts:
            self.texts[-1].append(line)
        elif line.strip():
            self.stray = True

    def is_followed_by(self, line: str) -> bool:
        """Whether `line` asks the next question; then the mark between the two is missing."""
        label = LABEL.match(line)
        return bool(label and label[1].lower() in _QUESTION and self.labels)

    def reason(self) -> str:
        """What is wrong with it."""
        asks = [label.lower() in _QUESTION for label in self.labels]
        if self.stray or not asks:
            return "text that is neither question nor answer (lines begin with Pregunta: and Respuesta:)"
        if not asks[0]:
            return f"{self.labels[0]}: without a question before it"
        if len(asks) == 1:
            return f"{self.labels[0]}: without an answer after it"
        if len(asks) > 2:
            return "two answers to one question"
        empty = [label for label, text in zip(self.labels, self.texts, strict=True) if not "".join(text).strip()]
        return f"nothing stands behind {empty[0]}:" if empty else ""

    def close(self, path: str) -> Iterator[Record | Problem]:
        if not self.line:
            return
        if reason := self.reason():
            yield Problem(path, self.line, reason)
            return
        question, answer = ("\n".join(text).strip() for text in self.texts)
        style = PromptStyle("qa", *self.labels)
        # Labels are written alike throughout, whatever their case in the file: one way to ask, in training and later.
        yield Record(path, self.line, Completion(qa_prompt(question, *self.labels), f" {answer}"), style)


def questions_and_answers(path: str, text: str) -> Iterator[Record | Problem]:
    """Blocks `Pregunta: ...`, `Respuesta: ...` (or `Question:`, `Answer:`) between lines of three hashes.

    A block may lack its mark: the next question ends it too.
    """
    block = _Block()
    for number, line in enumerate(text.split("\n"), 1):
        for position, part in enumerate(MARK.split(line)):
            if position or block.is_followed_by(part):
                yield from block.close(path)
                block = _Block()
            block.add(part, number)
    yield from block.close(path)


def documents(path: str, text: str) -> Iterator[Record | Problem]:
    """One document, or several where lines hold nothing but `---` or `<|endoftext|>`."""
    lines: list[str] = []
    for number, line in enumerate([*text.split("\n"), _SEPARATORS[0]], 1):
        if line.strip() not in _SEPARATORS:
            lines.append(line)
            continue
        blank = next((count for count, kept in enumerate(lines) if kept.strip()), len(lines))
        if blank < len(lines):
            document = "\n".join(lines[blank:]).rstrip()
            yield Record(path, number - len(lines) + blank, PlainText(document), PromptStyle("text"))
        lines = []
