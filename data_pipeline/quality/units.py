"""Texts cut at their spaces, and further into words wherever neighbouring characters decide, in arrays.

What stands between spaces is marks, a core, and marks again. In a plain piece every mark is a word, and the core is cut
at single characters that depend on the two beside them. Pieces that may hold more than that (an address, an
abbreviation, a contraction, a number with its unit) stay whole: the rules of `words.py` cut them one by one. For plain
pieces these rules come to the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

import numpy as np

from data_pipeline.hashing import StretchHashes

# Classes of characters. INNER ones may stand inside a plain core and not at its ends, ODD ones nowhere in it, and of
# ADDRESS and DOT only one.
SPACE, MARK, LETTER, DIGIT, INNER, ADDRESS, DOT, ODD = (1 << bit for bit in range(8))

_LONGEST_PIECE = 1000  # characters of a plain one
_LONGEST_UNCUT = 6  # of a word with a slash that is not cut there, as "and/or"
_LONGEST_UNIT = 4  # of what may follow a number, as "km/h"
_LONGEST_CONTRACTION = 3  # with its apostrophe, as "'ll"
_WORD, _PIECE, _END = 1, 2, 3
_SALT = np.uint64(0x9E3779B97F4A7C15)
_APOSTROPHE, _SLASH, _DASH, _DOT = b"'/-."


def _characters(found: bytes) -> np.ndarray:
    """Which characters are among these, (129,) bool; the last stands for all beyond ASCII."""
    return np.isin(np.arange(129), list(found))


_BETWEEN_LETTERS, _AFTER_DIGIT, _AFTER_EITHER = map(_characters, (b",", b"+-*^", b":<>=/~-"))
_BEFORE_DOT, _AFTER_DOT = (_characters(letters.encode() + b"'\"`,") for letters in (ascii_lowercase, ascii_uppercase))
_CUTTING = _BETWEEN_LETTERS | _AFTER_DIGIT | _AFTER_EITHER
_DOUBTFUL = _characters(b"'/-.")


@dataclass(frozen=True)
class Units:
    """Words, and pieces that are still to be cut into words."""

    text: str  # all texts together
    starts: np.ndarray  # (units,), in `text`
    ends: np.ndarray  # (units,)
    is_word: np.ndarray  # (units,) bool
    hashes: np.ndarray  # (units,) uint64, equal for equal units
    borders: np.ndarray  # (texts + 1,), where each text begins among the units, and the end

    def at(self, positions: np.ndarray) -> Iterator[tuple[str, bool]]:
        """Some of the units, and whether each is a word."""
        columns = (column[positions].tolist() for column in (self.starts, self.ends, self.is_word))
        for start, end, is_word in zip(*columns, strict=True):
            yield self.text[start:end], is_word


def cut(texts: Sequence[str], table: np.ndarray) -> Units:
    """Cut all texts; `table` holds the classes of every code point, (0x110000,) uint8."""
    text = "\n".join(("", *texts, "", ""))
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    pieces = _Pieces(codes, table[codes])
    begins = np.zeros(len(codes), np.uint8)
    begins[pieces.ends] = _END
    begins[pieces.words()] = _WORD
    begins[pieces.starts[~pieces.plain]] = _PIECE
    places = np.flatnonzero(begins)
    kinds = begins[places]
    chosen = np.flatnonzero(kinds != _END)
    starts, ends, kinds = places[chosen], places[chosen + 1], kinds[chosen]
    hashes = StretchHashes(codes).of(starts, ends) + (ends - starts).astype(np.uint64) * _SALT + kinds
    borders = np.cumsum([1, *(len(one) + 1 for one in texts)])
    return Units(text, starts, ends, kinds == _WORD, hashes, np.searchsorted(starts, borders))


class _Pieces:
    """The pieces of texts that are one array of code points, which begins and ends with a space."""

    def __init__(self, codes: np.ndarray, classes: np.ndarray) -> None:
        self.codes, self.classes = codes, classes
        kinds = classes & (SPACE | MARK)
        edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1  # of stretches of spaces, of marks and of others
        kinds = kinds[edges]
        after = np.flatnonzero(kinds == SPACE)  # the stretch after each piece
        first = np.concatenate(([0], after + 1))[:-1]
        self.starts, self.ends = edges[first], edges[after]
        # Where all are marks, the core ends before it starts.
        self.core_starts = edges[first + (kinds[first] == MARK)]
        self.core_ends = edges[after - (kinds[after - 1] == MARK)]
        self.sites = np.flatnonzero(classes & (INNER | MARK))
        self.characters = np.minimum(codes[self.sites], 128)
        self.plain = self._plain() if len(after) else np.empty(0, bool)

    def _plain(self) -> np.ndarray:
        """Which pieces are plain, (pieces,) bool."""
        codes, classes, starts, ends = self.codes, self.classes, self.core_starts, self.core_ends
        plain = (starts < ends) & (self.ends - self.starts <= _LONGEST_PIECE)
        plain &= (ends - starts > 1) | (codes[starts] != ord("s"))  # what is left of "'s"
        stretches = np.stack((starts, np.maximum(ends, starts + 1)), axis=1).ravel()
        within = np.bitwise_or.reduceat(classes, stretches)[::2]
        plain &= (within & ODD == 0) & ((classes[starts] | classes[ends - 1]) & INNER == 0)
        plain &= (within & DOT == 0) | ((within & ADDRESS == 0) & (codes[ends] != ord("?")) & (codes[ends] != ord("#")))
        numbers = np.flatnonzero((within & DIGIT > 0) & (classes[ends - 1] & LETTER > 0))
        places = ends[numbers, None] - np.arange(2, _LONGEST_UNIT + 2)
        plain[numbers[(classes[np.maximum(places, 0)] & DIGIT > 0).any(axis=1)]] = False
        plain[self._doubtful()] = False
        return plain

    def _doubtful(self) -> np.ndarray:
        """Pieces whose dots, dashes, apostrophes or slashes may mean more than one character does."""
        chosen = np.flatnonzero(_DOUBTFUL[self.characters])
        sites, characters = self.sites[chosen], self.characters[chosen]
        owners = self._owners(sites)
        starts, ends = self.core_starts[owners], self.core_ends[owners]
        inside = (sites >= starts) & (sites < ends)
        before, after = (np.minimum(self.codes[sites + step], 128) for step in (-1, 1))
        dot = characters == _DOT  # where a sentence or an attribute may begin
        dot &= (after == _DOT) | (_BEFORE_DOT[before] & _AFTER_DOT[after])
        dashes = (characters == _DASH) & (after == _DASH)
        short = (characters == _SLASH) & (ends - starts <= _LONGEST_UNCUT)
        contraction = (characters == _APOSTROPHE) & ((sites == starts + 1) | (sites >= ends - _LONGEST_CONTRACTION))
        return owners[inside & (dot | dashes | short | contraction)]

    def words(self) -> np.ndarray:
        """Where words of plain pieces begin, in no order."""
        starts, ends, core_starts, core_ends = (
            one[self.plain] for one in (self.starts, self.ends, self.core_starts, self.core_ends)
        )
        cuts = self._cuts()
        return np.concatenate((_ranges(starts, core_starts), core_starts, cuts, cuts + 1, _ranges(core_ends, ends)))

    def _cuts(self) -> np.ndarray:
        """The single characters at which plain cores are cut."""
        chosen = np.flatnonzero(_CUTTING[self.characters])
        sites, characters = self.sites[chosen], self.characters[chosen]
        before, after, following = self.classes[sites - 1], self.classes[sites + 1], self.codes[sites + 1]
        cut = _AFTER_EITHER[characters] & (before & (LETTER | DIGIT) > 0) & (after & LETTER > 0)
        cut |= _BETWEEN_LETTERS[characters] & (before & LETTER > 0) & (after & LETTER > 0)
        cut |= _AFTER_DIGIT[characters] & (before & DIGIT > 0) & ((after & DIGIT > 0) | (following == _DASH))
        sites = sites[cut]
        return sites[self.plain[self._owners(sites)]] if len(sites) else sites

    def _owners(self, sites: np.ndarray) -> np.ndarray:
        """The piece of each place in one, (sites,)."""
        return np.searchsorted(self.starts, sites, side="right") - 1


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """All integers of the ranges [first, last), one range after another."""
    lengths = last - first
    return np.repeat(last - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
