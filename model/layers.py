"""The parts of a decoder block: normalisation, attention, feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.activations import Checkpointing, checkpointed
from model.cache import KVCache
from model.config import ModelConfig
from model.functions import causal_attention, compute_dtype
from model.positions import Positions, rotate
from model.slots import Linear, Slot
from model.virtual import PrefixPast


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm, with or without learned gain."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, self.eps, self.shape = config.norm, config.norm_eps, (config.width,)
        self.weight = nn.Parameter(torch.ones(config.width)) if config.norm_gain else None
        offset = config.norm == "layer" and config.norm_gain and config.bias
        self.bias = nn.Parameter(torch.zeros(config.width)) if offset else None

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        if self.kind == "rms":
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads = layer, config.heads, config.key_value_heads
        self.head_dim, self.dropout = config.head_size, config.dropout
        self.scale = config.attention_scale or config.head_size**-0.5
        self.qk_norm, self.eps, self.window = config.qk_norm, config.norm_eps, config.window
        self.query = Linear(config.width, self.heads * self.head_dim, bias=config.bias)
        self.key = Linear(config.width, self.kv_heads * self.head_dim, bias=config.bias)
        self.value = Linear(config.width, self.kv_heads * self.head_dim, bias=config.bias)
        self.output = Linear(self.heads * self.head_dim, config.width, bias=config.bias)
        self.slot = Slot()  # of query, key and value as one matrix, as GPT-2 stores them

    def forward(
        self,
        x: Tensor,  # (batch, time, width)
        positions: Positions,
        rotary: tuple[Tensor, Tensor] | None,  # cosines and sines at these positions
        own_values: Tensor | None,  # (batch, time, kv_heads, head_dim), added to the values
        cache: KVCache | PrefixPast | None,
        wanted: Tensor | None = None,
    ) -> Tensor:  # (batch, time, width), or (positions, width) of the `wanted` ones
        batch, time, _ = x.shape
        x = x.to(compute_dtype(x))  # once, instead of for each of the three products
        query, key, value = self.project(x)
        query = query.view(batch, time, self.heads, self.head_dim).transpose(1, 2)
        key = key.view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        value = value.view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        # query: (batch, heads, time, head_dim); key, value: (batch, kv_heads, time, head_dim)
        if own_values is not None:
            value = value + own_values.transpose(1, 2).type_as(value)
        if self.qk_norm:
            query = F.rms_norm(query, (self.head_dim,), eps=self.eps)
            key = F.rms_norm(key, (self.head_dim,), eps=self.eps)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = self.attend(query.type_as(value), key.type_as(value), value, positions)
        mixed = mixed.type_as(x)  # a cache may be of another dtype
        mixed = self.output(chosen(mixed.transpose(1, 2).reshape(batch, time, -1), wanted))
        return F.dropout(mixed, self.dropout, self.training)

    def project(self, x: Tensor) -> list[Tensor]:
        """Query, key and value, each (batch, time, its heads * head_dim)."""
        layers = (self.query, self.key, self.value)
        return self.slot.run(x, layers) if self.slot.active else [layer(x) for layer in layers]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        """Attention of the queries on all keys that they may see; (batch, heads, time, head_dim)."""
        if positions.blocked:
            repeats = self.heads // self.kv_heads
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
            return causal_attention(query, key, value, self.scale, self.window, positions.documents)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=positions.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=positions.mask is None and query.shape[2] > 1,
            scale=self.scale,
            enable_gqa=self.kv_heads != self.heads,
        )


class FeedForward(nn.Module):
    """Position-wise feed-forward layer: squared ReLU (arXiv 2109.08668), GELU or SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation, self.dropout = config.activation, config.dropout
        self.up = Linear(config.width, config.mlp_size, bias=config.bias)
        gated = config.activation == "swiglu"
        self.gate = Linear(config.width, config.mlp_size, bias=config.bias) if gated else None
        self.down = Linear(config.mlp_size, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, width) -> (batch, time, width)
        return F.dropout(self.down(self.hidden(x)), self.dropout, self.training)

    def hidden(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> (batch, time, mlp_size)."""
        if self.gate is not None:
            return F.silu(self.gate(x)) * self.up(x)
        if self.activation == "relu2":
            return F.relu(self.up(x)).square()
        return F.gelu(self.up(x), approximate="tanh")


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = Norm(config)
        self.mlp = FeedForward(config)
        own_values = config.has_value_embedding(layer)
        self.value_gate = nn.Parameter(torch.ones(config.key_value_heads)) if own_values else None

    def forward(
        self,
        x: Tensor,  # (batch, time, width)
        positions: Positions,
        rotary: tuple[Tensor, Tensor] | None,
        own_values: Tensor | None,  # (batch, time, kv_heads * head_dim), the tokens' value embeddings
        cache: KVCache | PrefixPast | None,
        checkpointing: Checkpointing = "none",
        wanted: Tensor | None = None,  # (positions,) int64: the only ones, in batch * time, of which the result is used
    ) -> Tensor:  # (batch, time, width), or (positions, width) of the `wanted` ones
        # In here, so that a compiled block has it inside: outside, "selective" could not see what to keep.
        return checkpointed(self.pass_through, checkpointing, x, positions, rotary, own_values, cache, wanted)

    def pass_through(
        self,
        x: Tensor,
        positions: Positions,
        rotary: tuple[Tensor, Tensor] | None,
        own_values: Tensor | None,
        cache: KVCache | PrefixPast | None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        if own_values is not None and self.value_gate is not None:
            own_values = self.value_gate[:, None] * own_values.unflatten(-1, (len(self.value_gate), -1))
        # Each ends with its own dropout: under FSDP what the backward pass meets first must be inside what is gathered.
        x = chosen(x, wanted) + self.attention(self.attention_norm(x), positions, rotary, own_values, cache, wanted)
        return x + self.mlp(self.mlp_norm(x))


def chosen(x: Tensor, wanted: Tensor | None) -> Tensor:
    """`x` (batch, time, width), or its rows (positions, width) at the `wanted` positions in batch * time."""
    return x if wanted is None else x.flatten(0, 1).index_select(0, wanted)
