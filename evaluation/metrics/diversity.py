"""Diversity and repetition of texts as a measurement of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import evaluate

from evaluation.diversity import WORD_BUDGET, measure_diversity, self_bleu, split_words
from evaluation.metrics.interface import describe_measurement
from evaluation.repetition import measure_loops


class Diversity(evaluate.Measurement):
    """Distinct-n, MATTR, MTLD, self-BLEU, rep-n, rep-w, loops and compression of one set of texts, over its words."""

    def _info(self) -> evaluate.MeasurementInfo:
        return describe_measurement(
            "How varied texts are, and how much each repeats itself.",
            "Li et al. 2016; Covington and McFall 2010; McCarthy and Jarvis 2010; Zhu et al. 2018; Welleck et al. 2020",
            "Options: budget (words counted; compare sets at one that all reach), seed.",
        )

    def _compute(self, predictions: list[str], budget: int = WORD_BUDGET, seed: int = 0, **_: Any) -> dict[str, Any]:
        words = [split_words(text) for text in predictions]
        alike = self_bleu(words, seed=seed)
        return {
            **asdict(measure_diversity(predictions, budget)),
            "self_bleu": alike.score if alike else None,
            "repetition": asdict(measure_loops(words, predictions)),
        }
