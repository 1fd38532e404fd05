"""Conversations as text: chat templates in Jinja, as Hugging Face tokenizers carry them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import UserError

Message = Mapping[str, Any]
"""At least `role` and `content`."""

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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, tools=None, **variables
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"the chat template refuses these messages: {error}") from error


def shield(messages: Sequence[Message], special: Collection[str]) -> tuple[list[dict[str, Any]], str]:
    """The messages with special tokens in their texts broken by a mark, and that mark, which stands nowhere else."""
    whole = "".join(str(value) for message in messages for value in message.values())
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in whole)  # of the private use area
    safe = []
    for message in messages:
        values = dict(message)
        for name, value in message.items():
            for token in special if isinstance(value, str) else ():
                values[name] = values[name].replace(token, token[0] + mark + token[1:])
        safe.append(values)
    return safe, mark


def unshield(text: str, mark: str) -> str:
    return text.replace(mark, "")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML, which a model should not see."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
