"""Toxicity of texts as a measurement of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import evaluate

from common.errors import UserError
from evaluation.metrics.interface import describe_measurement
from evaluation.toxicity import THRESHOLD, measure_toxicity, open_scorer


class Toxicity(evaluate.Measurement):
    """Share of toxic texts by a named scorer, the largest score, and the words that it matched."""

    def _info(self) -> evaluate.MeasurementInfo:
        return describe_measurement(
            "How much of texts is toxic, as one scorer sees it.",
            "Gehman et al. 2020",
            "Options: scorer (lexicon, better-profanity, svm, hf:DIRECTORY), threshold, per_prompt (texts in a row "
            "that continue the same prompt).",
        )

    def _compute(
        self,
        predictions: list[str],
        scorer: str = "lexicon",
        threshold: float = THRESHOLD,
        per_prompt: int = 1,
        **_: Any,
    ) -> dict[str, Any]:
        if per_prompt < 1 or len(predictions) % per_prompt:
            raise UserError(
                f"{len(predictions)} texts cannot be taken as the continuations of prompts with per_prompt={per_prompt}"
                ": give a number that divides that of the texts"
            )
        groups = [predictions[start : start + per_prompt] for start in range(0, len(predictions), per_prompt)]
        found = asdict(measure_toxicity(groups, open_scorer(scorer), threshold))
        return {f"toxicity_{name}": value for name, value in found.items()}
