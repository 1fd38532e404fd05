"""An index of the shingles of some documents, which finds those that another document resembles.

Shingles of a licence or a template stand in many documents; counting over all that share one would take time that grows
with the square of the corpus. Two sets that share k of the n elements of the smaller one share at least one of any
n - k + 1 of these (the prefix filter: Chaudhuri et al. 2006, Bayardo et al. 2007). So only the rarest so many of each
document are looked up, and what they propose is counted on the whole sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write
from data_pipeline.dedup.minhash import overlaps


@dataclass(frozen=True)
class ShingleIndex:
    """Sets of shingle hashes, and for every shingle the sets that hold it."""

    elements: np.ndarray  # (elements,) uint64, of all sets one after another, sorted in each
    ends: np.ndarray  # (sets + 1,) int64, where each set ends in `elements`; the first entry is 0
    shingles: np.ndarray  # (shingles,) uint64, all different ones in ascending order
    owners: np.ndarray  # (elements,) uint32, the sets of each shingle: first those where it is among the rarest
    starts: np.ndarray  # (shingles + 1,) int64, where those of each shingle begin in `owners`, and the end
    middles: np.ndarray  # (shingles,) int64, where those begin that hold enough rarer ones

    @classmethod
    def build(cls, sets: Sequence[np.ndarray], threshold: float) -> ShingleIndex:
        """`sets` are sorted distinct shingle hashes, (shingles,) uint64 each; about 80 bytes a shingle are in use."""
        sizes = np.array(list(map(len, sets)), np.int64)
        ends = np.cumsum([0, *sizes])
        elements = np.concatenate([np.empty(0, np.uint64), *sets])
        owners = np.repeat(np.arange(len(sets), dtype=np.uint32), sizes)
        shingles, places, counts = np.unique(elements, return_inverse=True, return_counts=True)
        common = np.zeros(len(elements), bool)
        rank = np.arange(len(elements)) - ends[owners]  # in each set, the rarest first
        common[np.lexsort((counts[places], owners))] = rank >= _enough(sizes, threshold)[owners]
        starts = np.cumsum([0, *counts])
        middles = starts[:-1] + np.bincount(places[~common], minlength=len(shingles))
        return cls(elements, ends, shingles, owners[np.lexsort((common, places))], starts, middles)

    @classmethod
    def load(cls, stem: Path) -> ShingleIndex:
        """The index that was saved under `stem`, mapped: processes of one machine share its memory."""
        return cls(*(np.load(_file(stem, field.name), mmap_mode="r") for field in fields(cls)))

    def save(self, stem: Path) -> None:
        """Write one file an array, with names that begin with `stem`'s."""
        for field in fields(self):
            with atomic_write(_file(stem, field.name), "wb") as file:
                np.save(file, getattr(self, field.name))

    def related(self, own: np.ndarray, threshold: float) -> np.ndarray:
        """Positions of the sets that share at least `threshold` with `own`, in ascending order.

        The share is of the smaller of the two sets, so that it covers both resemblance and containment: it is never
        below the Jaccard similarity.

        Args:
            own: sorted distinct shingle hashes, (shingles,) uint64.
            threshold: the one that the index was built for.
        """
        places = np.searchsorted(self.shingles, own)
        known = self.shingles[np.minimum(places, len(self.shingles) - 1)] == own if len(self.shingles) else places < 0
        places = places[known]
        starts, stops = self.starts[places], self.starts[places + 1]
        proposed = _stretches(self.owners, starts, self.middles[places])
        # Of `own` too the rarest are enough, and the rarest of all are those that no set holds.
        rarest = np.argsort(stops - starts, kind="stable")[: max(0, _enough(len(own), threshold) - int((~known).sum()))]
        proposed += _stretches(self.owners, starts[rarest], stops[rarest])
        if not proposed:
            return np.empty(0, np.int64)
        candidates = np.unique(np.concatenate(proposed)).astype(np.int64)
        sets = [self.elements[self.ends[one] : self.ends[one + 1]] for one in candidates.tolist()]
        smaller = np.minimum([len(other) for other in sets], len(own))
        return candidates[overlaps(own, sets) >= threshold * smaller]


def _file(stem: Path, name: str) -> Path:
    return stem.with_name(f"{stem.name}.{name}.npy")


def _enough(sizes: Any, threshold: float) -> Any:
    """How many elements of sets of these sizes meet every set that shares `threshold` of them."""
    needed = np.maximum(1, np.ceil(np.multiply(threshold, sizes)).astype(np.int64))
    return np.maximum(0, sizes - needed + 1)


def _stretches(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """The stretches [first, last) of an array that are not empty."""
    hits = np.flatnonzero(last > first)
    return [values[begin:end] for begin, end in zip(first[hits].tolist(), last[hits].tolist(), strict=True)]
