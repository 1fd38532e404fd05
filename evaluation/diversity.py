"""How varied generated text is: distinct-n, type-token ratio, MATTR, MTLD, self-BLEU, on words of Spanish and English.

More is not better: text that a person wrote on the same subject, measured at the same length, is what to compare with.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.bleu import ORDERS, BleuOptions, bleu_of, count_ngrams

WORD_BUDGET = 1000
MATTR_WINDOW = 50
MTLD_THRESHOLD = 0.72
MTLD_MINIMUM = 100  # words, below which MTLD says little
SELF_BLEU_TEXTS = 100

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


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Different n-grams over all n-grams, pooled over the texts; no n-gram reaches from one text into the next.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models". None without an n-gram.
    """
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def adjusted_distinct_n(texts: Sequence[Sequence[Hashable]], n: int, possible: int) -> float | None:
    """Different n-grams over how many would be expected of as many draws from `possible` equally likely ones.

    Unlike distinct-n it does not fall with length alone, as long as the n-grams are far fewer than the possible ones.
    Liu et al. 2022, "Rethinking and Refining the Distinct Metric". None without an n-gram.

    Args:
        possible: the vocabulary for single tokens, its n-th power for n.
    """
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    if not ngrams:
        return None
    # possible * (1 - ((possible - 1) / possible) ** len(ngrams)), exact for a large `possible` too.
    never = len(ngrams) * math.log1p(-1 / possible) if possible > 1 else -math.inf
    return len(set(ngrams)) / (possible * -math.expm1(never))


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


@dataclass(frozen=True)
class SelfBleu:
    """How alike the texts of a set are."""

    score: float
    """Mean BLEU, from 0 to 100, of each text with all others as its references; lower is more varied."""
    texts: int
    """Texts compared; the score rises with their number, so only equally many may be compared."""


def self_bleu(texts: Sequence[Sequence[str]], limit: int = SELF_BLEU_TEXTS, seed: int = 0) -> SelfBleu | None:
    """Self-BLEU (Zhu et al. 2018, "Texygen") of texts given as words; None for fewer than two that have any.

    Of more than `limit` texts, as many are drawn. Short texts are scored with the n-grams that they reach.
    """
    chosen = [list(words) for words in texts if words]
    if len(chosen) > limit:
        chosen = random.Random(seed).sample(chosen, limit)
    if len(chosen) < 2:
        return None
    statistics = np.zeros((len(chosen), 2 + 2 * ORDERS), np.int64)  # as evaluation/bleu.py has them
    lengths = [len(words) for words in chosen]
    for number, length in enumerate(lengths):
        others = lengths[:number] + lengths[number + 1 :]
        statistics[number, :2] = length, min((abs(length - other), other) for other in others)[1]
    for n in range(1, ORDERS + 1):
        for number, (matched, counted) in enumerate(_matches_with_others([count_ngrams(words, n) for words in chosen])):
            statistics[number, [1 + n, 1 + ORDERS + n]] = matched, counted
    scores = bleu_of(statistics, BleuOptions(effective_order=True))
    return SelfBleu(float(scores.mean()), len(chosen))


def _matches_with_others(counts: Sequence[Counter[tuple[str, ...]]]) -> list[tuple[int, int]]:
    """Of every text, how many of its n-grams the one other text has that has them most, and how many there are.

    The text that has an n-gram most, and the second most often, are all that must be known, so the effort grows with
    the texts and not with their square.
    """
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # count, its text, and the largest count elsewhere
    for number, ngrams in enumerate(counts):
        for ngram, count in ngrams.items():
            first, holder, second = most.get(ngram, (0, -1, 0))
            most[ngram] = (count, number, first) if count > first else (first, holder, max(second, count))
    found = []
    for number, ngrams in enumerate(counts):
        matched = 0
        for ngram, count in ngrams.items():
            first, holder, second = most[ngram]
            matched += min(count, second if holder == number else first)
        found.append((matched, ngrams.total()))
    return found
