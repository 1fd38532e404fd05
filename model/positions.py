"""Where the tokens of one pass stand: rotary angles, and which keys each query may see."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model.cache import KVCache
from model.config import ModelConfig

BLOCKED = 32  # queries after cached keys from which on, in bf16, blocks of them are faster than PyTorch's own kernel
EVERY = -1  # in place of a document's number: seen from all documents


class Positions(NamedTuple):
    """Worked out once a pass, the same for all blocks."""

    indices: Tensor
    """Place of every token in its sequence, (time,), or (batch, time) where rows differ."""
    documents: Tensor | None
    """Number of the document of every key, (batch, keys), where attention ends with the document."""
    mask: Tensor | None
    """Which keys a query sees, (1 or batch, 1, time, keys) bool. None: all before it; of a single query, all."""
    blocked: bool
    """Attention goes by blocks of queries (`functions.causal_attention`), for which there is no mask."""


def locate(
    config: ModelConfig,
    ids: Tensor,  # (batch, time)
    dropout: bool,
    documents: Tensor | None = None,
    virtual: int = 0,
    embedded: bool = False,
) -> Positions:
    """Positions of whole sequences.

    Args:
        dropout: whether attention drops weights in this pass.
        documents: (batch, time) int64 from 0, rising along a row, where rows are packed with texts that have nothing to
            do with each other: each is attended to alone, and its positions begin anew.
        virtual: trained positions before those of `ids`, seen by all. There are keys of them;
        embedded: and also queries, because they pass through the layers like those of `ids`.
    """
    keys, device = virtual + ids.shape[1], ids.device
    first = 0 if embedded else virtual  # of the queries
    order = torch.arange(keys, device=device)
    index = order
    if documents is not None:
        index = torch.cat((order[:virtual].expand(len(ids), -1), virtual + _places(documents)), dim=1)
    elif config.document_start is not None:
        documents = (ids == config.document_start).cumsum(1)
    if documents is not None and virtual:
        documents = torch.cat((documents.new_full((len(ids), virtual), EVERY), documents), dim=1)
    if keys - first > 1 and device.type == "cpu" and not dropout:
        return Positions(index[..., first:], documents, None, blocked=True)
    asking = None if documents is None else documents[:, first:]
    mask = visible(order[first:], order, config.window, asking, documents)
    return Positions(index[..., first:], documents, mask, blocked=False)


def locate_after(config: ModelConfig, ids: Tensor, cache: KVCache, dropout: bool) -> Positions:
    """Positions of `ids` (batch, time), which follow what the cache holds."""
    time, index, keys = ids.shape[1], cache.index, cache.key_index
    documents = None if config.document_start is None else cache.number_documents(ids == config.document_start)
    empty = 1 < time == keys.shape[-1]  # was the cache before
    long = time >= BLOCKED and cache.keys.dtype == torch.bfloat16
    if (empty or long) and index.ndim == 1 and ids.device.type == "cpu" and not dropout:
        of_keys = None if cache.documents is None else cache.documents[:, : cache.filled]
        return Positions(index, of_keys, None, blocked=True)
    return Positions(index, None, visible(index, keys, config.window, documents, cache.documents), blocked=False)


def _places(documents: Tensor) -> Tensor:  # (batch, time) -> (batch, time)
    """How many positions of the same document stand before each."""
    order = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return order - (order * begins).cummax(dim=1).values


def visible(
    queries: Tensor,  # (time,) or (batch, time), positions
    keys: Tensor,  # (keys,) or (batch, keys), positions
    window: int | None,
    query_documents: Tensor | None,  # (batch, time)
    key_documents: Tensor | None,  # (batch, at least keys)
) -> Tensor | None:
    """The mask of `Positions`; None where it would say nothing that plain causal attention does not."""
    plain = query_documents is None and queries.ndim == 1
    if plain and (window is None or window >= len(keys)) and len(queries) in (1, len(keys)):
        return None
    distance = queries[..., :, None] - keys[..., None, :]  # (time, keys) or (batch, time, keys)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    if query_documents is not None and key_documents is not None:
        of_keys = key_documents[:, None, : keys.shape[-1]]
        seen = seen & ((query_documents[:, :, None] == of_keys) | (of_keys == EVERY))
    return seen[None, None] if seen.ndim == 2 else seen[:, None]


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians a position by which each pair turns, (head_dim / 2,) fp32 (RoFormer, arXiv 2104.09864).

    With a `rope_factor` above 1, waves longer than `rope_original_context / rope_low_frequency` are stretched by it,
    those shorter than `rope_original_context / rope_high_frequency` are not, and between them the stretch is blended
    in (Llama 3.1, arXiv 2407.21783).
    """
    steps = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    frequencies = 1.0 / config.rope_base**steps
    if config.rope_factor == 1:
        return frequencies
    low, high = config.rope_low_frequency, config.rope_high_frequency
    turns = config.rope_original_context * frequencies / (2 * math.pi)  # in the context of the first training
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / config.rope_factor


def rotary_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each (context, head_dim / 2)."""
    angles = torch.outer(torch.arange(config.context_length, dtype=torch.float32), rotary_frequencies(config))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim/2]), the layout of Hugging Face checkpoints; keeps x's dtype.

    x: (batch, heads, time, head_dim); cos, sin: (time, head_dim / 2), or (batch, 1, time, head_dim / 2).
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).type_as(x)
