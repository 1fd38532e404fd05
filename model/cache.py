"""Preallocated keys and values of the tokens that a decoder has already seen."""

from __future__ import annotations

import torch

from model.config import ModelConfig


class KVCache:
    """Room for `capacity` positions of `batch` sequences that all have the same length."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, batch, config.key_value_heads, capacity, config.head_size)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0  # positions filled so far, the same in every layer between two forward passes

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:  # each (batch, kv_heads, time, head_dim)
        """Store the new positions of one layer; return that layer's keys and values from the first position on."""
        stop = self.length + key.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {stop} were asked for")
        self.keys[layer, :, :, self.length : stop] = key
        self.values[layer, :, :, self.length : stop] = value
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, positions: int) -> None:
        """Count positions that every layer has now stored."""
        self.length += positions

    def reset(self) -> None:
        self.length = 0
