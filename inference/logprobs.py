"""Log-probabilities of chosen tokens, as the model itself gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from inference.requests import TokenLogprob


def token_logprobs(
    logits: Tensor,  # (positions, vocab), before temperature, penalties and filters
    tokens: Sequence[int],  # one a position
    count: int,
    unused_ids: Tensor,
) -> list[TokenLogprob]:
    """Values of `tokens` and the `count` likeliest tokens at each position; `unused_ids` are none of them."""
    values = logits.float().log_softmax(-1)
    own = [row[token].item() for row, token in zip(values, tokens, strict=True)]
    if not count:
        return [TokenLogprob(token, value) for token, value in zip(tokens, own, strict=True)]
    best = values.index_fill(-1, unused_ids, -math.inf).topk(count)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token, value, tuple(zip(ids, highest, strict=True)))
        for token, value, (ids, highest) in zip(tokens, own, tops, strict=True)
    ]
