"""The models that are served, the run and its adapters, and how each wants to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference import LoadedRun
from inference.asking import AskingStyle, chat_ids, style_in
from model.adapters.attach import activate, active_names
from model.adapters.files import load_adapter
from serving.errors import ApiError
from serving.schemas import ChatMessage


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
        """What stands before the answer, as `inference.asking.chat_ids` has it.

        Raises:
            ApiError: there is no way to ask, or the template refuses the messages.
        """
        try:
            return chat_ids(self.style, tokenizer, [message.plain() for message in messages])
        except UserError as error:
            raise ApiError(400, f"{self.id} cannot answer this: {error}", param="messages") from error


def served_models(loaded: LoadedRun, adapters: Sequence[str]) -> dict[str, ServedModel]:
    """The run, and for every `NAME=DIRECTORY` of `adapters` one that is put on it.

    Raises:
        UserError: a name is missing or taken, or an adapter does not fit the run.
    """
    model, run = loaded.model, loaded.run
    own = active_names(model)
    path = run.path.resolve()
    base = ServedModel(path.name, str(path), None, model.room, style_in(run.path))
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
        models[name] = ServedModel(name, str(where), name, model.room, style_in(where), base.id)
    activate(model, own)
    return models
