"""Translation word by word: the floor that a model which translates has to be above.

A word becomes the word of the other language that goes with it most: the one with the largest Dice coefficient over the
sentence pairs (Melamed 2000, "Models of translational equivalence among words", compares it with better ones).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

_WORD = re.compile(r"\w+")
_OPENING = re.compile("[¿¡]")


class Dictionary:
    """One translation for every word of the sources."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Learn from sentence pairs."""
        source_table, source_words = _occurrences(sources)
        target_table, target_words = _occurrences(targets)
        together = (source_table.T @ target_table).tocoo()
        source_counts, target_counts = (np.asarray(table.sum(0)).ravel() for table in (source_table, target_table))
        dice = 2 * together.data / (source_counts[together.row] + target_counts[together.col])
        order = np.lexsort((together.col, -dice, together.row))  # of equal ones the first in the alphabet
        rows, first = np.unique(together.row[order], return_index=True)
        best = together.col[order][first]
        self.words = {source_words[row]: target_words[column] for row, column in zip(rows, best, strict=True)}

    def translate(self, text: str) -> str:
        """`text` with every known word in the place of its translation; punctuation and unknown words stay."""
        return _WORD.sub(lambda match: self._word(match[0]), _OPENING.sub("", text))

    def _word(self, word: str) -> str:
        found = self.words.get(word.lower())
        if found is None:
            return word
        return found[:1].upper() + found[1:] if word[:1].isupper() else found


def _occurrences(texts: Sequence[str]) -> tuple[csr_matrix, list[str]]:
    """(texts, words) of 0 and 1, and the words in their order; upper case does not count."""
    found = [sorted(set(_WORD.findall(text.lower()))) for text in texts]
    words = sorted({word for of_text in found for word in of_text})
    numbers = {word: number for number, word in enumerate(words)}
    columns = [numbers[word] for of_text in found for word in of_text]
    starts = np.cumsum([0, *map(len, found)])
    return csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(len(texts), len(words))), words
