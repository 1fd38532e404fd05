"""Trained positions that stand before every text: prefix tuning and prompt tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.cache import KVCache
from model.config import ModelConfig


class VirtualTokens(nn.Module):
    """`count` positions before every text, which then begins at position `count`."""

    count: int
    name = "default"
    active = True
    """Whether the decoder applies them."""


class Prompt(VirtualTokens):
    """Rows that stand before those of the token embedding (Lester et al. 2021, arXiv 2104.08691)."""

    def __init__(self, config: ModelConfig, count: int) -> None:
        super().__init__()
        self.count = count
        self.prompt_embeddings = nn.Parameter(torch.randn(count, config.width))

    def before(self, rows: Tensor) -> Tensor:  # (batch, time, width) -> (batch, count + time, width)
        return torch.cat((self.prompt_embeddings.to(rows.dtype).expand(len(rows), -1, -1), rows), dim=1)


class Prefix(VirtualTokens):
    """Keys and values before those of every layer (Li and Liang 2021, arXiv 2101.00190); nothing rotates these keys."""

    def __init__(self, config: ModelConfig, count: int) -> None:
        super().__init__()
        self.count = count
        self._shape = (count, 2 * config.layers, config.key_value_heads, config.head_size)
        self.prompt_embeddings = nn.Parameter(torch.randn(self._shape).flatten(1))

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:  # each (kv_heads, count, head_dim)
        both = self.prompt_embeddings.view(self._shape)[:, 2 * layer : 2 * layer + 2]
        key, value = both.permute(1, 2, 0, 3)
        return key, value

    @torch.no_grad()
    def fill(self, cache: KVCache) -> None:
        """Put the prefix into an empty cache."""
        cache.place(self.count, None)
        for layer in range(len(cache.keys)):
            rows = cache.keys.shape[1]
            key, value = (part.expand(rows, -1, -1, -1) for part in self.keys_values(layer))
            cache.append(layer, key, value)
        cache.advance()


class PrefixPast:
    """A prefix in the place of a cache, for a pass over whole sequences, gradients included."""

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        before = self.prefix.keys_values(layer)
        joined = [
            torch.cat((old.type_as(new).expand(len(new), -1, -1, -1), new), dim=2)
            for old, new in zip(before, (key, value), strict=True)
        ]
        return joined[0], joined[1]
