"""Where the tokens of one pass stand: rotary angles, and which keys each query may see."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model.cache import KVCache
from model.config import ModelConfig


class Positions(NamedTuple):
    """Worked out once a pass, the same for all blocks."""

    indices: Tensor
    """Place of every token in its sequence, (time,), or (batch, time) where rows differ."""
    documents: Tensor | None
    """Number of the document of every token, (batch, time), where attention ends with the document."""
    mask: Tensor | None
    """Which keys a query sees, (1 or batch, 1, time, keys) bool. None: all before it; of a single query, all."""
    blocked: bool
    """Attention goes by blocks of queries (`functions.causal_attention`), for which there is no mask."""


def locate(config: ModelConfig, ids: Tensor, cache: KVCache | None, dropout: bool) -> Positions:
    """Positions of `ids` (batch, time), which follow what the cache holds. `dropout`: whether it is active."""
    time, device = ids.shape[1], ids.device
    starts = None if config.document_start is None else ids == config.document_start
    if cache is None:
        index = keys = torch.arange(time, device=device)
        documents = key_documents = None if starts is None else starts.cumsum(1)
    else:
        index, keys = cache.index, cache.key_index
        documents = None if starts is None else cache.number_documents(starts)
        key_documents = cache.documents
    whole = 1 < time == keys.shape[-1] and index.ndim == 1  # sequences from their beginning
    if whole and device.type == "cpu" and not dropout:
        return Positions(index, documents, None, blocked=True)
    return Positions(index, documents, visible(index, keys, config.window, documents, key_documents), blocked=False)


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
        seen = seen & (query_documents[:, :, None] == key_documents[:, None, : keys.shape[-1]])
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
