"""The n-grams of evaluation texts as sorted arrays, and which of them stand in other texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.dedup.minhash import shingles

# The distinct n-grams, sorted; an n-gram is known by its place among them. Where each stands, sorted by n-gram.
NGRAM = np.dtype([("words", "<u2"), ("hash", "<u8")])
PLACE = np.dtype([("ngram", "<u4"), ("text", "<u4"), ("position", "<u4")])
MATCH = np.dtype([("document", "<i8"), ("ngram", "<u4")])

_TABLE_BITS = 24  # 16 MB; a hash whose upper bits no n-gram has is passed over without a search


class EvaluationIndex:
    """What the evaluation stage wrote; about 26 bytes an n-gram, and 16 MB a length."""

    def __init__(self, directory: Path) -> None:
        self.texts = directory / "evaluation.texts.jsonl"
        self.ngrams = np.load(directory / "evaluation.ngrams.npy")
        self.places = np.load(directory / "evaluation.places.npy")
        self._of_length = []
        for words in np.unique(self.ngrams["words"]).tolist():
            first = int(np.searchsorted(self.ngrams["words"], words))
            hashes = np.ascontiguousarray(self.ngrams["hash"][self.ngrams["words"] == words])
            occupied = np.zeros(1 << _TABLE_BITS, bool)
            occupied[_upper_bits(hashes)] = True
            self._of_length.append((words, first, hashes, occupied))

    def matches(self, texts: Sequence[str], first: int) -> np.ndarray:
        """Which texts hold which n-grams, each pair once, (matches,) of MATCH; texts count from `first`."""
        found = [np.empty(0, MATCH)]
        for words, offset, hashes, occupied in self._of_length:
            sets = shingles(texts, words)
            together = np.concatenate(sets)
            ends = np.cumsum([len(items) for items in sets])
            candidates = np.flatnonzero(occupied[_upper_bits(together)])
            places = np.minimum(np.searchsorted(hashes, together[candidates]), len(hashes) - 1)
            holds = hashes[places] == together[candidates]
            rows = np.empty(int(holds.sum()), MATCH)
            rows["document"] = first + np.searchsorted(ends, candidates[holds], side="right")
            rows["ngram"] = offset + places[holds]
            found.append(np.unique(rows))
        return np.concatenate(found)


def _upper_bits(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
