"""From logits to the next token: small pure functions on logits of shape (batch, vocab).

A token that a filter removes gets the logit -inf, so filters can follow each other in any order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError


@dataclass(frozen=True)
class SamplingOptions:
    """How a continuation is drawn. The defaults sample from the model's own distribution."""

    max_new_tokens: int = 200
    """Stop after this many tokens."""
    temperature: float = 1.0
    """Logits are divided by it; below 1 sharper, above 1 flatter, 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep only the K likeliest tokens."""
    top_p: float = 1.0
    """Keep only the smallest set of likeliest tokens whose probability reaches P (nucleus sampling)."""
    min_p: float = 0.0
    """Keep only tokens at least M times as likely as the likeliest one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the text so far become less likely."""
    stop: tuple[str, ...] = ()
    """End before any of these strings; they are not printed."""
    seed: int = 0
    """Equal seeds give equal text."""

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1 (leave it out to keep every token)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number (1 is no penalty)"),
            ("stop", all(self.stop), "made of strings that are not empty"),
        ):
            if not fine:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {getattr(self, name)!r} is out of range: it must be {rule}")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely (CTRL, arXiv 1909.05858, section 4.1).

    A positive logit is divided by the penalty and a negative one multiplied, so both move down when `penalty` > 1.
    seen: (batch, vocab) bool, the tokens of the prompt and the text so far.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep exactly the `k` largest logits of each row; among equal ones the lowest ids stay."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k).values[:, -1:]
    above, equal = logits > smallest, logits == smallest
    room = k - above.sum(-1, keepdim=True)  # places left for those equal to the k-th
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= room))), -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches `p` (nucleus sampling, arXiv 1904.09751).

    The likeliest token always stays, alone when its own probability reaches `p`; among equal ones the lowest ids stay.
    """
    if p >= 1:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.double().softmax(-1)
    mass_before = probability.cumsum(-1) - probability
    removed = torch.empty_like(ids, dtype=torch.bool).scatter_(-1, ids, mass_before >= p)
    return logits.masked_fill(removed, -math.inf)


def keep_min_p(logits: Tensor, share: float) -> Tensor:
    """Keep tokens whose probability is at least `share` of the likeliest one's (arXiv 2407.01082)."""
    if share <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(share), -math.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row, (batch,) int64, from softmax(logits), where the numbers in [0, 1) of `uniforms` (batch,) fall.

    Inverting the cumulative distribution needs one random number a row, so rows can have generators of their own; an
    id of probability zero is never drawn.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    points = uniforms.double()[:, None] * cumulative[:, -1:]  # below the last entry, as every uniform is below 1
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1)


def sample_generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator a sample, seeded from (seed, number of the sample) alone, on the CPU whatever the model's device.

    So sample i does not depend on how many others are drawn beside it, and global random state is not touched.
    """
    generators = []
    for number in range(count):
        digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    return generators


def next_ids(
    logits: Tensor,  # (batch, vocab)
    seen: Tensor,  # (batch, vocab) bool
    options: SamplingOptions,
    generators: Sequence[torch.Generator],  # one a row
) -> Tensor:  # (batch,) int64
    """The next token of every row: penalty, temperature, top-k, top-p, min-p, then a draw, or the likeliest token."""
    logits = logits.float()
    if options.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, options.repetition_penalty)
    if options.temperature == 0:
        return logits.argmax(-1)
    # In double precision a tiny temperature does not overflow, and the largest logit at 0 keeps softmax exact there.
    logits = (logits.double() - logits.double().amax(-1, keepdim=True)) / options.temperature
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    logits = keep_min_p(keep_top_p(logits, options.top_p), options.min_p)
    uniforms = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    return draw(logits, uniforms)
