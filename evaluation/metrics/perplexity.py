"""Perplexity of texts under a run as a measurement of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import evaluate
import numpy as np

from common.runs import find_run
from data_pipeline.shards import INDEX_DTYPE
from evaluation.metrics.interface import describe_measurement
from evaluation.perplexity import Score, document_windows, token_nll
from inference import load_run
from model.device import choose_precision


class Perplexity(evaluate.Measurement):
    """Perplexity of all texts together: every token counts alike, and not every text, however short."""

    def _info(self) -> evaluate.MeasurementInfo:
        return describe_measurement(
            "Perplexity of a corpus, per token and per word, and bits per byte, under a run of this project.",
            "Jelinek et al. 1977",
            'Options: run (name or path), checkpoint ("best", "last" or a step), device, batch_tokens.',
        )

    def _compute(
        self,
        predictions: list[str],
        run: str,
        checkpoint: str = "best",
        device: str = "auto",
        batch_tokens: int = 4096,
        **_: Any,
    ) -> dict[str, Any]:
        loaded = load_run(find_run(run), checkpoint, device)  # type: ignore[arg-type]
        tokenizer = loaded.tokenizer
        begins = [tokenizer.bos_id] if tokenizer.has_bos else []  # as in curated data
        ids = [[*begins, *tokenizer.encode(text), tokenizer.eos_id] for text in predictions]
        lengths = [len(one) for one in ids]
        starts = np.cumsum([0, *lengths[:-1]])
        sizes = [len(text.encode("utf-8")) for text in predictions]
        documents = np.array([(*row, 0) for row in zip(starts.tolist(), lengths, sizes, strict=True)], INDEX_DTYPE)
        nll = token_nll(
            loaded.model,
            np.concatenate(ids).astype(np.int64),
            document_windows(documents, loaded.model.config.context_length),
            tokenizer.eos_id,
            loaded.device,
            choose_precision(loaded.device, "fp32"),
            batch_tokens,
        )
        if begins:
            nll[starts] = 0  # a token that begins every text says nothing of it
        tokens = len(nll) - len(begins) * len(predictions)
        words = sum(len(text.split()) for text in predictions)
        score = Score.of(float(nll.sum(dtype=np.float64)), tokens, sum(sizes), words)
        return {**asdict(score), "tokenizer_sha256": tokenizer.sha256}
