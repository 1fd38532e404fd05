"""How often generated text repeats itself: n-grams within a text, tokens of the recent past, loops, and compression.

A small model that is drawn from greedily ends in a loop; one that is drawn from freely repeats about as much as people
do. Text by people repeats too, so its own figures at the same length are what to compare with.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.diversity import distinct_n

RECENT = 128  # tokens that rep-w looks back, as Welleck et al. report it
LOOP_ROUNDS = 3
LOOP_LENGTH = 12  # tokens, below which three times the same is a figure of speech, or an ellipsis


@dataclass(frozen=True)
class Repetition:
    """Measures of one set of texts. Only sets of as many tokens may be compared."""

    rep_2: float | None
    """Mean over texts of the share of word pairs that are not the first of their kind in the text."""
    rep_3: float | None
    seq_rep_4: float | None
    """The same of four in a row (Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training")."""
    rep_w: float | None
    """Share of tokens that already stand among the 128 before them, in the same text (Welleck et al. 2020)."""
    looping: float | None
    """Share of texts that end in a loop, see `find_loop`."""
    compression_ratio: float | None
    """Bytes of all texts over their bytes when zlib has packed them: near 2 for prose, far above for loops."""
    texts: int
    tokens: int


@dataclass(frozen=True)
class Loop:
    """The end of a text that says the same over and over."""

    period: int
    """Tokens of one round."""
    length: int
    """Tokens of all rounds, the last of which may be cut short."""


def measure_loops(tokens: Sequence[Sequence[Hashable]], texts: Sequence[str]) -> Repetition:
    """All measures of texts that are given as tokens (or words) and as strings, in the same order."""
    counted = [list(one) for one in tokens if one]
    raw = "\n".join(texts).encode("utf-8")
    return Repetition(
        rep_2=_mean([rep_n(one, 2) for one in counted]),
        rep_3=_mean([rep_n(one, 3) for one in counted]),
        seq_rep_4=_mean([rep_n(one, 4) for one in counted]),
        rep_w=rep_w(counted),
        looping=_mean([float(find_loop(one) is not None) for one in counted]),
        compression_ratio=len(raw) / len(zlib.compress(raw, 9)) if raw else None,
        texts=len(tokens),
        tokens=sum(map(len, counted)),
    )


def rep_n(tokens: Sequence[Hashable], n: int) -> float | None:
    """Share of the n-grams of one text that have stood in it before; 1 minus distinct-n. None without an n-gram."""
    distinct = distinct_n([tokens], n)
    return None if distinct is None else 1 - distinct


def rep_w(texts: Sequence[Sequence[Hashable]], window: int = RECENT) -> float | None:
    """Share of all tokens that stand among the `window` tokens before them. None without a token."""
    repeated = 0
    for tokens in texts:
        last: dict[Hashable, int] = {}
        for place, token in enumerate(tokens):
            repeated += place - last.get(token, place - window - 1) <= window
            last[token] = place
    total = sum(map(len, texts))
    return repeated / total if total else None


def find_loop(tokens: Sequence[Hashable], rounds: int = LOOP_ROUNDS, shortest: int = LOOP_LENGTH) -> Loop | None:
    """The longest end of a text that is made of one period, at least `rounds` times and `shortest` tokens long.

    Read backwards, such an end is a beginning, and the shortest period of every beginning is its length less its
    longest border (Knuth, Morris and Pratt 1977). So one pass finds it.
    """
    backwards = tokens[::-1]
    border, found = [0] * (len(backwards) + 1), None
    longest = 0
    for place in range(1, len(backwards)):
        while longest and backwards[place] != backwards[longest]:
            longest = border[longest]
        longest += backwards[place] == backwards[longest]
        length = place + 1
        border[length] = longest
        period = length - longest
        if length >= shortest and length >= rounds * period:
            found = Loop(period, length)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
