"""The one tokenizer interface that data, training, inference and evaluation use.

A `tokenizer.model` is a SentencePiece model, or one of three kinds behind a line of JSON that says which: SentencePiece
again, an encoding of tiktoken, or a `tokenizer.json` of Hugging Face. That line may also name the tokens that begin
and end a text, and hold a chat template; `tokenizer_import.py` writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece

from common.errors import UserError
from data_pipeline.chat import CHAT_TEMPLATE, Message, Shield, render_chat
from data_pipeline.config import SPECIAL_TOKENS
from data_pipeline.huggingface_tokenizer import HuggingFaceModel
from data_pipeline.tiktoken_files import REPLACEMENT as REPLACEMENT
from data_pipeline.tiktoken_files import TiktokenModel

HEADER = b'{"format": '


class _Model(Protocol):
    """What a kind of tokenizer has to offer. Texts are valid Unicode."""

    special_ids: dict[str, int]
    control_ids: dict[str, int]
    """What is one token wherever it stands in a chat: the special ones, and any that were added to the vocabulary."""
    eos_token: str | None
    """What ends a text, unless the header says otherwise."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_id(self, token: str) -> int | None: ...

    def piece(self, token_id: int) -> str: ...

    def is_byte(self, token_id: int) -> bool: ...

    def is_learned(self, token_id: int) -> bool: ...

    def is_token(self, token_id: int) -> bool: ...


