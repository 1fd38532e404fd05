"""Training windows without replacement, addressed by one global number, so that any run can resume anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from data_pipeline.shards import TokenStream


def to_device(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets where `device` can use them; a GPU fetches them by itself, out of pinned memory."""
    inputs, targets = batch
    if device.type != "cuda":
        return inputs.to(device), targets.to(device)
    return inputs.pin_memory().to(device, non_blocking=True), targets.pin_memory().to(device, non_blocking=True)


class Batches:
    """Cuts a token stream into windows and visits each once an epoch, in an order fixed by seed and epoch.

    The position in the data is a single number, the windows consumed so far over all processes. It does not depend
    on batch size or process count, so a resumed run may change both.
    """

    def __init__(self, stream: TokenStream, context_length: int, seed: int) -> None:
        """Raises UserError when the stream is shorter than one window."""
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.windows_per_epoch = (len(stream) - 1) // context_length
        if self.windows_per_epoch < 1:
            raise UserError(
                f"the training split has {len(stream)} tokens, less than one window of {context_length} + 1; "
                "curate more data or lower --model.context-length"
            )
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def window(self, number: int) -> np.ndarray:
        """The global window `number`, (context_length + 1,) int64."""
        return self.stream.read(self.position(number), self.context_length + 1)

    def position(self, number: int) -> int:
        """The place in the stream, in tokens, where the global window `number` begins."""
        epoch, place = divmod(number, self.windows_per_epoch)
        if epoch != self._epoch:
            # A generator of its own: nothing else that draws random numbers can shift the order of the data.
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.windows_per_epoch)
            self._epoch = epoch
        return int(self._order[place]) * self.context_length

    def micro_batch(self, first: int, count: int, sequence: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of windows [first, first + count), cut into rows of `sequence` tokens.

        Each (count * context_length / sequence, sequence) int64 on the CPU.
        """
        windows = torch.from_numpy(np.stack([self.window(first + i) for i in range(count)]))
        return windows[:, :-1].reshape(-1, sequence), windows[:, 1:].reshape(-1, sequence)

    def documents(self, windows: range) -> list[dict[str, Any]]:
        """Which documents these windows were cut from: number, first token and, where it is known, provenance."""
        index = self.stream.documents()
        numbers = {
            int(number)
            for start in map(self.position, windows)
            for number in range(
                int(np.searchsorted(index["start"], start, side="right")) - 1,
                int(np.searchsorted(index["start"], start + self.context_length + 1)),
            )
        }
        return [
            {"document": number, "first_token": int(index["start"][number]), **self.stream.provenance(number)}
            for number in sorted(numbers)
        ]
