"""The one tokenizer interface that training, inference and evaluation use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from common.errors import UserError
from common.files import sha256_of
from data_pipeline.config import SPECIAL_TOKENS
from data_pipeline.tiktoken_files import MAGIC, TiktokenModel


class _Model(Protocol):
    """What a kind of tokenizer has to offer. Texts are valid Unicode."""

    kind: str
    special_ids: dict[str, int]
    eos_id: int

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token_id: int) -> str: ...

    def is_byte(self, token_id: int) -> bool: ...

    def is_learned(self, token_id: int) -> bool: ...


class _SentencePieceModel:
    kind = "sentencepiece"

    def __init__(self, content: bytes) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        self._model.LoadFromSerializedProto(content)
        self.eos_id = int(self._model.eos_id())
        ids = {piece: int(self._model.piece_to_id(piece)) for piece in SPECIAL_TOKENS}
        self.special_ids = {piece: number for piece, number in ids.items() if number != self._model.unk_id()}

    @property
    def vocab_size(self) -> int:
        return int(self._model.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(ids, dtype=np.int32) for ids in self._model.encode(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode(list(map(int, ids))))

    def piece(self, token_id: int) -> str:
        return str(self._model.id_to_piece(token_id))

    def is_byte(self, token_id: int) -> bool:
        return bool(self._model.is_byte(token_id))

    def is_learned(self, token_id: int) -> bool:
        model = self._model
        return not (model.is_byte(token_id) or model.is_control(token_id) or model.is_unknown(token_id))


class Tokenizer:
    """A trained SentencePiece model, or an encoding of tiktoken; the file tells which.

    Text comes back unchanged from `decode(encode(text))`; with SentencePiece only where it holds no U+2581.
    """

    file_name = "tokenizer.model"

    def __init__(self, path: str | Path) -> None:
        """Raises UserError when `path` is not a whole tokenizer."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"tokenizer {self.path} does not exist")
        try:
            content = self.path.read_bytes()
            is_tiktoken = content.startswith(MAGIC)
            self._model: _Model = TiktokenModel(content) if is_tiktoken else _SentencePieceModel(content)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.path} is not a tokenizer, or damaged: {error}") from error

    @property
    def kind(self) -> str:
        """ "sentencepiece" or "tiktoken"."""
        return self._model.kind

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def eos_id(self) -> int:
        """End of text: follows every document in the shards, and so also stands before every document but the first."""
        return self._model.eos_id

    @property
    def special_ids(self) -> dict[str, int]:
        """Tokens that are never produced from text."""
        return dict(self._model.special_ids)

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special ids. Lone surrogates, which UTF-8 cannot hold, become "?"."""
        return self._model.encode(_encodable(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids a text."""
        return self._model.encode_batch([_encodable(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are not valid UTF-8 show as U+FFFD, special ids as nothing."""
        return self._model.decode(list(map(int, ids)))

    def piece(self, token_id: int) -> str:
        return self._model.piece(token_id)

    def is_byte(self, token_id: int) -> bool:
        """Whether the piece is one byte, with which rare characters are spelt."""
        return self._model.is_byte(token_id)

    def is_learned(self, token_id: int) -> bool:
        """Whether the piece was learned from text; bytes, the unknown piece and special tokens were not."""
        return self._model.is_learned(token_id)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
