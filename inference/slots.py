"""Which request lies in which row of a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from inference.row import Row
from model import Decoder, KVCache
from model.device import choose_precision


class SlotTable:
    """Requests in the first rows of a cache, without gaps, those of the same adapter side by side; so a pass over them
    is a pass over neighbouring rows, and needs no copy of keys and values.

    The last row of the cache is where a prompt is read before it gets a slot.
    """

    def __init__(self, cache: KVCache, vocab_size: int) -> None:
        self.cache, self.vocab_size = cache, vocab_size
        self.followers: list[KVCache] = []  # of other models, with the same requests in the same rows
        self.rows: list[Row] = []
        self.staging = len(cache.lengths) - 1
        self._counts: dict[str | None, int] = {}  # rows of each adapter, in the order of the rows

    @property
    def has_room(self) -> bool:
        return len(self.rows) < self.staging

    def groups(self) -> Iterator[tuple[str | None, int, int]]:
        """Adapter, first row and number of rows of every group."""
        first = 0
        for adapter, count in self._counts.items():
            yield adapter, first, count
            first += count

    def insert(self, row: Row) -> None:
        """Give `row` a slot, with what the staging row holds."""
        adapter, hole = row.request.adapter, len(self.rows)
        self._counts.setdefault(adapter, 0)
        self.rows.append(row)
        for other, first, count in reversed(list(self.groups())):
            if other == adapter:
                break
            if count:
                self._move(first, hole)
                hole = first
        self.rows[hole] = row
        self._copy(self.staging, hole)
        self._counts[adapter] += 1

    def remove(self, row: Row) -> None:
        """Free the slot of `row`; at most one row of each group moves."""
        hole = self.rows.index(row)
        for _, first, count in self.groups():
            last = first + count - 1
            if last > hole:
                self._move(last, hole)
                hole = last
        adapter = row.request.adapter
        self._counts[adapter] -= 1
        if not self._counts[adapter]:
            del self._counts[adapter]
        self.rows.pop()
        for cache in (self.cache, *self.followers):
            cache.lengths[hole] = 0

    def trim(self) -> None:
        """Forget what was read of proposals that were not accepted: all behind the last token of a row, and itself."""
        for number, row in enumerate(self.rows):
            kept = len(row.ids) - 1
            before = self.cache.capacity - row.room  # positions before the text
            self.cache.lengths[number] = min(self.cache.lengths[number], before + kept)
            for cache in self.followers:
                cache.lengths[number] = min(cache.lengths[number], kept)

    def _move(self, source: int, target: int) -> None:
        self._copy(source, target)
        self.rows[target] = self.rows[source]

    def _copy(self, source: int, target: int) -> None:
        for cache in (self.cache, *self.followers):
            cache.copy_row(source, target)


def cache_dtype(model: Decoder) -> torch.dtype:
    """The dtype of keys and values: bf16 where the weights have no more bits than that either, else that in which they
    come out, which is the autocast's where one is active.

    A frozen embedding may be stored in half precision, and gives fp32 all the same.
    """
    kind, weight = model.device.type, model.embedding.weight
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    if model.embedding.quantized is not None:
        return torch.bfloat16 if choose_precision(model.device, "auto").name == "bf16" else torch.float32
    return weight.dtype if weight.requires_grad else torch.float32
