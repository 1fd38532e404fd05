"""Perplexity of a split: every token predicted exactly once, summed over tokens and never over batches.

Three context policies, all over the stream of all documents, each followed by the end-of-text id:

- packed: disjoint windows of the model's context cut from the whole stream, as in training. The input of a window is
  the token before it and all its tokens but the last, so a prediction sees between 1 and `context` tokens, perhaps of
  the document before.
- document: the same, but windows begin anew at every document, whose first input is the end-of-text id.
- sliding: as packed, but each window moves on by `stride` tokens only and the last `stride` of it are scored, so a
  prediction sees at least `context - stride` tokens where there are as many. With the stride 1 it is exact, and slow.

The end-of-text ids are predicted too: they count as tokens and in the loss, and add no bytes and no words. Several
processes share the batches; each token's loss is the same as with one, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.errors import UserError
from model import Decoder
from model.device import Precision
from model.functions import IGNORE

CONTEXT_POLICIES = {
    "packed": "disjoint windows of {context} tokens over the whole stream of documents; the first input is end-of-text",
    "document": "disjoint windows of {context} tokens that begin anew, after end-of-text, at every document",
    "sliding": "as packed, in windows of {context} tokens of which the last {stride} are scored, the others context",
}


@dataclass(frozen=True)
class Score:
    """What a model makes of some text."""

    loss: float
    """Mean negative log-likelihood of a token, in nats."""
    perplexity: float
    """exp(loss), of a loss beyond 700 that of 700, which a float still holds."""
    bits_per_byte: float
    """Negative log-likelihood in bits for each byte of the raw UTF-8 text; comparable across tokenizers."""
    tokens: int
    """Predicted tokens, end-of-text ids included."""
    bytes: int
    """Bytes of the raw text; end-of-text ids have none."""
    words: int
    """Words of the raw text, between white space."""
    word_perplexity: float | None
    """exp(negative log-likelihood of a word), comparable across tokenizers too; None without words, or beyond 1e300."""

    @staticmethod
    def of(nll: float, tokens: int, text_bytes: int, words: int = 0) -> Score:
        """From a summed negative log-likelihood in nats."""
        loss = nll / tokens
        bits = nll / (text_bytes * math.log(2)) if text_bytes else math.inf
        word_loss = nll / words if words else math.inf
        word_perplexity = math.exp(word_loss) if word_loss < 690 else None
        return Score(loss, math.exp(min(loss, 700.0)), bits, tokens, text_bytes, words, word_perplexity)


@dataclass(frozen=True)
class SplitScores:
    """The score of a whole split and of each source in it."""

    total: Score
    per_source: dict[str, Score]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.total), "per_source": {name: asdict(score) for name, score in self.per_source.items()}}


def packed_windows(tokens: int, context: int) -> np.ndarray:
    """(windows, 2) int64: start and length of disjoint windows over a stream; the last may be short."""
    starts = np.arange(0, tokens, context)
    return np.stack([starts, np.minimum(context, tokens - starts)], axis=1)


def document_windows(documents: np.ndarray, context: int) -> np.ndarray:
    """(windows, 2) int64: start and length of disjoint windows that never reach from one document into the next."""
    lengths = documents["tokens"].astype(np.int64)
    counts = -(-lengths // context)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # number of the document's first window
    offsets = (np.arange(counts.sum()) - first) * context
    starts = np.repeat(documents["start"].astype(np.int64), counts) + offsets
    return np.stack([starts, np.minimum(context, np.repeat(lengths, counts) - offsets)], axis=1)


@torch.no_grad()
def token_nll(
    model: Decoder,
    tokens: np.ndarray,  # (tokens,) int64, a whole split
    windows: np.ndarray,  # (windows, 2) start and length; together they cover the split once
    eos_id: int,
    device: torch.device,
    precision: Precision,
    batch_tokens: int,
    on_scored: Callable[[int], None] | None = None,
    history: int = 0,
) -> np.ndarray:  # (tokens,) float32
    """Negative log-likelihood in nats of every token. What a token is predicted from begins with its window.

    A window's first input is the token before it, at the start of the split the end-of-text id. Where processes have
    joined a group, each scores its share of the batches and all get the whole result.

    Args:
        on_scored: called with the number of tokens of every batch of this process.
        history: tokens before a window, if there are so many, that its tokens are predicted from too.

    Raises:
        UserError: the model gives a token a loss that is not finite.
    """
    assert windows[:, 1].sum() == len(tokens), f"{windows[:, 1].sum()} predictions for {len(tokens)} tokens"
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    previous = np.concatenate([np.array([eos_id], np.int64), tokens[:-1]])
    result = np.zeros(len(tokens), np.float32)
    for number, batch in enumerate(_batches(windows, batch_tokens, history)):
        if number % processes != rank:
            continue
        spans = [(max(0, start - history), start, start + length) for start, length in batch.tolist()]
        inputs = np.full((len(batch), max(stop - first for first, _, stop in spans)), eos_id, np.int64)
        targets = np.full(inputs.shape, IGNORE, np.int64)
        for row, (first, start, stop) in enumerate(spans):
            inputs[row, : stop - first] = previous[first:stop]
            targets[row, start - first : stop - first] = tokens[start:stop]
        with precision.autocast(device):
            losses = model.token_losses(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        values = losses.float().cpu().numpy()
        for row, (first, start, stop) in enumerate(spans):
            result[start:stop] = values[row, start - first : stop - first]
        if on_scored is not None:
            on_scored(int(batch[:, 1].sum()))
    if processes > 1:
        total = torch.from_numpy(result).to(device)
        dist.all_reduce(total)  # of every token one process has the loss and the others have zero
        result = total.cpu().numpy()
    if not np.isfinite(result).all():
        raise UserError(
            f"the model gives {np.count_nonzero(~np.isfinite(result))} of {len(tokens)} validation tokens a loss that "
            "is not finite: its training has diverged; choose an earlier --checkpoint STEP, or try --precision fp32"
        )
    return result


def count_words(tokens: np.ndarray, documents: np.ndarray, decode: Callable[[list[int]], str]) -> np.ndarray:
    """Words, between white space, of the text of every document of a split, (documents,) int64."""
    spans = zip(documents["start"].tolist(), documents["tokens"].tolist(), strict=True)
    return np.array([len(decode(tokens[start : start + count - 1].tolist()).split()) for start, count in spans], int)


def score_split(
    nll: np.ndarray, documents: np.ndarray, sources: Sequence[str], words: np.ndarray | None = None
) -> SplitScores:
    """Sum the negative log-likelihood of every token (tokens,) over the split and over each source.

    Args:
        words: of every document (documents,), for the perplexity of a word.

    Raises:
        UserError: the document index does not cover exactly these tokens.
    """
    starts, lengths = documents["start"].astype(np.int64), documents["tokens"].astype(np.int64)
    if not np.array_equal(np.append(starts, len(nll)), np.append(0, np.cumsum(lengths))):
        raise UserError("the document index of the validation split does not cover its tokens; make the data again")
    document = np.searchsorted(starts, np.arange(len(nll)), side="right") - 1  # of every token
    source = documents["source"][document]
    count = len(sources)
    sums = np.bincount(source, weights=nll.astype(np.float64), minlength=count)
    tokens = np.bincount(source, minlength=count)
    text_bytes = np.bincount(documents["source"], weights=documents["bytes"], minlength=count).astype(np.int64)
    weights = np.zeros(len(documents)) if words is None else words
    text_words = np.bincount(documents["source"], weights=weights, minlength=count).astype(np.int64)
    per_source = {
        name: Score.of(*(column[number].item() for column in (sums, tokens, text_bytes, text_words)))
        for number, name in enumerate(sources)
        if tokens[number]
    }
    return SplitScores(Score.of(float(sums.sum()), len(nll), int(text_bytes.sum()), int(text_words.sum())), per_source)


def _batches(windows: np.ndarray, batch_tokens: int, history: int) -> Iterator[np.ndarray]:
    """Windows of similar length together, longest first, at most `batch_tokens` (but one window at least) at a time."""
    ordered = windows[np.argsort(-windows[:, 1], kind="stable")]
    start = 0
    while start < len(ordered):
        rows = max(1, batch_tokens // (int(ordered[start, 1]) + history))
        yield ordered[start : start + rows]
        start += rows
