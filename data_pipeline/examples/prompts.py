"""How an example asks: the text before an answer, the same for training and for using the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.chat import Message

Format = Literal["qa", "alpaca", "messages", "sharegpt", "prompt_completion", "chat_text", "text"]

_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def qa_prompt(question: str, question_label: str = "Pregunta", answer_label: str = "Respuesta") -> str:
    """What stands before the answer. That follows behind one space."""
    return f"{question_label}: {question}\n{answer_label}:"


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of Stanford Alpaca (Taori et al. 2023). The answer follows on a line of its own."""
    # Not `format`: an instruction may hold braces.
    template = _ALPACA_INPUT if context else _ALPACA
    return template.replace("{input}", context, 1).replace("{instruction}", instruction, 1)


@dataclass(frozen=True)
class HeaderChat:
    """Messages as a file of Llama 3 chat text lays them out, where that is not how the tokenizer's template does."""

    messages: tuple[Message, ...]
    after_header: str
    """White space between a header and what is said."""
    after_turn: str
    """White space between two turns."""


Prompt = str | Sequence[Message] | HeaderChat
"""Plain text; messages for the tokenizer's chat template; or messages with a layout of their own."""


@dataclass(frozen=True)
class PromptStyle:
    """How the examples of a file ask. Plain values, to be saved with a run: a question is later asked the same way."""

    format: Format
    question_label: str = ""
    answer_label: str = ""
    system: str = ""
    """The system message, where conversations begin with one."""
    after_header: str = ""
    after_turn: str = ""

    def prompt(self, question: str) -> Prompt:
        """What to give to `rendering.render_prompt`, so that the model sees `question` as it saw those in training."""
        if self.format == "qa":
            return qa_prompt(question, self.question_label, self.answer_label)
        if self.format == "alpaca":
            return alpaca_prompt(question)
        if self.format in ("prompt_completion", "text"):
            return question
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.layout((*system, {"role": "user", "content": question}))

    def layout(self, messages: Sequence[Message]) -> Prompt:
        """A conversation as the examples lay it out, where they are conversations."""
        if self.format == "chat_text":
            return HeaderChat(tuple(messages), self.after_header, self.after_turn)
        return messages
