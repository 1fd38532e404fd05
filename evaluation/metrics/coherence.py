"""Local coherence of texts as a measurement of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import evaluate

from evaluation.coherence import SentenceEncoder, measure_coherence
from evaluation.metrics.interface import describe_measurement


class Coherence(evaluate.Measurement):
    """Mean cosine of adjacent sentences, of the same in any order, of unrelated ones; and the share of repeats."""

    def _info(self) -> evaluate.MeasurementInfo:
        return describe_measurement(
            "How near in meaning adjacent sentences are; never to be read without `repetition`.",
            "Reimers and Gurevych 2019",
            'Options: unit ("sentences" or "lines").',
        )

    def _compute(self, predictions: list[str], unit: str = "sentences", **_: Any) -> dict[str, Any]:
        return asdict(measure_coherence(predictions, SentenceEncoder(), unit))  # type: ignore[arg-type]
