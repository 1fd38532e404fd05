"""Conversations that are already written out with the special tokens of Llama 3, taken apart into turns."""

from __future__ import annotations

import re
from dataclasses import dataclass

BEGIN, START_HEADER, END_HEADER, END_OF_TURN = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
MARKS = (START_HEADER, END_HEADER, END_OF_TURN)
"""Without these a tokenizer cannot read such a text."""

_HEADER = re.compile(rf"{re.escape(START_HEADER)}([^<>|]*){re.escape(END_HEADER)}")
# A model that calls a tool ends its message with <|eom_id|>.
_END = r"<\|eo[tm]_id\|>"
_BODY = re.compile(rf"((?:(?!{_END}).)*)({_END})\s*(?:<\|end_of_text\|>\s*)?", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """One message. `header`, `body` and `rest` put together are the text as it was."""

    role: str
    header: str
    """From the start of the header to its end."""
    body: str
    """What was said, with the white space around it, and the token that ends it."""
    rest: str
    """White space before the next turn; after the last one possibly an end of text."""
    content: str
    """What was said."""

    @property
    def after_header(self) -> str:
        """White space between the header and what was said: two newlines, as Llama 3 was trained."""
        return self.body[: len(self.body) - len(self.body.lstrip())]


def turns(text: str) -> list[Turn]:
    """The turns of a written-out conversation, without the beginning-of-text token before them.

    Raises:
        ValueError: it is not made of whole turns; the message says what is wrong.
    """
    text = text.removeprefix(BEGIN)
    if BEGIN in text:
        raise ValueError(f"{BEGIN} stands twice, or not at the beginning")
    headers = list(_HEADER.finditer(text))
    if len(headers) != text.count(START_HEADER):
        raise ValueError(f"a header is not written as {START_HEADER}role{END_HEADER}")
    if not headers or text[: headers[0].start()].strip():
        raise ValueError(f"it does not begin with a header, {START_HEADER}role{END_HEADER}")
    found = []
    start = 0
    for number, header in enumerate(headers):
        stop = headers[number + 1].start() if number + 1 < len(headers) else len(text)
        role = header[1].strip()
        body = _BODY.fullmatch(text, header.end(), stop)
        if body is None:
            raise ValueError(f"turn {number + 1} ({role}) does not end with {END_OF_TURN}, or text stands behind it")
        if role == "assistant" and not body[1].strip():
            raise ValueError(f"the answer in turn {number + 1} is empty")
        end = body.end(2)
        found.append(Turn(role, text[start : header.end()], text[header.end() : end], text[end:stop], body[1].strip()))
        start = stop
    return found
