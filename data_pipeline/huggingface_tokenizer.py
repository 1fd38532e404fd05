"""A `tokenizer.json` of Hugging Face, read with its own library."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data_pipeline.tiktoken_files import REPLACEMENT

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _library() -> Any:
    """Raises UserError when it is not installed."""
    # Workers are processes already; threads of each would only be in each other's way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("this tokenizer needs a package: pip install -c constraints.txt -e '.[convert]'") from error
    return tokenizers


def byte_level_content(merges: Path, vocabulary: Path, special: Sequence[str], added: Mapping[str, int]) -> bytes:
    """A tokenizer.json of the two files of a tokenizer that was trained as GPT-2's.

    Special tokens are those of `special` that the vocabulary has, and the `added` ones, which follow it with these ids.

    Raises:
        UserError: the files are damaged, or the ids of the added tokens do not follow the vocabulary.
    """
    tokenizers = _library()
    try:
        made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # of a plain class
        raise UserError(f"{merges} and {vocabulary} are not a vocabulary like GPT-2's: {error}") from error
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([token for token in dict.fromkeys(special) if made.token_to_id(token) is not None])
    made.add_special_tokens(sorted(added, key=lambda token: added[token]))
    found = {token: made.token_to_id(token) for token in added}
    if found != added:
        raise UserError(f"added_tokens.json beside {vocabulary} gives its tokens ids that do not follow the vocabulary")
    return str(made.to_str()).encode()


class HuggingFaceModel:
    """Special tokens are never found in text, where the library would."""

    def __init__(self, header: dict[str, Any], content: bytes) -> None:
        """Raises ValueError when `content` is damaged, UserError when the library is not installed."""
        tokenizers = _library()
        try:
            self.fast: Any = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # of a plain class
            raise ValueError(f"no tokenizer.json that this version of tokenizers can read: {error}") from error
        self.fast.no_truncation()
        self.fast.no_padding()
        self.fast.encode_special_tokens = True
        added = self.fast.get_added_tokens_decoder()
        self.special_ids = {token.content: number for number, token in added.items() if token.special}
        self.control_ids = {token.content: number for number, token in added.items()}
        self.eos_token: str | None = None  # tokenizer.json does not say
        self._special = frozenset(self.special_ids.values())
        vocabulary = self.fast.get_vocab(with_added_tokens=True)
        named = {number: _BYTE.fullmatch(token) for token, number in vocabulary.items()} if self.fast.decoder else {}
        self._bytes = {number: int(match[1], 16) for number, match in named.items() if match}
        self._size = max(vocabulary.values()) + 1

    @property
    def vocab_size(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        return list(self.fast.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(one.ids, dtype=np.int32) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        shown = [number for number in ids if number not in self._special]
        if self._bytes.keys().isdisjoint(shown):
            return str(self.fast.decode(shown))
        # The library gives up all of a run of byte tokens for one that is not UTF-8; so half a character, as it comes
        # up when text is streamed, would take the whole ones before it along.
        tokens: list[str] = []
        for of_bytes, run in itertools.groupby(shown, self._bytes.__contains__):
            if of_bytes:
                tokens.append(bytes(self._bytes[number] for number in run).decode("utf-8", "replace"))
            else:
                tokens += filter(None, map(self.fast.id_to_token, run))
        return str(self.fast.decoder.decode(tokens))

    def token_id(self, token: str) -> int | None:
        number = self.fast.token_to_id(token)
        return None if number is None else int(number)

    def piece(self, token_id: int) -> str:
        if token_id in self._special:
            return self.fast.id_to_token(token_id) or ""
        return str(self.fast.decode([token_id], skip_special_tokens=False))

    def is_byte(self, token_id: int) -> bool:
        token = self.fast.id_to_token(token_id) or ""
        return token_id in self._bytes or (len(token) == 1 and self.piece(token_id) == REPLACEMENT)

    def is_learned(self, token_id: int) -> bool:
        return self.is_token(token_id) and not self.is_byte(token_id) and token_id not in self._special

    def is_token(self, token_id: int) -> bool:
        return self.fast.id_to_token(token_id) is not None
