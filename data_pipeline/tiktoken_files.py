"""Byte-level BPE of the tiktoken package in a `tokenizer.model`: a line of JSON, then its ranks in their usual form.

Text is cut by a regular expression, then bytes are merged in the order of the ranks, so text always comes back as it
was. The file holds all that is needed, and nothing has to be downloaded to read it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tiktoken.load
from tiktoken_ext import openai_public

from common.errors import UserError

END_OF_TEXT = "<|endoftext|>"
REPLACEMENT = "\ufffd"  # how every tokenizer shows a byte that is not (or not yet) part of a character
# Of GPT-4; Llama 3 cuts text alike.
LLAMA3_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)


class TiktokenModel:
    """An encoding, as `tiktoken_content` puts it down."""

    def __init__(self, header: dict[str, Any], content: bytes) -> None:
        """Raises ValueError or KeyError when `header` or `content` is damaged."""
        self.special_ids: dict[str, int] = header["special_tokens"]
        self.control_ids = self.special_ids
        self.pattern: str = header["pattern"]
        self.ranks = parse_ranks(content)
        self._encoding = tiktoken.Encoding(
            header["name"], pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special_ids
        )
        self.eos_token: str | None = END_OF_TEXT if END_OF_TEXT in self.special_ids else None
        self._special = frozenset(self.special_ids.values())

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; some encodings leave ids unused."""
        return self._encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([number for number in ids if number not in self._special])

    def token_id(self, token: str) -> int | None:
        return self.special_ids.get(token, self.ranks.get(token.encode()))

    def piece(self, token_id: int) -> str:
        return self._bytes(token_id).decode("utf-8", "backslashreplace")

    def is_byte(self, token_id: int) -> bool:
        content = self._bytes(token_id)
        return len(content) == 1 and content[0] >= 0x80  # an ASCII character is a piece like any other

    def is_learned(self, token_id: int) -> bool:
        return len(self._bytes(token_id)) > 1 and token_id not in self._special

    def is_token(self, token_id: int) -> bool:
        return self._bytes(token_id) != b""

    def _bytes(self, token_id: int) -> bytes:
        """Nothing for an id that stands for no token."""
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except KeyError:
            return b""


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """The bytes of every token with its rank, from lines of base64 and a number. Raises ValueError."""
    ranks = {}
    for line in content.splitlines():
        token, _, rank = line.partition(b" ")
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    if len(ranks) < 256 or len(set(ranks.values())) != len(ranks):
        raise ValueError("it has fewer tokens than there are bytes, or a rank twice")
    return ranks


def tiktoken_content(encoding: str, special_tokens: Sequence[str]) -> bytes:
    """`encoding`, a name that tiktoken knows or a file of ranks, with more special tokens behind its own.

    Raises:
        UserError: the name is unknown or cannot be downloaded, or the file cannot be read.
    """
    name, pattern, ranks, special = _from_file(Path(encoding)) if _is_file(encoding) else _by_name(encoding)
    following = max(*ranks.values(), *special.values(), 0) + 1
    for token in (END_OF_TEXT, *special_tokens):
        if token not in special:
            special[token] = following
            following += 1
    return pack_ranks({"name": name, "pattern": pattern, "special_tokens": special}, ranks)


def pack_ranks(header: dict[str, Any], ranks: dict[bytes, int]) -> bytes:
    """What a `tokenizer.model` of this kind holds."""
    lines = [json.dumps({"format": "tiktoken", **header}).encode()]
    for content, rank in sorted(ranks.items(), key=lambda item: item[1]):
        lines.append(base64.b64encode(content) + b" " + str(rank).encode())
    return b"\n".join(lines) + b"\n"


def gpt2_content(merges: Path, vocabulary: Path, header: dict[str, Any]) -> bytes:
    """GPT-2's own two files (`merges.txt` or `vocab.bpe`, `vocab.json` or `encoder.json`).

    Raises:
        UserError: they cannot be read, or do not belong together.
    """
    try:
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
    except Exception as error:  # of asserts and lookups in there
        raise UserError(f"{merges} and {vocabulary} are not a vocabulary of GPT-2: {error!r}") from error
    special = {END_OF_TEXT: len(ranks)}
    return pack_ranks({"name": "gpt2", "pattern": GPT2_PATTERN, "special_tokens": special, **header}, ranks)


