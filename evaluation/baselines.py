"""What counting can do: n-gram models of the training tokens, scored on the same validation tokens as the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline.shards import TokenStream
from evaluation.kneser_ney import ngram_nll

SPREAD = 100  # pieces that a part of the training tokens is taken in
NGRAM_NAMES = {2: "bigram", 3: "trigram", 4: "4-gram", 5: "5-gram"}


def best_ngram(baselines: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The counted model with the lowest loss among the `baselines` of a summary, the unigram aside."""
    found = [name for name in NGRAM_NAMES.values() if name in baselines]
    return min(found, key=lambda name: float(baselines[name]["loss"]), default=None)


def training_sample(stream: TokenStream, limit: int) -> np.ndarray:  # (tokens,) int32
    """The whole stream, or `limit` tokens of it in pieces at equal distances, so that every source has its share."""
    wanted = min(len(stream), limit)
    pieces = min(SPREAD, wanted)
    if wanted == len(stream):
        edges = np.linspace(0, wanted, pieces + 1).astype(np.int64)
        starts, lengths = edges[:-1], np.diff(edges)
    else:
        starts = np.linspace(0, len(stream) - limit // pieces, pieces).astype(np.int64)
        lengths = np.full(pieces, limit // pieces)
    # A piece at a time, because they are read as int64.
    parts = [
        stream.read(start, count).astype(np.int32)
        for start, count in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def unigram_nll(train: np.ndarray, stream: np.ndarray, vocab_size: int) -> np.ndarray:  # (scored,) float32
    """Nats of every token of `stream` by relative frequency in `train`, one added so that no token is impossible."""
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    return (-np.log(counts / counts.sum())[stream]).astype(np.float32)


def counted_nll(
    train: np.ndarray, stream: np.ndarray, vocab_size: int, eos_id: int, highest: int
) -> dict[str, np.ndarray]:
    """The unigram and the Kneser-Ney models up to order `highest` by name, each (scored,) float32 nats.

    Raises:
        UserError: there are no training tokens.
    """
    ngrams = ngram_nll(train, stream, vocab_size, eos_id, highest)
    names = {NGRAM_NAMES[order]: nll for order, nll in ngrams.items()}
    return {"unigram": unigram_nll(train, stream, vocab_size), **names}
