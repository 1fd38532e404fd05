"""Asking a fine-tuned run the way its training examples ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.cli import from_dict
from common.errors import UserError
from common.files import read_json
from common.runs import Run
from data_pipeline.examples.prompts import Message, PromptStyle, alpaca_prompt
from data_pipeline.examples.rendering import render_prompt
from data_pipeline.tokenizer import Tokenizer

EXAMPLES = "examples.json"  # in a run that was fine-tuned on examples, and in the adapter that it leaves
CONVERSATIONS = ("messages", "sharegpt", "chat_text")


@dataclass(frozen=True)
class AskingStyle:
    """How a run's training examples ask, with what its chat template was given."""

    style: PromptStyle
    template_variables: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As `prompt_style` reads it from a file."""
        return {"style": asdict(self.style), "template_variables": dict(self.template_variables)}

    def ids(self, tokenizer: Tokenizer, question: str, context: str = "") -> list[int]:
        """What stands before the answer, for `inference.generate`: without the id that begins a text.

        `context` is the text that an instruction is about. Alpaca prompts have a place for it; elsewhere it follows the
        question behind an empty line.

        Raises:
            UserError: the examples are conversations, and the tokenizer has no chat template or it refuses this one.
        """
        if self.style.format == "alpaca":
            prompt: Any = alpaca_prompt(question, context)
        else:
            prompt = self.style.prompt(f"{question}\n\n{context}" if context else question)
        return [int(number) for number in render_prompt(prompt, tokenizer, self.template_variables)[1:]]


def style_in(directory: Path) -> AskingStyle | None:
    """How the training examples of the run or adapter in `directory` ask; None where it was not trained on examples.

    Raises:
        UserError: its examples.json is damaged.
    """
    path = directory / EXAMPLES
    try:
        saved = read_json(path)
        style, variables = saved["style"], saved["template_variables"]
        if not isinstance(style, dict) or not isinstance(variables, dict):
            raise ValueError("style and template_variables must be objects")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); the same train.py command writes it again") from error
    return AskingStyle(from_dict(PromptStyle, style, where=f"{path}: style"), variables)


def prompt_style(run: Run) -> AskingStyle:
    """How the training examples of `run` ask.

    Raises:
        UserError: the run was not fine-tuned on examples, or its examples.json is damaged.
    """
    style = style_in(run.path)
    if style is None:
        raise UserError(
            f"{run.path} was not fine-tuned on examples (it has no {EXAMPLES}), so it has no way to be asked; name a "
            "run that was, or let this one continue a text with sample.py"
        )
    return style


def chat_ids(style: AskingStyle | None, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """What stands before the answer to `messages`, for `inference.generate`: without the id that begins a text.

    A model that learned from conversations, or of which nothing is known, gets all messages through the chat template
    of its tokenizer. One that learned from single questions gets the last message as those were asked; it has no place
    for others.

    Raises:
        UserError: there is no chat template, or it refuses the messages; or the last one is not the user's.
    """
    if style is None:
        prompt: Any = list(messages)
    elif style.style.format not in CONVERSATIONS:
        if messages[-1]["role"] != "user":
            raise UserError("the last message must be the user's: this model answers one question at a time")
        return style.ids(tokenizer, messages[-1]["content"])
    else:
        prompt = style.style.layout(messages)
    return [int(number) for number in render_prompt(prompt, tokenizer, style.template_variables if style else {})[1:]]
