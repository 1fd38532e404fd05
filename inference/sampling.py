"""From logits to the next token: small pure functions on logits of shape (batch, vocab).

A token that a filter removes gets the logit -inf, so filters can follow each other in any order.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError

NUCLEUS = 1024  # likeliest tokens that `keep_top_p` looks at before it sorts them all


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
    frequency_penalty: float = 0.0
    """Taken from a token's logit for every time that it stands in the text so far; negative ones add."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that stands in the text so far."""
    stop: tuple[str, ...] = ()
    """End before any of these strings; they are not printed."""
    overflow: Literal["slide", "stop"] = "slide"
    """When the context is full: go on from its newest half, or end the text there."""
    seed: int = 0
    """Equal seeds give equal text."""

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            ("top_k", self.top_k is None or 1 <= self.top_k <= 2**31, "from 1 to 2**31 (leave it out to keep all)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            # Beyond these, penalized logits overflow.
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100 (1 is no penalty)"),
            ("frequency_penalty", -100 <= self.frequency_penalty <= 100, "from -100 to 100 (0 is no penalty)"),
            ("presence_penalty", -100 <= self.presence_penalty <= 100, "from -100 to 100 (0 is no penalty)"),
            ("stop", all(self.stop), "made of strings that are not empty"),
        ):
            if not fine:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {getattr(self, name)!r} is out of range: it must be {rule}")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Make seen tokens less likely (CTRL, arXiv 1909.05858, section 4.1).

    A positive logit is divided by the penalty and a negative one multiplied, so both move down when `penalty` > 1.
    seen: (batch, vocab) bool, the tokens of the prompt and the text so far; penalty: a number, or (batch, 1).
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalize_counts(
    logits: Tensor, counts: Tensor, frequency: float | Tensor, presence: float | Tensor
) -> Tensor:  # (batch, vocab)
    """Make written tokens less likely, once for each time and once at all, as OpenAI's API defines it.

    counts: (batch, vocab), how often each token stands in the text so far, the prompt left out; the penalties: numbers,
    or (batch, 1).
    """
    return logits - counts * frequency - (counts > 0) * presence


def keep_top_k(logits: Tensor, k: int | Tensor) -> Tensor:
    """Keep exactly the `k` largest logits of each row, a number or (batch, 1); among equal ones the lowest ids stay."""
    vocab = logits.shape[-1]
    sizes = torch.as_tensor(k, dtype=torch.int64).clamp(max=vocab).expand(len(logits), 1)
    widest = int(sizes.max())
    if int(sizes.min()) == vocab:
        return logits
    smallest = logits.topk(widest).values.gather(-1, sizes - 1)
    above, equal = logits > smallest, logits == smallest
    room = sizes - above.sum(-1, keepdim=True)  # places left for those equal to the k-th
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= room))), -math.inf)


def keep_top_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches `p` (nucleus sampling, arXiv 1904.09751).

    The likeliest token always stays, alone when its own probability reaches `p`; among equal ones the lowest ids stay.
    p: a number, or (batch, 1); 1 keeps all.
    """
    p = torch.as_tensor(p, dtype=torch.float64)
    probability = logits.double().softmax(-1)
    # Sorting a whole vocabulary takes longer than a small model's pass, and a nucleus is mostly within its first part.
    ordered = probability.topk(min(NUCLEUS, probability.shape[-1])).values
    if (ordered.sum(-1, keepdim=True) < p).any():
        ordered = probability.sort(-1, descending=True).values
    mass_before = ordered.cumsum(-1) - ordered
    sizes = (mass_before < p).sum(-1, keepdim=True)
    return keep_top_k(logits, sizes.where(p < 1, logits.shape[-1]))


def keep_min_p(logits: Tensor, share: float | Tensor) -> Tensor:
    """Keep tokens whose probability is at least `share` of the likeliest one's (arXiv 2407.01082).

    share: a number, or (batch, 1); 0 keeps all.
    """
    share = torch.as_tensor(share, dtype=logits.dtype)
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + share.log(), -math.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row, (batch,) int64, from softmax(logits), where the numbers in [0, 1) of `uniforms` (batch,) fall.

    Inverting the cumulative distribution needs one random number a row, so rows can have generators of their own; an
    id of probability zero is never drawn.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    points = uniforms.double()[:, None] * cumulative[:, -1:]  # below the last entry, as every uniform is below 1
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1)


def sample_generator(seed: int, number: int) -> torch.Generator:
    """The generator of sample `number`, on the CPU whatever the model's device.

    It depends on both numbers alone, so sample i does not depend on how many others are drawn beside it, and global
    random state is not touched.
    """
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
