"""ROUGE as a metric of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import evaluate

from evaluation.metrics.interface import as_lists, describe
from evaluation.rouge import RougeOptions, corpus_rouge


class Rouge(evaluate.Metric):
    """The plain mean F of ROUGE-1, -2, -L and -Lsum; unlike that of `evaluate` itself, the same at every call."""

    def _info(self) -> evaluate.MetricInfo:
        return describe(
            "Mean F of ROUGE-1, -2, -L and -Lsum, equal to rouge-score's.",
            "Lin 2004",
            "Options: those of RougeOptions, resamples (of the bootstrap intervals, 0 for none), seed.",
            references=True,
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        rouge_tokenizer: str = "ascii",
        stemmer: bool = False,
        sentences: str = "split",
        resamples: int = 0,
        seed: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        options = RougeOptions(rouge_tokenizer, stemmer, sentences)  # type: ignore[arg-type]
        found = corpus_rouge(predictions, as_lists(references), options, resamples, seed)
        intervals = {f"{kind}_interval": asdict(mean.interval) for kind, mean in found.items() if mean.interval}
        return {**{kind: mean.f for kind, mean in found.items()}, **intervals, "rouge_signature": options.signature}
