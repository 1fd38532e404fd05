"""The models that are served, the run and its adapters, and how each wants to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference import LoadedRun
from inference.asking import CONVERSATIONS, AskingStyle, chat_ids, style_in
from model.adapters.attach import activate, active_names
from model.adapters.files import load_adapter
from serving.errors import ApiError
from serving.schemas import ChatMessage


@dataclass(frozen=True)
class ServedModel:
    """A name that clients may ask for."""

    id: str
    adapter: str | None
    """As the engine knows it; None for the run as it is, its own adapter included."""
    room: int
    """Tokens of the longest text, the id that begins it included."""
    most_bytes: int
    """Of a text that long, whatever its tokens."""
    style: AskingStyle | None
    """How its training examples ask, where it was fine-tuned on such."""
    parent: str | None = None

    def room_behind(self, ids: Sequence[int]) -> int:
        """How many tokens may follow a prompt. Raises ApiError when not even one may."""
        length = len(ids) + 1  # with the id that begins a text
        # A text may be one token longer than the context, as nothing follows its last.
        room = self.room + 1 - length
        if room < 1:
            raise ApiError(
                400,
                f"the prompt has {length} tokens with the one that begins a text, but the context of {self.id} has "
                f"{self.room}; shorten it by {1 - room}",
                code="context_length_exceeded",
            )
        return room

    def check_size(self, texts: Sequence[str]) -> None:
        """Raises ApiError when `texts` together are too long however they are tokenised, which would take a while."""
        size = sum(len(text.encode()) for text in texts)
        if size > self.most_bytes:
            raise ApiError(
                400,
                f"the prompt has {size} bytes, but the {self.room} tokens that the context of {self.id} holds have "
                f"{self.most_bytes} at most; shorten it",
                code="context_length_exceeded",
            )

    def chat_ids(self, messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> list[int]:
        """What stands before the answer, as `inference.asking.chat_ids` has it.

        Raises:
            ApiError: there is no way to ask, the template refuses the messages, or they cannot fit the context.
        """
        plain = [message.plain() for message in messages]
        asks_once = self.style is not None and self.style.style.format not in CONVERSATIONS
        self.check_size([message["content"] for message in (plain[-1:] if asks_once else plain)])
        try:
            return chat_ids(self.style, tokenizer, plain)
        except UserError as error:
            reason = str(error).replace(str(tokenizer.path), "its tokenizer")  # clients need not know where that is
            raise ApiError(400, f"{self.id} cannot answer this: {reason}", param="messages") from error


def served_models(loaded: LoadedRun, adapters: Sequence[str]) -> dict[str, ServedModel]:
    """The run, and for every `NAME=DIRECTORY` of `adapters` one that is put on it.

    Raises:
        UserError: a name is missing or taken, or an adapter does not fit the run.
    """
    model, run = loaded.model, loaded.run
    own = active_names(model)
    path = run.path.resolve()
    most_bytes = model.room * loaded.tokenizer.longest_piece
    base = ServedModel(path.name, None, model.room, most_bytes, style_in(run.path))
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
        models[name] = ServedModel(name, name, model.room, most_bytes, style_in(where), base.id)
    activate(model, own)
    return models
