"""What a file of examples holds, whatever its format: completions, conversations and texts, and what was set aside."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from data_pipeline.chat import Message
from data_pipeline.examples.chat_text import END_HEADER, START_HEADER
from data_pipeline.examples.prompts import PromptStyle


@dataclass(frozen=True)
class Problem:
    """A piece of input that was set aside."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that follows it at once, with the white space between them."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class ChatText:
    """A conversation that is written out already, with the special tokens of Llama 3."""

    text: str


@dataclass(frozen=True)
class PlainText:
    """A document."""

    text: str


Content = Completion | Conversation | ChatText | PlainText


@dataclass(frozen=True)
class Record:
    """One example, and where it stands."""

    path: str
    line: int
    content: Content
    style: PromptStyle

    def problem(self, reason: str) -> Problem:
        return Problem(self.path, self.line, reason)

    @property
    def identity(self) -> bytes:
        """Equal for records of equal content."""
        return _digest([type(self.content).__name__, vars(self.content)])

    @property
    def question(self) -> bytes:
        """Equal for records that ask the same: whatever stands before the first answer is equal."""
        content = self.content
        if isinstance(content, Completion):
            return _digest(content.prompt)
        if isinstance(content, Conversation):
            answers = [number for number, message in enumerate(content.messages) if message["role"] == "assistant"]
            return _digest(content.messages[: answers[0]] if answers else content.messages)
        return _digest(content.text.partition(f"{START_HEADER}assistant{END_HEADER}")[0])


def as_json(value: Any) -> str:
    """`value` as text in which every string of it stands as it is."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _digest(value: Any) -> bytes:
    return hashlib.sha256(as_json(value).encode("utf-8", "surrogatepass")).digest()
