"""How a vocabulary serves the text of every source: tokens a word, characters spelt in bytes, and use of the pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.tokenizer import Tokenizer

_LISTED = 12  # pieces that are named, of each kind


class PieceCounter:
    """Counts words and pieces by source, without the end-of-text id."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.words: Counter[int] = Counter()  # what whitespace separates
        self._pieces: dict[int, np.ndarray] = {}

    def add(self, source: int, ids: np.ndarray, words: int) -> None:
        """Count a document of `source` with the token ids `ids`, (tokens,), and so many words."""
        self.words[source] += words
        np.add.at(self._pieces.setdefault(source, np.zeros(self.vocab_size, np.int64)), ids, 1)

    def table(self) -> np.ndarray:
        """Source, piece and count of every piece that occurs, (rows, 3) int64."""
        rows = [np.empty((0, 3), np.int64)]
        for source, counts in sorted(self._pieces.items()):
            used = np.flatnonzero(counts)
            rows.append(np.stack([np.full(len(used), source), used, counts[used]], axis=1))
        return np.concatenate(rows)


def piece_counts(tables: Iterable[Path], vocab_size: int, sources: int) -> np.ndarray:
    """Occurrences of every piece in every source, (sources, vocabulary) int64."""
    counts = np.zeros((sources, vocab_size), np.int64)
    for path in tables:
        table = np.load(path)
        np.add.at(counts, (table[:, 0], table[:, 1]), table[:, 2])
    return counts


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a tokenizer as columns, (vocabulary,) each."""

    pieces: np.ndarray  # str
    is_byte: np.ndarray
    is_learned: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        numbers = range(tokenizer.vocab_size)
        pieces = np.array([tokenizer.piece(number) for number in numbers])
        return cls(
            pieces, np.array(list(map(tokenizer.is_byte, numbers))), np.array(list(map(tokenizer.is_learned, numbers)))
        )

    def use(self, counts: np.ndarray, words: int) -> dict[str, Any]:
        """Fertility (tokens a word), byte fallback and pieces of text in which each piece occurs `counts` times.

        Args:
            counts: (vocabulary,) int64, without the end-of-text id.
            words: parts of the text between whitespace.
        """
        total, of_bytes = int(counts.sum()), int(counts[self.is_byte].sum())
        used = np.flatnonzero(self.is_learned & (counts > 0))
        by_count = used[np.argsort(-counts[used], kind="stable")]
        by_length = by_count[np.argsort(-np.char.str_len(self.pieces[by_count]), kind="stable")]
        return {
            "words": words,
            "tokens_per_word": round(total / words, 4) if words else None,
            "byte_tokens": of_bytes,
            "byte_token_share": round(of_bytes / total, 6) if total else None,
            "unused_pieces": int(self.is_learned.sum()) - len(used),
            "longest_pieces": self._listed(by_length, counts),
            "frequent_pieces": self._listed(by_count, counts),
        }

    def _listed(self, numbers: np.ndarray, counts: np.ndarray) -> dict[str, int]:
        return {str(self.pieces[number]): int(counts[number]) for number in numbers[:_LISTED].tolist()}
