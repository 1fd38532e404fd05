"""The two places where a plain expression wastes most of a training step: attention on the CPU, and the loss.

Both are exact. What they save is measured by `python -m benchmarks.functions`; see docs/log.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # target value of positions that carry no loss
CHUNK_LOGITS = 2**24  # logits held at a time, in the dtype of the products
CACHED_LOGITS = 2**20  # of these in fp32 at a time: 4 MiB, which stay in a CPU's cache from one pass to the next
ALIGNMENT = 64  # bytes; see _chunk_room
QUERY_BLOCK = 128  # queries taken at a time: of 32 to 256 the fastest at contexts of 128 to 1,024


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Sum of the losses of `softcap * tanh(hidden @ weight.T / softcap)` against `targets`, in nats, fp32 scalar.

    The logits exist only a chunk of positions at a time, and the gradient by each chunk is taken at once: they are
    never all in memory, and never computed twice.

    Args:
        hidden: (positions, width).
        weight: (vocab, width), fp32 or, if it is frozen, in half precision; multiplied in the dtype of autocast where
            that is on, else in that of `hidden`.
        targets: (positions,) int64, IGNORE where no loss is wanted.
        softcap: None for plain logits.
    """
    wanted = (hidden.requires_grad, weight.requires_grad) if torch.is_grad_enabled() else (False, False)
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, wanted)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """The single losses that `linear_cross_entropy` sums, (positions,) fp32, zero at IGNORE; without gradients."""
    hidden, weight = hidden.detach(), weight.detach().to(compute_dtype(hidden))
    room, losses = _chunk_room(hidden, weight), []
    for part, columns in zip(*_chunks(hidden, targets, len(room)), strict=True):
        products = torch.mm(part.to(weight.dtype), weight.mT, out=room[: len(part)])
        losses.append(_chunk_loss(products, columns, softcap, gradient=False))
    return torch.cat(losses)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a matrix product with `tensor` runs in: autocast's where it is on, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _chunk_room(hidden: Tensor, weight: Tensor) -> Tensor:
    """Room for the logits of a chunk, (positions, vocab), in the dtype of `weight`; every chunk uses it again.

    Rows begin at multiples of 64 bytes, and there are a power of two of them. With GPT-2's 50,257 columns close
    together, the product takes half as long again in fp32 on a CPU; with 333 rows instead of 256, a sixth in bf16.
    """
    rows, columns, step = max(1, CHUNK_LOGITS // len(weight)), len(weight), ALIGNMENT // weight.itemsize
    rows = 1 << (rows.bit_length() - 1)
    return weight.new_empty(min(rows, len(hidden)), -(-columns // step) * step)[:, :columns]


def _chunks(first: Tensor, second: Tensor, rows: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return first.split(max(1, rows)), second.split(max(1, rows))


def _chunk_loss(products: Tensor, targets: Tensor, softcap: float | None, gradient: bool) -> Tensor:
    """Losses (positions,) fp32 of products (positions, vocab), which become their sum's gradient by them, if wanted.

    On a CPU this is bound by memory: each pass is made in place, over a piece that the cache holds.
    """
    cached = CACHED_LOGITS if products.device.type == "cpu" else CHUNK_LOGITS
    pieces = zip(*_chunks(products, targets, cached // products.shape[1]), strict=True)
    return torch.cat([_row_losses(*piece, softcap, gradient) for piece in pieces])


def _row_losses(products: Tensor, targets: Tensor, softcap: float | None, gradient: bool) -> Tensor:
    kept = targets != IGNORE
    column = targets.where(kept, 0)[:, None]
    if softcap is None:
        logits = products.float()
        picked = logits.gather(1, column)
        highest = logits.amax(dim=-1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        picked -= highest
        slope = None
    else:
        # softcap * tanh(x / softcap) is 2 * softcap * sigmoid(2 x / softcap) up to a constant, which softmax ignores.
        # A sigmoid is cheaper than tanh, its range makes the usual shift needless, and its slope is s - s^2.
        sigmoid = products.float().mul_(2 / softcap).sigmoid_()
        picked = 2 * softcap * sigmoid.gather(1, column)
        exponentials = (sigmoid * (2 * softcap)).exp_()
        slope = sigmoid
    total = exponentials.sum(dim=-1, keepdim=True)
    losses = (total.log() - picked).squeeze(1) * kept
    if not gradient:
        return losses
    # Softmax minus one-hot, both times `total`, which is divided out with the mask in one pass.
    by_logits = exponentials.scatter_add_(1, column, -total)
    scale = kept[:, None] / total
    if slope is not None:
        by_logits.mul_(torch.addcmul(slope, slope, slope, value=-1, out=slope))
        scale *= 4  # 2 softcap for the sigmoid's factor, 2 / softcap for its argument's
    products.copy_(by_logits.mul_(scale))
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        dtype = compute_dtype(hidden)
        loss = torch.zeros((), device=hidden.device)
        by_hidden = torch.empty_like(hidden, dtype=dtype) if wanted[0] else None
        by_weight = torch.zeros_like(weight) if wanted[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            low = weight.to(dtype)
            room, start = _chunk_room(hidden, low), 0
            for part, columns in zip(*_chunks(hidden, targets, len(room)), strict=True):
                rows = part.to(dtype)
                by_products = torch.mm(rows, low.mT, out=room[: len(rows)])
                loss += _chunk_loss(by_products, columns, softcap, gradient=any(wanted)).sum()
                if by_hidden is not None:
                    torch.mm(by_products, low, out=by_hidden[start : start + len(rows)])
                if by_weight is not None:
                    by_weight += by_products.mT @ rows  # summed over the chunks in the weight's own precision
                start += len(rows)
        ctx.save_for_backward(by_hidden, by_weight)
        ctx.hidden_dtype = hidden.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        (outer,) = gradients
        return (
            None if by_hidden is None else by_hidden.to(ctx.hidden_dtype) * outer,
            None if by_weight is None else by_weight.mul_(outer),
            None,
            None,
            None,
        )


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Causal attention by blocks of queries, each of which meets only the keys that one of them sees.

    On CPUs about twice as fast as PyTorch's fused kernel, forward and backward together, because its matrix products
    are large; it keeps the attention weights for the backward pass, half of (time x time) a head.

    Queries and result: (batch, heads, time, head_dim); key and value: (batch, heads, keys, head_dim); one dtype. Where
    there are more keys than queries, the queries are the last positions.

    Args:
        window: keys that a query sees, its own among them; None for all before it.
        documents: (batch, keys), numbers that rise along a row; a query sees only keys of its own number, and of a
            negative one.
    """
    return _CausalAttention.apply(query, key, value, scale, window, documents)


def _block_mask(start: int, stop: int, first: int, window: int | None, documents: Tensor | None) -> Tensor:
    """What positions start..stop do not see of first..stop; broadcasts to (batch, heads, queries, keys)."""
    distance = torch.arange(start, stop)[:, None] - torch.arange(first, stop)
    unseen = distance < 0
    if window is not None:
        unseen |= distance >= window
    if documents is None:
        return unseen
    of_keys = documents[:, None, None, first:stop]
    return unseen | ((documents[:, None, start:stop, None] != of_keys) & (of_keys >= 0))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        documents: Tensor | None,
    ) -> Tensor:
        keys, before = key.shape[2], key.shape[2] - query.shape[2]
        mixed = torch.empty_like(query)
        future = torch.ones(QUERY_BLOCK, QUERY_BLOCK, dtype=torch.bool, device=query.device).triu(1)
        blocks, firsts = [], []
        for start in range(before, keys, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, keys)
            first = 0 if window is None else max(0, start - window + 1)
            scores = (query[:, :, start - before : stop - before] @ key[:, :, first:stop].mT).float().mul_(scale)
            if window is None and documents is None:
                scores[..., start:].masked_fill_(future[: stop - start, : stop - start], -math.inf)
            else:
                scores.masked_fill_(_block_mask(start, stop, first, window, documents), -math.inf)
            weights = torch.softmax(scores, dim=-1).to(value.dtype)  # (batch, heads, block, stop - first)
            mixed[:, :, start - before : stop - before] = weights @ value[:, :, first:stop]
            blocks.append(weights)
            firsts.append(first)
        ctx.save_for_backward(query, key, value, mixed, *blocks)
        ctx.scale, ctx.firsts = scale, firsts
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mixed, *blocks = ctx.saved_tensors
        by_mixed = gradients[0].contiguous()
        by_query = torch.empty_like(query)
        before = key.shape[2] - query.shape[2]
        by_key, by_value = (torch.zeros_like(key, dtype=torch.float32) for _ in range(2))
        # What each row of the softmax gradient is centred on: the sum of weights times their gradients.
        centre = (by_mixed.float() * mixed.float()).sum(dim=-1, keepdim=True)
        for number, (weights, first) in enumerate(zip(blocks, ctx.firsts, strict=True)):
            queries = slice(number * QUERY_BLOCK, number * QUERY_BLOCK + weights.shape[2])
            stop = before + queries.stop
            outer = by_mixed[:, :, queries]
            by_value[:, :, first:stop] += weights.mT @ outer
            by_weights = (outer @ value[:, :, first:stop].mT).float()
            by_scores = by_weights.sub_(centre[:, :, queries]).mul_(weights).mul_(ctx.scale).to(query.dtype)
            by_query[:, :, queries] = by_scores @ key[:, :, first:stop]
            by_key[:, :, first:stop] += by_scores.mT @ query[:, :, queries]
        return by_query, by_key.to(key.dtype), by_value.to(value.dtype), None, None, None
