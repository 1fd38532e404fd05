"""The lines of many texts as arrays: places in one array of code points, and a hash of any stretch of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from data_pipeline.minhash import mix64

# Classes of characters.
SPACE, ALPHANUMERIC, BULLET, ELLIPSIS, TERMINAL = 1, 2, 4, 8, 16

_TERMINAL_MARKS = ".!?։؟۔।॥၊။።፧፨។៕᙮᠃᠉‼‽⁇⁈⁉⸮。！．？｡"
_NEWLINE = 10
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


@cache
def character_classes() -> np.ndarray:
    """The classes of every code point, (0x110000,) uint8."""
    every = map(chr, range(0x110000))
    classes = np.array([SPACE * one.isspace() + ALPHANUMERIC * one.isalnum() for one in every], np.uint8)
    classes[[ord("•"), ord("-")]] |= BULLET
    classes[ord("…")] |= ELLIPSIS
    classes[[ord(mark) for mark in _TERMINAL_MARKS]] |= TERMINAL
    return classes


class Lines:
    """The lines of a batch of texts, text after text; a text has one more than it has newlines."""

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "".join(f"{text}\n" for text in texts)
        self.count = len(texts)
        self.codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)  # (characters,)
        self.classes = character_classes()[self.codes]
        self.ends = np.flatnonzero(self.codes == _NEWLINE)
        self.starts = np.concatenate(([0], self.ends + 1))[:-1]
        self.lengths = self.ends - self.starts
        in_text = np.array([text.count("\n") + 1 for text in texts], np.int64)
        self.owners = np.repeat(np.arange(len(texts)), in_text)  # (lines,), the text of each
        self.first_of_text = np.cumsum(in_text) - in_text  # (texts,)
        visible = np.concatenate((np.flatnonzero(self.classes & SPACE == 0), [len(self.codes)]))
        self.blank = visible[np.searchsorted(visible, self.starts)] >= self.ends
        # The first and the last visible character of each line.
        self.first = np.where(self.blank, self.starts, visible[np.searchsorted(visible, self.starts)])
        self.last = np.where(self.blank, self.starts, visible[np.searchsorted(visible, self.ends) - 1])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of the values of each text's lines, (texts,)."""
        return np.bincount(self.owners, weights=values, minlength=self.count)

    def longest_piece(self) -> np.ndarray:
        """Characters of the longest run without a space in each text, (texts,)."""
        if not self.count:
            return np.zeros(0)
        spaces = np.flatnonzero(self.classes & SPACE)
        runs = np.diff(spaces, prepend=-1) - 1
        return np.maximum.reduceat(runs, np.searchsorted(spaces, self.starts[self.first_of_text]))

    def alphanumeric(self) -> np.ndarray:
        """Letters and digits in each line, (lines,)."""
        before = np.concatenate(([0], np.cumsum(self.classes & ALPHANUMERIC > 0)))
        return before[self.ends] - before[self.starts]


class StretchHashes:
    """Hashes of any stretches of an array of code points, equal for equal stretches."""

    def __init__(self, codes: np.ndarray) -> None:
        # Each is the value of a polynomial modulo 2^64, taken from running sums and scaled back to where it begins.
        powers = np.full(len(codes), _FACTOR, np.uint64)
        powers[:1] = 1
        np.cumprod(powers, out=powers)
        powers *= codes
        self._sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(powers, dtype=np.uint64)))

    def of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(stretches,) uint64."""
        scale = np.ones(len(starts), np.uint64)
        exponents, square = starts.astype(np.uint64), np.array([pow(_FACTOR, -1, 2**64)], np.uint64)
        while exponents.any():
            scale *= np.where(exponents & np.uint64(1), square, np.uint64(1))
            exponents >>= np.uint64(1)
            square *= square
        return mix64((self._sums[ends] - self._sums[starts]) * scale)


def repeats(keys: np.ndarray) -> np.ndarray:
    """Which keys occurred before, (keys,) bool."""
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def ratio(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, 0 where there is no whole."""
    return np.asarray(part, np.float64) / np.maximum(np.asarray(whole, np.float64), 1e-9)