class SentencePieceModel:
    def __init__(self, header: dict[str, Any], content: bytes) -> None:
        """Raises RuntimeError when `content` is damaged."""
        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(content)
        eos_id = int(self.processor.eos_id())
        self.eos_token = str(self.processor.id_to_piece(eos_id)) if eos_id >= 0 else None
        controls = [number for number in range(self.vocab_size) if self.processor.is_control(number)]
        self.special_ids = self.control_ids = {self.piece(number): number for number in controls}

    @property
    def vocab_size(self) -> int:
        return int(self.processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(ids, dtype=np.int32) for ids in self.processor.encode(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.decode(list(map(int, ids))))

    def token_id(self, token: str) -> int | None:
        number = int(self.processor.piece_to_id(token))
        return None if number == self.processor.unk_id() else number

    def piece(self, token_id: int) -> str:
        return str(self.processor.id_to_piece(token_id))

    def is_byte(self, token_id: int) -> bool:
        return bool(self.processor.is_byte(token_id))

    def is_learned(self, token_id: int) -> bool:
        model = self.processor
        return not (model.is_byte(token_id) or model.is_control(token_id) or model.is_unknown(token_id))

    def is_token(self, token_id: int) -> bool:
        return token_id < self.vocab_size


KINDS: dict[str, Any] = {
    "sentencepiece": SentencePieceModel,
    "tiktoken": TiktokenModel,
    "huggingface": HuggingFaceModel,
}


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The line of JSON of a `tokenizer.model` and what follows it. Raises ValueError when that line is damaged."""
    if not content.startswith(HEADER):
        return {"format": "sentencepiece"}, content
    line, _, rest = content.partition(b"\n")
    header = json.loads(line)
    if header["format"] not in KINDS:
        raise ValueError(f"its format is {header['format']!r}, none of {', '.join(KINDS)}")
    return header, rest


class Tokenizer:
    """A tokenizer, whatever its kind.

    Text comes back unchanged from `decode(encode(text))`, but with SentencePiece only where it holds no U+2581, and
    with a tokenizer of others only where that does not normalise text.
    """

    file_name = "tokenizer.model"

    def __init__(self, path: str | Path, content: bytes | None = None) -> None:
        """`content` is that of the file where it has not been written yet.

        Raises:
            UserError: it is not a whole tokenizer, or needs a package that is not there.
        """
        self.path = Path(path)
        if content is None and not self.path.is_file():
            raise UserError(f"tokenizer {self.path} does not exist")
        try:
            self.content = self.path.read_bytes() if content is None else content
            header, content = split_header(self.content)
            self._kind: str = header["format"]
            self.model: _Model = KINDS[self._kind](header, content)
            self._eos_ids = self._named("ends", header.get("eos_tokens") or [self.model.eos_token])
            self._bos_ids = self._named("begins", [header["bos_token"]]) if header.get("bos_token") else ()
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is not a tokenizer, or damaged: {error}") from error
        ours = all(token in self.model.special_ids for token in SPECIAL_TOKENS)
        self.chat_template: str | None = header.get("chat_template") or (CHAT_TEMPLATE if ours else None)

    def _named(self, what: str, tokens: Sequence[str | None]) -> tuple[int, ...]:
        ids = [self.model.special_ids.get(token, self.model.token_id(token)) for token in tokens if token]
        if None in ids or not ids:
            raise ValueError(f"it has no token that {what} a text, or not all of {tokens}")
        return tuple(number for number in ids if number is not None)

    @property
    def kind(self) -> str:
        """ "sentencepiece", "tiktoken" or "huggingface"."""
        return self._kind

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.model.vocab_size

    @property
    def eos_id(self) -> int:
        """End of text: follows every document in the shards."""
        return self._eos_ids[0]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All that end what a model writes: end of text, and where there are such, the end of a turn or message."""
        turn = self.model.special_ids.get(SPECIAL_TOKENS[-1])
        return self._eos_ids if turn is None or turn in self._eos_ids else (*self._eos_ids, turn)

    @property
    def has_bos(self) -> bool:
        """Whether texts begin with a token of their own."""
        return bool(self._bos_ids) and self._bos_ids[0] != self.eos_id

    @property
    def bos_id(self) -> int:
        """What a model sees before a text: a token of its own, or the end of the text before it."""
        return self._bos_ids[0] if self._bos_ids else self.eos_id

    @property
    def special_ids(self) -> dict[str, int]:
        """Tokens that are never produced from text."""
        return dict(self.model.special_ids)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special ids. Lone surrogates, which UTF-8 cannot hold, become "?"."""
        return self.model.encode(_encodable(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids a text."""
        return self.model.encode_batch([_encodable(text) for text in texts])

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of a conversation as the chat template writes it.

        A message cannot forge a turn: what looks like a special token in its content is encoded as plain text.

        Args:
            add_generation_prompt: end with what stands before an answer of the assistant.
            variables: more that the template may ask for, such as `date_string`.

        Raises:
            UserError: there is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise UserError(f"{self.path} has no chat template; it was made for plain text")
        shield = Shield(self._control_pattern, [messages, variables])
        named = {"bos_token": self.piece(self.bos_id), "eos_token": self.piece(self.eos_id)}
        text = render_chat(
            self.chat_template, shield.hide(messages), add_generation_prompt, {**named, **shield.hide(variables)}
        )
        ids: list[int] = []
        for part in re.split(self._control_pattern, text):
            control = self.model.control_ids.get(part)
            for piece in [] if control is not None else shield.pieces(part):
                ids += self.encode(piece)
            ids += [] if control is None else [control]
        return ids

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.model.control_ids), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are not valid UTF-8 show as U+FFFD, special ids as nothing."""
        return self.model.decode(list(map(int, ids)))

    def piece(self, token_id: int) -> str:
        return self.model.piece(token_id)

    @cached_property
    def longest_piece(self) -> int:
        """Bytes that one token stands for at most, where the tokenizer neither normalises text nor has characters that
        it does not know."""
        return max(len(self.piece(number).encode()) for number in range(self.vocab_size) if self.model.is_token(number))

    def is_byte(self, token_id: int) -> bool:
        """Whether the piece is one byte, with which rare characters are spelt."""
        return self.model.is_byte(token_id)

    def is_learned(self, token_id: int) -> bool:
        """Whether the piece was learned from text; bytes, the unknown piece and special tokens were not."""
        return self.model.is_learned(token_id)

    def unused_ids(self, rows: int) -> list[int]:
        """Ids below `rows` that stand for nothing: a model may have more rows than there are tokens."""
        return [number for number in self._holes if number < rows] + list(range(self.vocab_size, rows))

    @cached_property
    def _holes(self) -> list[int]:
        return [number for number in range(self.vocab_size) if not self.model.is_token(number)]


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
