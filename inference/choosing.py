"""The next token of every row of a batch whose rows have options of their own: one call for all rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.sampling import (
    SamplingOptions,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_counts,
    penalize_repetition,
    sample_generator,
)


class BatchOptions:
    """What the rows of a batch ask for, as tensors; worth keeping while the same rows go on."""

    def __init__(self, rows: Sequence[SamplingOptions]) -> None:
        self.sampled = torch.tensor([number for number, row in enumerate(rows) if row.temperature > 0])
        drawn = [row for row in rows if row.temperature > 0]
        self.all_sampled = len(drawn) == len(rows)
        self.temperature = _column([row.temperature for row in drawn])
        self.top_k = _Filter(keep_top_k, [row.top_k for row in drawn], None)
        self.top_p = _Filter(keep_top_p, [row.top_p for row in drawn], 1.0)
        self.min_p = _Filter(keep_min_p, [row.min_p for row in drawn], 0.0)
        self.widest = max((row.top_k or 0 for row in drawn), default=0) if self.top_k.of_all else 0


class _Filter:
    """One filter, for those rows where it does something."""

    def __init__(self, apply: Callable[[Tensor, Tensor], Tensor], values: Sequence[float | None], idle: float | None):
        self.apply = apply
        chosen = [number for number, value in enumerate(values) if value != idle]
        self.rows, self.values = torch.tensor(chosen), _column([values[number] for number in chosen])
        self.nowhere, self.of_all = not chosen, len(chosen) == len(values)

    def __call__(self, logits: Tensor) -> Tensor:
        if self.nowhere:
            return logits
        if self.of_all:
            return self.apply(logits, self.values)
        return logits.index_copy(0, self.rows, self.apply(logits[self.rows], self.values))


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def next_ids(
    logits: Tensor,  # (batch, vocab)
    options: BatchOptions,
    uniforms: Tensor,  # (batch,) float64, of which greedy rows use none
) -> Tensor:  # (batch,) int64
    """The next token of every row: temperature, top-k, top-p, min-p, then a draw; or the likeliest token."""
    if not len(options.sampled):
        return logits.argmax(-1)
    if options.all_sampled:
        return _drawn(logits, options, uniforms)
    return logits.argmax(-1).index_copy(
        0, options.sampled, _drawn(logits[options.sampled], options, uniforms[options.sampled])
    )


def _drawn(logits: Tensor, options: BatchOptions, uniforms: Tensor) -> Tensor:
    narrow = _likeliest(logits, options.widest)
    if narrow is None:
        return draw(kept(logits, options), uniforms)
    logits, ids = narrow
    return ids.gather(-1, draw(kept(logits, options), uniforms)[:, None]).squeeze(-1)


def kept(logits: Tensor, options: BatchOptions) -> Tensor:  # (sampled rows, vocab) -> the same, float64
    """Logits at the temperature of each row, -inf for what its filters remove."""
    # In double precision a tiny temperature does not overflow, and the largest logit at 0 keeps softmax exact there.
    logits = logits.double()
    logits = (logits - logits.amax(-1, keepdim=True)) / options.temperature
    return options.min_p(options.top_p(options.top_k(logits)))


def _likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """The `count` largest logits of each row and their ids, by rising id, each (batch, count).

    None where that would save nothing, or where equal logits leave open which they are.
    """
    if not 0 < 8 * count < logits.shape[-1]:
        return None
    values, ids = logits.topk(count)
    smallest = values[:, -1:]
    if (logits == smallest).sum() != (values == smallest).sum():
        return None
    ids, order = ids.sort(-1)
    return values.gather(-1, order), ids


class RowState:
    """What choosing tokens remembers of one row: its random stream, and the tokens that penalties ask about."""

    def __init__(self, options: SamplingOptions, sample: int, prompt: Sequence[int], vocab_size: int) -> None:
        self.options = options
        self._generator = sample_generator(options.seed, sample) if options.temperature > 0 else None
        self._drawn: list[float] = []  # random numbers that have not been used
        self.seen: Tensor | None = None  # (vocab,) bool, the tokens of the prompt and the text so far
        self.counts: Tensor | None = None  # (vocab,), how often each stands in the text so far
        if options.repetition_penalty != 1:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[list(prompt)] = True  # the whole prompt, but not the id that stands before it
        if options.frequency_penalty or options.presence_penalty:
            self.counts = torch.zeros(vocab_size)

    def coming(self, count: int) -> list[float]:
        """The next random numbers, which stay the next until they are used; 0 for greedy rows, which use none."""
        if self._generator is None:
            return [0.0] * count
        while len(self._drawn) < count:
            self._drawn.append(torch.rand((), generator=self._generator, dtype=torch.float64).item())
        return self._drawn[:count]

    def use(self, count: int) -> None:
        """The next `count` random numbers have served."""
        del self._drawn[:count]

    def uniform(self) -> float:
        """The next random number, used."""
        (number,) = self.coming(1)
        self.use(1)
        return number

    def after(self, tokens: Sequence[int]) -> RowState:
        """The state after tokens that may follow; for penalties only, the random stream stays this one's."""
        if not tokens or (self.seen is None and self.counts is None):
            return self
        state = copy.copy(self)
        state.seen = None if self.seen is None else self.seen.clone()
        state.counts = None if self.counts is None else self.counts.clone()
        for token in tokens:
            state.add(token)
        return state

    def add(self, token: int) -> None:
        """A token was chosen."""
        if self.seen is not None:
            self.seen[token] = True
        if self.counts is not None:
            self.counts[token] += 1


def penalized(logits: Tensor, rows: Sequence[RowState]) -> Tensor:  # (batch, vocab)
    """Logits after the penalties of every row; without any, the same tensor."""
    repeating = [
        (number, row.seen, row.options.repetition_penalty) for number, row in enumerate(rows) if row.seen is not None
    ]
    if repeating:
        numbers, seen, penalties = zip(*repeating, strict=True)
        index = torch.tensor(numbers)
        changed = penalize_repetition(logits[index], torch.stack(seen), torch.tensor(penalties)[:, None])
        logits = logits.index_copy(0, index, changed)
    counted = [(number, row.counts, row.options) for number, row in enumerate(rows) if row.counts is not None]
    if counted:
        index = torch.tensor([number for number, _, _ in counted])
        frequency = torch.tensor([[options.frequency_penalty] for _, _, options in counted])
        presence = torch.tensor([[options.presence_penalty] for _, _, options in counted])
        changed = penalize_counts(logits[index], torch.stack([counts for _, counts, _ in counted]), frequency, presence)
        logits = logits.index_copy(0, index, changed)
    return logits
