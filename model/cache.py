"""Preallocated keys and values of the tokens that a decoder has already seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Room for `capacity` positions of `batch` sequences, which may be of different lengths.

    A pass is `place`, then `append` of every layer, then `advance`. Slot i of a row holds its position i. Rows that get
    fewer tokens than others in a pass are padded on the right; what is padding goes to a slot that no query sees.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, batch, config.key_value_heads, capacity + 1, config.head_size)  # the last for padding
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.documents: Tensor | None = None  # number of the document of every slot, where attention asks for it
        if config.document_start is not None:
            self.documents = torch.zeros(batch, capacity + 1, dtype=torch.int64, device=device)
        self.capacity = capacity
        self.lengths = [0] * batch  # positions of each row that are filled, the same in every layer between two passes
        self.filled = 0  # slots that some row has filled when the present pass ends
        self.ragged = False  # whether rows are, or in this pass become, of different lengths
        self.index: Tensor  # positions of this pass, (time,), or (batch, time) when ragged
        self._slots: Tensor  # where they go, (batch, time), when ragged
        self._following: list[int] = self.lengths
        self._parts: dict[tuple[int, int], KVCache] = {}  # made once, because they are used in every pass

    def part(self, first: int, count: int) -> KVCache:
        """`count` neighbouring rows as a cache of their own, in the same memory; `take_lengths` ends its use."""
        part = self._parts.get((first, count))
        if part is None:
            part, rows = copy.copy(self), slice(first, first + count)
            part.keys, part.values, part._parts = self.keys[:, rows], self.values[:, rows], {}
            part.documents = None if self.documents is None else self.documents[rows]
            self._parts[first, count] = part
        part.lengths = part._following = self.lengths[first : first + count]
        return part

    def take_lengths(self, first: int, part: KVCache) -> None:
        """What passes over `part`, whose rows begin at `first`, have stored counts here too."""
        self.lengths[first : first + len(part.lengths)] = part.lengths

    def copy_row(self, source: int, target: int) -> None:
        """Make row `target` what row `source` is."""
        filled = self.lengths[source]
        for stored in (self.keys, self.values):
            stored[:, target, :, :filled] = stored[:, source, :, :filled]
        if self.documents is not None:
            self.documents[target] = self.documents[source]
        self.lengths[target] = filled

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths)

    @property
    def key_index(self) -> Tensor:
        """Positions of the keys that `append` returns."""
        return torch.arange(self.filled, device=self.keys.device)

    def place(self, time: int, counts: Sequence[int] | None) -> None:
        """Begin a pass over `time` tokens a row, of which the first `counts` are real (by default all).

        Raises ValueError when a row would hold more than the capacity.
        """
        counts = [time] * len(self.lengths) if counts is None else list(counts)
        self.reserve(counts)
        device = self.keys.device
        self.ragged = len(set(self.lengths)) > 1 or min(counts) < time
        self.index = torch.arange(time, device=device)
        if self.ragged:
            real = self.index < torch.tensor(counts, device=device)[:, None]
            self.index = self.index + torch.tensor(self.lengths, device=device)[:, None]
            self._slots = self.index.where(real, self.capacity)
        else:
            self.index = self.index + self.lengths[0]

    def reserve(self, counts: Sequence[int]) -> None:
        """Begin a pass that gives every row so many tokens, and stores them in its slots without `append`.

        Raises ValueError when a row would hold more than the capacity.
        """
        self._following = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.filled = max(self._following)
        if self.filled > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {self.filled} were asked for")

    def append(
        self, layer: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:  # each (batch, kv_heads, time, head_dim)
        """Store the new positions of one layer; return that layer's keys and values from the first position on."""
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            if self.ragged:
                stored.scatter_(2, self._slots[:, None, :, None].expand_as(new), new.type_as(stored))
            else:
                stored[:, :, self.filled - new.shape[2] : self.filled] = new
        return self.keys[layer, :, :, : self.filled], self.values[layer, :, :, : self.filled]

    def number_documents(self, starts: Tensor) -> Tensor:
        """Numbers of the documents of this pass's tokens, given which of them begin one; both (batch, time)."""
        assert self.documents is not None
        last = torch.tensor([[max(length - 1, 0)] for length in self.lengths], device=starts.device)
        numbers = self.documents.gather(1, last) * (torch.tensor(self.lengths, device=starts.device) > 0)[:, None]
        numbers = numbers + starts.cumsum(1)
        slots = self._slots if self.ragged else self.index.expand_as(numbers)
        self.documents.scatter_(1, slots, numbers)
        return numbers

    def advance(self) -> None:
        """End a pass: every layer has now stored its positions."""
        self.lengths = self._following

    def reset(self) -> None:
        """Forget everything."""
        self.lengths = self._following = [0] * len(self.lengths)
