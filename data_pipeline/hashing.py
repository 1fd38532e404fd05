"""Hashes of whole arrays: of numbers, and of any stretches of text."""

from __future__ import annotations

from functools import cache

import numpy as np

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


def mix64(values: np.ndarray) -> np.ndarray:
    """The 64-bit finalizer of MurmurHash3, a bijection of the 64-bit integers."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def mix32(values: np.ndarray) -> np.ndarray:
    """The 32-bit finalizer of MurmurHash3, a bijection of the 32-bit integers."""
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values


class StretchHashes:
    """Hashes of any stretches of an array of code points, equal for equal stretches.

    A stretch is a polynomial in an odd number modulo 2^64: a difference of running sums, scaled back to its beginning.
    """

    def __init__(self, codes: np.ndarray) -> None:
        self._sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(_powers(_FACTOR, len(codes)) * codes, out=self._sums[1:])

    def of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(stretches,) uint64."""
        backwards = _powers(pow(_FACTOR, -1, 2**64), len(self._sums))[starts]
        return mix64((self._sums[ends] - self._sums[starts]) * backwards)


def _powers(base: int, count: int) -> np.ndarray:
    return _table_of_powers(base, max(count, 1).bit_length())[:count]


@cache
def _table_of_powers(base: int, bits: int) -> np.ndarray:
    table = np.full(1 << bits, base, np.uint64)
    table[0] = 1
    np.cumprod(table, out=table)
    table.setflags(write=False)
    return table


def repeats(keys: np.ndarray) -> np.ndarray:
    """Which keys occurred before, (keys,) bool."""
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again
