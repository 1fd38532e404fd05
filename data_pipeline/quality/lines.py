"""Many texts as one array of code points, and the places of their lines in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

# Classes of characters.
SPACE, ALPHANUMERIC, BULLET, ELLIPSIS, TERMINAL, IN_WORD = 1, 2, 4, 8, 16, 32

_TERMINAL_MARKS = ".!?։؟۔।॥၊။።፧፨។៕᙮᠃᠉‼‽⁇⁈⁉⸮。！．？｡"
_NEWLINE = 10


@cache
def character_classes() -> np.ndarray:
    """The classes of every code point, (0x110000,) uint8."""
    every = map(chr, range(0x110000))
    classes = np.array([SPACE * one.isspace() + ALPHANUMERIC * one.isalnum() for one in every], np.uint8)
    classes[[ord("•"), ord("-")]] |= BULLET
    classes[ord("…")] |= ELLIPSIS
    classes[[ord(mark) for mark in _TERMINAL_MARKS]] |= TERMINAL
    classes[classes & ALPHANUMERIC > 0] |= IN_WORD  # as `\w` in a regular expression
    classes[ord("_")] |= IN_WORD
    return classes


def code_points(texts: Iterable[str]) -> np.ndarray:
    """All texts in one array, each followed by a newline, (characters + texts,) uint32."""
    return np.frombuffer("".join(f"{text}\n" for text in texts).encode("utf-32-le"), np.uint32)


class Lines:
    """The lines of a batch of texts, text after text; a text has one more than it has newlines."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.count = len(texts)
        self.codes = code_points(texts)
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


def ratio(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, 0 where there is no whole."""
    return np.asarray(part, np.float64) / np.maximum(np.asarray(whole, np.float64), 1e-9)
