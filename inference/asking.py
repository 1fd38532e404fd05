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


def prompt_style(run: Run) -> AskingStyle:
    """How the training examples of `run` ask.

    Raises:
        UserError: the run was not fine-tuned on examples, or its examples.json is damaged.
    """
    path = run.path / EXAMPLES
    try:
        saved = read_json(path)
        style, variables = saved["style"], saved["template_variables"]
        if not isinstance(style, dict) or not isinstance(variables, dict):
            raise ValueError("style and template_variables must be objects")
    except FileNotFoundError as error:
        raise UserError(
            f"{run.path} was not fine-tuned on examples (it has no {EXAMPLES}), so it has no way to be asked; name a "
            "run that was, or let this one continue a text with sample.py"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); the same train.py command writes it again") from error
    return AskingStyle(from_dict(PromptStyle, style, where=f"{path}: style"), variables)


def run_of_adapter(directory: Path) -> Run | None:
    """What says how an adapter is asked: its own directory, or the run around it; None when neither does."""
    places = directory.resolve(), directory.resolve().parent
    return next((Run(place) for place in places if (place / EXAMPLES).is_file()), None)


def chat_ids(run: Run, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation that the assistant is to answer, by the tokenizer's chat template; without the id that
    begins a text. What the template was given in training it is given again.

    Raises UserError when there is no template, or it refuses the messages.
    """
    variables = prompt_style(run).template_variables if (run.path / EXAMPLES).is_file() else {}
    return [int(number) for number in render_prompt(list(messages), tokenizer, variables)[1:]]


def asked(run: Run, tokenizer: Tokenizer, question: str) -> list[int]:
    """Ids of `question` as the training examples of `run` ask. Raises UserError as `prompt_style` and its `ids` do."""
    return prompt_style(run).ids(tokenizer, question)
