"""Conversations as text: chat templates in Jinja, as Hugging Face tokenizers carry them."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import UserError

Message = Mapping[str, Any]
"""At least `role` and `content`."""

_ORDINARY = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)  # of the expressions in a template

# Of this project's own special tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a role must be system, user or assistant, not ' + message.role) }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render_chat(
    template: str, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """The text of a conversation. Raises UserError when the template is damaged or refuses the messages.

    Templates come with downloaded weights, so they run in a sandbox that cannot reach anything but its arguments.
    """
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UserError(f"a message needs a role and a content, both texts; got {json.dumps(message, default=str)}")
    try:
        return _compiled(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **{"tools": None, **variables}
        )
    except (TemplateError, RecursionError, MemoryError, *_ORDINARY) as error:
        raise UserError(f"the chat template refuses these messages: {error}") from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    """Compiling takes many times as long as rendering. What a template sets is gone after each rendering."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


class Shield:
    """Control tokens in what users wrote, hidden from the template and its reader behind private characters."""

    def __init__(self, tokens: re.Pattern[str], texts: Any) -> None:
        """`tokens` finds any control token. `texts`: all that will be hidden in."""
        self._tokens = tokens
        strings = list(_strings(texts))
        found = dict.fromkeys(match[0] for text in strings for match in tokens.finditer(text))
        whole = "".join(strings) if found else ""
        # Of the private use planes; a template that prints a list writes such a character as an escape.
        private = (chr(code) for code in range(0xF0000, 0x10FFFE))
        free = (character for character in private if character not in whole and _escape(character) not in whole)
        self._hidden = dict(zip(found, free, strict=False))
        self._escaped = {_escape(character): character for character in self._hidden.values()}
        self._shown = {character: token for token, character in self._hidden.items()}

    def hide(self, value: Any) -> Any:
        """`value` with every text inside it made safe, however deep."""
        if isinstance(value, str):
            return self._tokens.sub(lambda match: self._hidden[match[0]], value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, (list, tuple)) else value

    def pieces(self, text: str) -> list[str]:
        """`text` with what was hidden shown again, cut inside every token of it, so that no reader takes it for one."""
        if not self._hidden:
            return [text]
        text = re.sub(r"\\U[0-9a-f]{8}", lambda match: self._escaped.get(match[0], match[0]), text)
        pieces, begun, end = [], "", 0
        for match in re.finditer(f"[{''.join(self._shown)}]", text):
            token = self._shown[match[0]]
            pieces.append(begun + text[end : match.start()] + token[:1])
            begun, end = token[1:], match.end()
        return [*pieces, begun + text[end:]]


def _escape(character: str) -> str:
    return f"\\U{ord(character):08x}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.items()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML, which a model should not see."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
