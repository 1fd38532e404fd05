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

import numpy as np

from common.files import atomic_write
from data_pipeline.dedup.minhash import overlaps


@dataclass(frozen=True)
class ShingleIndex:
    """Sets of shingle hashes, and for every shingle the sets that hold it."""

    elements: np.ndarray  # (shingles,) uint64, of all sets one after another, sorted in each
    ends: np.ndarray  # (sets + 1,) int64, where each set ends in `elements`; the first entry is 0
    shingles: np.ndarray  # (shingles,) uint64, of all sets in ascending order
    owners: np.ndarray  # (shingles,) uint32, the set of each
    rare_shingles: np.ndarray  # the rarest of each set, in the same way
    rare_owners: np.ndarray

    @classmethod
    def build(cls, sets: Sequence[np.ndarray], threshold: float) -> ShingleIndex:
        """`sets` are sorted distinct shingle hashes, (shingles,) uint64 each; about 70 bytes a shingle are in use."""
        sizes = np.array(list(map(len, sets)), np.int64)
        ends = np.cumsum([0, *sizes])
        elements = np.concatenate([np.empty(0, np.uint64), *sets])
        owners = np.repeat(np.arange(len(sets), dtype=np.uint32), sizes)
        order = np.argsort(elements, kind="stable")
        shingles = elements[order]
        counts = np.empty(len(elements), np.uint32)
        counts[order] = _run_lengths(shingles)
        by_rarity = np.lexsort((counts, owners))
        place = np.arange(len(elements)) - ends[owners]  # of each in its set, the rarest first
        rare = np.zeros(len(elements), bool)
        rare[by_rarity] = place < _enough(sizes, threshold)[owners]
        kept = rare[order]
        return cls(elements, ends, shingles, owners[order], shingles[kept], owners[order][kept])

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
        first, last = _range_of(own, self.shingles)
        rarest = np.argsort(last - first, kind="stable")[: _enough(np.array(len(own)), threshold)]
        proposed = [*_stretches(self.owners, first[rarest], last[rarest])]
        proposed += _stretches(self.rare_owners, *_range_of(own, self.rare_shingles))
        if not proposed:
            return np.empty(0, np.int64)
        candidates = np.unique(np.concatenate(proposed)).astype(np.int64)
        sets = [self.elements[self.ends[one] : self.ends[one + 1]] for one in candidates.tolist()]
        smaller = np.minimum([len(other) for other in sets], len(own))
        return candidates[overlaps(own, sets) >= threshold * smaller]


def _file(stem: Path, name: str) -> Path:
    return stem.with_name(f"{stem.name}.{name}.npy")


def _enough(sizes: np.ndarray, threshold: float) -> np.ndarray:
    """How many elements of sets of these sizes meet every set that shares `threshold` of them."""
    return np.clip(sizes - np.maximum(1, np.ceil(threshold * sizes).astype(np.int64)) + 1, 0, sizes)


def _run_lengths(ordered: np.ndarray) -> np.ndarray:
    """How often each value of a sorted array occurs in it, in its place."""
    first, last = _range_of(ordered, ordered)
    return last - first


def _range_of(values: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the run of each value begins and ends in a sorted array."""
    return np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")


def _stretches(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """The stretches [first, last) of an array that are not empty."""
    hits = np.flatnonzero(last > first)
    return [values[begin:end] for begin, end in zip(first[hits].tolist(), last[hits].tolist(), strict=True)]
