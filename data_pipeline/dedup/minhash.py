"""Shingles, MinHash signatures and true Jaccard similarity, in numpy arrays without an object a document.

Signatures equal those of datasketch 2.0 (scheme "affine32") for the same shingle hashes, so they can be exchanged.
MinHash: Broder 1997, "On the resemblance and containment of documents".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from data_pipeline.dedup.word_hashes import word_hashes
from data_pipeline.hashing import mix32, mix64

# Shingles worked on at a time: the arrays stay in the processor's cache.
_STEP = 1 << 18
_RUNS_AT_ONCE = 1 << 15
_ORDER = np.uint64(0x9E3779B97F4A7C15)


def shingles(texts: Sequence[str], words: int) -> list[np.ndarray]:
    """For each text the 64-bit hashes of its runs of `words` lower-case words, in its order, (shingles,) uint64.

    Punctuation and layout do not count. A text of fewer words is one shingle, so that it can still be compared; scripts
    that put no spaces between words get long "words", and only close copies are found there.
    """
    hashes, starts = word_hashes(texts)
    runs = run_hashes(hashes, words)
    last = words - 1
    return [
        runs[start : stop - last] if stop - start > last else _short(hashes[start:stop])
        for start, stop in pairwise(starts.tolist())
    ]


def _short(hashes: np.ndarray) -> np.ndarray:
    return run_hashes(hashes, len(hashes)) if len(hashes) else np.zeros(1, np.uint64)


def run_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """One hash for every run of `length` words, (words - length + 1,) uint64; their order matters.

    A polynomial of the words' hashes, whose upper bits depend on all of them (Lemire and Kaser 2014).
    """
    count = max(0, len(hashes) - length + 1)
    result = np.empty(count, np.uint64)
    for start in range(0, count, _RUNS_AT_ONCE):
        stop = min(count, start + _RUNS_AT_ONCE)
        block = result[start:stop]
        block[:] = hashes[start:stop]
        for position in range(1, length):
            block *= _ORDER
            block += hashes[start + position : stop + position]
        block *= _ORDER
    return result


def exact_key(text: str) -> tuple[int, int]:
    """128 bits that are equal for texts whose words are equal, whatever their case, spaces and line breaks."""
    digest = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def permutations(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets of `count` permutations of the 32-bit integers, each (count,) uint32.

    Drawn in the order that datasketch 2.0 draws them.
    """
    generator = np.random.RandomState(seed)
    factors = generator.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, generator.randint(0, 1 << 32, count, dtype=np.uint32)


@cache
def _steps(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and offsets that make each permutation of the values of the one before: one array is enough then."""
    factors, offsets = permutations(count, seed)
    inverses = np.array([pow(factor, -1, 1 << 32) for factor in factors.tolist()], np.uint32)
    factors[1:] *= inverses[:-1]
    offsets[1:] -= factors[1:] * offsets[:-1]
    return factors, offsets


def signatures(hashes: np.ndarray, starts: np.ndarray, count: int, seed: int = 1) -> np.ndarray:
    """MinHash signatures of many sets, (sets, count) uint32.

    Args:
        hashes: 32-bit shingle hashes of all sets one after another, (shingles,) uint32; no set is empty.
        starts: where each set begins in `hashes`, (sets,).
        count: number of permutations.
        seed: of the permutations.
    """
    factors, offsets = _steps(count, seed)
    permuted = mix32(hashes)
    result = np.empty((count, len(starts)), np.uint32)
    for first, last in _blocks(starts, len(hashes)):
        begin = int(starts[first])
        end = int(starts[last]) if last < len(starts) else len(hashes)
        block, local = permuted[begin:end], starts[first:last] - begin
        for number in range(count):
            block *= factors[number]  # wrapping at 2^32 is the modulus of the scheme
            block += offsets[number]
            np.minimum.reduceat(block, local, out=result[number, first:last])
    return np.ascontiguousarray(result.T)


def sketch(sets: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Signatures of sets of 64-bit hashes, (sets, count) uint32; the upper half of each hash is used."""
    sizes = np.array([len(items) for items in sets], np.int64)
    if not len(sizes):
        return np.empty((0, count), np.uint32)
    starts = np.cumsum(sizes) - sizes
    return signatures((np.concatenate(sets) >> np.uint64(32)).astype(np.uint32), starts, count)


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One 64-bit key a band, (sets, bands) uint64: two sets are candidates where a key is equal."""
    parts = signature.reshape(len(signature), bands, rows).astype(np.uint64)
    keys = np.zeros((len(signature), bands), np.uint64)
    for row in range(rows):
        keys = mix64(keys * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, row] + np.uint64(1))
    return keys


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A and B| / |A or B| of two sorted arrays of distinct hashes."""
    shared = overlap(one, other)
    return shared / (len(one) + len(other) - shared)


def overlaps(own: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """|A and B| of one sorted array of distinct hashes with each of several, (others,)."""
    if not others:
        return np.zeros(0, np.int64)
    sizes = np.array([len(other) for other in others])
    together = np.concatenate(others)
    hits = own[np.minimum(np.searchsorted(own, together), len(own) - 1)] == together
    return np.add.reduceat(hits, np.cumsum(sizes) - sizes, dtype=np.int64)


def overlap(one: np.ndarray, other: np.ndarray) -> int:
    """|A and B| of two sorted arrays of distinct hashes."""
    return len(np.intersect1d(one, other, assume_unique=True))


def _blocks(starts: np.ndarray, total: int) -> list[tuple[int, int]]:
    """Ranges of sets that hold about `_STEP` shingles; a larger set is a range of its own."""
    blocks, first = [], 0
    while first < len(starts):
        last = int(np.searchsorted(starts, starts[first] + _STEP, side="right")) - 1
        last = len(starts) if starts[first] + _STEP >= total else max(first + 1, last)
        blocks.append((first, last))
        first = last
    return blocks
