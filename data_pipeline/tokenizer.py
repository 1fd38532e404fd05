"""The one tokenizer interface that training, inference and evaluation use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from common.errors import UserError
from common.files import sha256_of


class Tokenizer:
    """A trained SentencePiece model. Text that holds no U+2581 comes back unchanged from `decode(encode(text))`."""

    file_name = "tokenizer.model"

    def __init__(self, path: str | Path) -> None:
        """Raises UserError when `path` is not a whole SentencePiece model."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"tokenizer {self.path} does not exist")
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(self.path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise UserError(f"{self.path} is not a SentencePiece model: {error}") from error

    @property
    def vocab_size(self) -> int:
        return int(self._model.vocab_size())

    @property
    def eos_id(self) -> int:
        """End of text: follows every document in the shards, and so also stands before every document but the first."""
        return int(self._model.eos_id())

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special ids. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
        return list(self._model.encode(_encodable(text)))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids a text."""
        return [np.asarray(ids, dtype=np.int32) for ids in self._model.encode([_encodable(text) for text in texts])]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are not valid UTF-8 show as U+FFFD, special ids as nothing."""
        return str(self._model.decode(list(map(int, ids))))

    def piece(self, token_id: int) -> str:
        return str(self._model.id_to_piece(token_id))

    def is_byte(self, token_id: int) -> bool:
        """Whether the piece is one byte, with which rare characters are spelt."""
        return bool(self._model.is_byte(token_id))

    def is_learned(self, token_id: int) -> bool:
        """Whether the piece was learned from text; bytes, the unknown piece and special tokens were not."""
        model = self._model
        return not (model.is_byte(token_id) or model.is_control(token_id) or model.is_unknown(token_id))


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