def llama3_content(path: Path, header: dict[str, Any]) -> bytes:
    """Llama 3's `tokenizer.model`, which is a file of ranks; its special tokens are known (those of 3.1).

    Raises:
        UserError: it cannot be read, or does not have 128,000 ranks.
    """
    try:
        ranks = parse_ranks(path.read_bytes())
    except (OSError, ValueError, binascii.Error) as error:
        raise UserError(f"{path} is no file of tiktoken ranks: {error}") from error
    if len(ranks) != 128_000:
        raise UserError(f"{path} has {len(ranks):,} ranks, where the tokenizer of Llama 3 has 128,000")
    special = {token: len(ranks) + number for number, token in enumerate(llama3_special_tokens())}
    return pack_ranks({"name": "llama3", "pattern": LLAMA3_PATTERN, "special_tokens": special, **header}, ranks)


def llama3_special_tokens() -> list[str]:
    """The 256 special tokens of Llama 3.1 to 3.3, in the order of their ids."""
    named = {
        0: "begin_of_text",
        1: "end_of_text",
        4: "finetune_right_pad_id",
        6: "start_header_id",
        7: "end_header_id",
        8: "eom_id",
        9: "eot_id",
        10: "python_tag",
    }
    reserved = iter(range(256))
    return [f"<|{named[n] if n in named else f'reserved_special_token_{next(reserved)}'}|>" for n in range(256)]


def _is_file(encoding: str) -> bool:
    return "/" in encoding or encoding.endswith(".tiktoken") or Path(encoding).is_file()


def _from_file(path: Path) -> tuple[str, str, dict[bytes, int], dict[str, int]]:
    try:
        ranks = parse_ranks(path.read_bytes())
    except OSError as error:
        raise UserError(f"tokenizer.encoding: {path} cannot be read: {error.strerror}") from error
    except (ValueError, binascii.Error) as error:
        raise UserError(f"tokenizer.encoding: {path} is no file of tiktoken ranks: {error}") from error
    pattern, special = _definition(path.stem)
    if not set(special.values()).isdisjoint(ranks.values()):
        raise UserError(
            f"tokenizer.encoding: {path} has the name of an encoding of tiktoken, but other ranks: they take the ids "
            "of its special tokens. Give the file another name"
        )
    return path.stem, pattern, ranks, special


def _definition(name: str) -> tuple[str, dict[str, int]]:
    """Pattern and special tokens of tiktoken's encoding `name`, without its ranks; other names have the defaults.

    tiktoken defines an encoding as a function that loads the ranks, so it is called with loaders that load nothing.
    """
    if name not in openai_public.ENCODING_CONSTRUCTORS:
        return LLAMA3_PATTERN, {}
    with ExitStack() as restored:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            restored.callback(setattr, openai_public, loader, getattr(openai_public, loader))
            setattr(openai_public, loader, lambda *_, **__: {})
        definition = openai_public.ENCODING_CONSTRUCTORS[name]()
    return definition["pat_str"], dict(definition["special_tokens"])


def _by_name(name: str) -> tuple[str, str, dict[bytes, int], dict[str, int]]:
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UserError(f"tokenizer.encoding: tiktoken knows no {name!r}, and no such file exists; it knows {known}")
    try:
        encoding: Any = tiktoken.get_encoding(name)
    except Exception as error:  # of its downloads
        raise UserError(
            f"tokenizer.encoding: tiktoken could not download {name} ({type(error).__name__}: {error}). Where there is "
            f"a network, download its file of ranks, save it as {name}.tiktoken, then name that file here"
        ) from error
    return name, encoding._pat_str, dict(encoding._mergeable_ranks), dict(encoding._special_tokens)


GPT2_PATTERN = _definition("gpt2")[0]
