"""Words of a list: how many of a text's words, and how many different ones, stand in a list for the text's language.

The lists in `lexicons/` hold slurs, obscenities and the words of pornography for English, Spanish and French, one a
line: only words that are next to never meant otherwise, no names and no terms of medicine, and only whole words count,
so Scunthorpe and Essex are safe. What such a list cannot see: insult and threat in plain words, a slur that is quoted,
reclaimed or discussed, a spelling meant to hide it, and dialect. Lists mark minority dialects far too often (Sap et al.
2019), which is why a text is dropped for the density of such words and never for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from data_pipeline.quality.language import LANGUAGES
from data_pipeline.quality.lines import ratio
from data_pipeline.quality.words import WORD, Words

LEXICONS = {path.stem: path for path in sorted((Path(__file__).parent / "lexicons").glob("*.txt"))}


def lexicon_signals(
    words: Words, languages: np.ndarray, stop_words: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Stop words and toxic words of each text, (texts,) each; NaN where its language has no list.

    Args:
        words: of the texts.
        languages: of the texts, as indices into `LANGUAGES`, (texts,).
        stop_words: the list of each language, by its code.
    """
    missing = np.full(len(languages), np.nan)
    stops, toxic, different = missing, missing.copy(), missing.copy()
    for code, listed in stop_words.items():
        own = languages == LANGUAGES.index(code)
        if own.any():
            stops[own] = different_words(words, [(word,) for word in listed])[own]
    total = words.sums(words.flags & WORD > 0)
    for code in LEXICONS:
        own = languages == LANGUAGES.index(code)
        if own.any():
            owners, _ = occurrences(words, toxic_words(code))
            toxic[own] = ratio(np.bincount(owners, minlength=len(own)), total)[own]
            different[own] = different_words(words, toxic_words(code))[own]
    return {"stop_words": stops, "toxic_words": toxic, "different_toxic_words": different}


def different_words(words: Words, entries: Sequence[Sequence[str]]) -> np.ndarray:
    """How many of the entries each text holds, (texts,)."""
    owners, found = occurrences(words, entries)
    pairs = np.unique(owners * len(entries) + found)
    return np.bincount(pairs // max(1, len(entries)), minlength=len(words.counts))


def occurrences(words: Words, entries: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """The text and the entry of every word that is one of an entry's spellings, (occurrences,) int64 each."""
    entry_of = np.full(int(words.ids.max(initial=0)) + 1, -1)
    for entry, spellings in enumerate(entries):
        for number in map(words.number, spellings):
            if 0 <= number < len(entry_of):
                entry_of[number] = entry
    found = entry_of[words.ids]
    places = np.flatnonzero(found >= 0)
    return words.owners[places], found[places]


@cache
def toxic_words(language: str) -> tuple[tuple[str, str, str], ...]:
    """The lexicon of a language; every word as it is, capitalised and in capitals."""
    listed = LEXICONS[language].read_text(encoding="utf-8").split()
    return tuple((word, word.capitalize(), word.upper()) for word in listed)
