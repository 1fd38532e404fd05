"""How varied generated text is: distinct-n, type-token ratio, MATTR and MTLD, on the words of Spanish and English.

More is not better: text that a person wrote on the same subject, measured at the same length, is what to compare with.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

WORD_BUDGET = 1000
MATTR_WINDOW = 50
MTLD_THRESHOLD = 0.72
MTLD_MINIMUM = 100  # words, below which MTLD says little

# Letters and digits, with apostrophes, hyphens and the Catalan middle dot inside a word but not around it.
_WORD = re.compile(r"[^\W_]+(?:['’\-·][^\W_]+)*")


@dataclass(frozen=True)
class Diversity:
    """Measures of one set of texts. What the texts are too short for is None."""

    words: int
    """Words counted, at most `budget`; only sets with the same number may be compared."""
    budget: int
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    type_token_ratio: float | None
    mattr: float | None
    mtld: float | None


def measure_diversity(texts: Sequence[str], budget: int = WORD_BUDGET) -> Diversity:
    """All measures over the first `budget` words of the texts, taken from each alike (see `within_budget`).

    Every measure but MATTR and MTLD falls with the number of words, whatever the text, so sets are compared at one
    budget that all of them reach. MATTR and MTLD read the texts as a single one, because generations are often shorter
    than they need; MTLD is None below 100 words.
    """
    counted = within_budget([split_words(text) for text in texts], budget)
    pooled = [word for words in counted for word in words]
    return Diversity(
        words=len(pooled),
        budget=budget,
        distinct_1=distinct_n(counted, 1),
        distinct_2=distinct_n(counted, 2),
        distinct_3=distinct_n(counted, 3),
        type_token_ratio=type_token_ratio(pooled),
        mattr=mattr(pooled),
        mtld=mtld(pooled) if len(pooled) >= MTLD_MINIMUM else None,
    )


def split_words(text: str) -> list[str]:
    """The words of a text in lower case and composed (NFC), so that "é" is one letter however it was written.

    A word is a run of letters and digits, also with an apostrophe or hyphen inside: "don't", "teórico-práctico".
    Punctuation is no word. Made for languages that put spaces between words and whose letters need no marks.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def within_budget(texts: Sequence[Sequence[str]], budget: int) -> list[list[str]]:
    """The first words of every text, `budget` in all: as many of each as of the others, as far as it reaches.

    So a long text does not crowd out the others, and what short ones leave over goes to the longer.
    """
    taken: list[list[str]] = [[] for _ in texts]
    left = budget
    shortest_first = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for position, number in enumerate(shortest_first):
        taken[number] = list(texts[number][: left // (len(texts) - position)])
        left -= len(taken[number])
    return taken


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all n-grams, pooled over the texts; no n-gram reaches from one text into the next.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models". None without an n-gram.
    """
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def type_token_ratio(words: Sequence[str]) -> float | None:
    """Different words over all words (Johnson 1944), also called lexical diversity. None without a word."""
    return len(set(words)) / len(words) if words else None


def mattr(words: Sequence[str], window: int = MATTR_WINDOW) -> float | None:
    """Moving-average type-token ratio: the mean over every run of `window` words. None for a text that is shorter.

    Covington and McFall 2010, "Cutting the Gordian Knot: The Moving-Average Type-Token Ratio (MATTR)".
    """
    if len(words) < window:
        return None
    inside = Counter(words[:window])
    types = len(inside)
    for leaving, entering in zip(words, words[window:], strict=False):
        inside[leaving] -= 1
        if not inside[leaving]:
            del inside[leaving]
        inside[entering] += 1
        types += len(inside)
    return types / ((len(words) - window + 1) * window)


def mtld(words: Sequence[str], threshold: float = MTLD_THRESHOLD) -> float | None:
    """Measure of textual lexical diversity: the mean length, in words, of the stretches that keep up their variety.

    A stretch (a factor) ends with the word that brings its type-token ratio down to `threshold`; what remains at the
    end counts as the part of a factor that its ratio has gone. The mean of reading forwards and backwards.
    McCarthy and Jarvis 2010, "MTLD, vocd-D, and HD-D: A validation study of sophisticated approaches to lexical
    diversity assessment". None where no word comes twice, because the measure is then without bound.
    """
    forwards, backwards = _factors(words, threshold), _factors(words[::-1], threshold)
    return (len(words) / forwards + len(words) / backwards) / 2 if forwards and backwards else None


def _factors(words: Sequence[str], threshold: float) -> float:
    """How many factors the words make in this direction."""
    factors, length, types = 0, 0, set[str]()
    for word in words:
        length += 1
        types.add(word)
        if len(types) / length <= threshold:
            factors, length, types = factors + 1, 0, set()
    remaining = (1 - len(types) / length) / (1 - threshold) if length else 0
    return factors + remaining
