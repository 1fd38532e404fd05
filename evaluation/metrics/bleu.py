"""BLEU and chrF++ as a metric of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import evaluate

from evaluation.bleu import BleuOptions, corpus_bleu, corpus_chrf
from evaluation.metrics.interface import as_lists, describe


class Bleu(evaluate.Metric):
    """Corpus BLEU with its signature, from 0 to 100, and chrF++."""

    def _info(self) -> evaluate.MetricInfo:
        return describe(
            "BLEU of a corpus, equal to sacrebleu's, and chrF++.",
            "Papineni et al. 2002; Post 2018; Popović 2017",
            "Options: those of BleuOptions, resamples (of the bootstrap interval, 0 for none), seed.",
            references=True,
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        tokenizer: str = "13a",
        lowercase: bool = False,
        smoothing: str = "exp",
        smoothing_value: float | None = None,
        effective_order: bool = False,
        resamples: int = 0,
        seed: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        options = BleuOptions(tokenizer, lowercase, smoothing, smoothing_value, effective_order)  # type: ignore[arg-type]
        own = as_lists(references)
        found = asdict(corpus_bleu(predictions, own, options, resamples, seed))
        chrf, chrf_signature = corpus_chrf(predictions, own)
        return {"bleu": found.pop("score"), **found, "chrf++": chrf, "chrf++_signature": chrf_signature}
