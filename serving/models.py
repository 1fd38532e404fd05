"""The models that are served, the run and its adapters, and how each wants to be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.runs import Run
from data_pipeline.examples.prompts import HeaderChat
from data_pipeline.examples.rendering import render_prompt
from data_pipeline.tokenizer import Tokenizer
from inference import LoadedRun
from inference.asking import EXAMPLES, AskingStyle, prompt_style, run_of_adapter
from model.adapters.attach import activate, active_names
from model.adapters.files import load_adapter
from serving.errors import ApiError
from serving.schemas import ChatMessage

CONVERSATIONS = ("messages", "sharegpt", "chat_text")


@dataclass(frozen=True)
class ServedModel:
    """A name that clients may ask for."""

    id: str
    root: str
    """Where its weights come from."""
    adapter: str | None
    """As the engine knows it; None for the run as it is, its own adapter included."""
    room: int
    """Tokens of the longest text, the id that begins it included."""
    style: AskingStyle | None
    """How its training examples ask, where it was fine-tuned on such."""
    parent: str | None = None

    def chat_ids(self, messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> list[int]:
        """What stands before the answer, without the id that begins a text.

        A model that learned from conversations gets all messages through the chat template of its tokenizer. One that
        learned from single questions gets the last message as they were asked; it has no place for others.

        Raises:
            ApiError: there is no way to ask, or the template refuses the messages.
        """
        plain = [message.plain() for message in messages]
        try:
            if self.style is not None and self.style.style.format not in CONVERSATIONS:
                return self.style.ids(tokenizer, _question(plain))
            if tokenizer.chat_template is None:
                raise UserError(
                    f"{self.id} cannot chat: its tokenizer has no chat template and it was not fine-tuned on examples; "
                    "use /v1/completions"
                )
            return [int(number) for number in self._rendered(plain, tokenizer)[1:]]
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from error

    def _rendered(self, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> Sequence[int]:
        if self.style is None:
            return list(render_prompt(messages, tokenizer))
        style, variables = self.style.style, self.style.template_variables
        if style.format == "chat_text":
            return list(render_prompt(HeaderChat(tuple(messages), style.after_header, style.after_turn), tokenizer))
        return list(render_prompt(messages, tokenizer, variables))


def _question(messages: Sequence[Mapping[str, str]]) -> str:
    if messages[-1]["role"] != "user":
        raise UserError("the last message must be the user's: this model answers one question at a time")
    return messages[-1]["content"]


def served_models(loaded: LoadedRun, adapters: Sequence[str]) -> dict[str, ServedModel]:
    """The run, and for every `NAME=DIRECTORY` of `adapters` one that is put on it.

    Raises:
        UserError: a name is missing or taken, or an adapter does not fit the run.
    """
    model, run = loaded.model, loaded.run
    own = active_names(model)
    path = run.path.resolve()
    base = ServedModel(path.name, str(path), None, model.room, _style_of(run))
    models = {base.id: base}
    for given in adapters:
        name, separator, directory = given.partition("=")
        if not separator or not name or not directory:
            raise UserError(
                f"--adapter {given}: give a name and a directory, as in --adapter pokemon=runs/pokemon/adapter"
            )
        if name in models:
            raise UserError(f"--adapter {given}: the name {name!r} is taken; choose another")
        load_adapter(model, Path(directory), name)
        where = Path(directory).resolve()
        models[name] = ServedModel(name, str(where), name, model.room, _style_of(run_of_adapter(where)), base.id)
    activate(model, own)
    return models


def _style_of(run: Run | None) -> AskingStyle | None:
    return prompt_style(run) if run is not None and (run.path / EXAMPLES).is_file() else None
