"""Shares of right answers: how sure they are, and whether two models differ on the same questions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class Proportion:
    """`right` of `of` answers, with the 95 % interval of Wilson (1927)."""

    right: int
    of: int
    share: float
    low: float
    high: float

    @staticmethod
    def count(right: int, of: int) -> Proportion:
        """Unlike the usual interval, that of Wilson is never empty and stays between 0 and 1 for few answers too."""
        assert 0 <= right <= of and of > 0
        share, square = right / of, _Z**2 / of
        middle = (share + square / 2) / (1 + square)
        half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
        low, high = max(0.0, middle - half), min(1.0, middle + half)
        return Proportion(right, of, share, 0.0 if right == 0 else low, 1.0 if right == of else high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test (1947), from how many questions only one of two models answers rightly.

    If the two were equally good, each such question would be either's with probability 1/2.
    """
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)
