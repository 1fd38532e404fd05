"""Overlap with training text as a metric of `evaluate`."""

from __future__ import annotations

from typing import Any

import evaluate
import numpy as np

from evaluation.diversity import split_words
from evaluation.memorisation import VERBATIM, longest_overlaps
from evaluation.metrics.interface import as_lists, describe


class Memorisation(evaluate.Metric):
    """The longest run of words that a prediction has in common with the training texts given as its references."""

    def _info(self) -> evaluate.MetricInfo:
        return describe(
            "Longest runs of words in common with training texts.",
            "Lee et al. 2022",
            "References: the training texts to look in.",
            references=True,
        )

    def _compute(self, predictions: list[str], references: list[Any], **_: Any) -> dict[str, Any]:
        longest = [_longest(text, own) for text, own in zip(predictions, as_lists(references), strict=True)]
        return {
            "longest_mean": float(np.mean(longest)),
            "longest_max": max(longest),
            "verbatim": float(np.mean(np.array(longest) >= VERBATIM)),
        }


def _longest(text: str, references: list[str | None]) -> int:
    numbers: dict[str, int] = {}
    ids = [
        np.array([numbers.setdefault(word, len(numbers)) for word in split_words(one)], np.int64)
        for one in (text, *(reference for reference in references if reference is not None))
    ]
    return int(longest_overlaps(ids[:1], ids[1:])[0]) if len(ids[0]) else 0
