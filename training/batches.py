"""Training windows without replacement, addressed by one global number, so that any run can resume anywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from data_pipeline.shards import TokenStream


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
        epoch, position = divmod(number, self.windows_per_epoch)
        if epoch != self._epoch:
            # A generator of its own: nothing else that draws random numbers can shift the order of the data.
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.windows_per_epoch)
            self._epoch = epoch
        return self.stream.read(int(self._order[position]) * self.context_length, self.context_length + 1)

    def micro_batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of windows [first, first + count), each (count, context_length) int64 on the CPU."""
        windows = torch.from_numpy(np.stack([self.window(first + i) for i in range(count)]))
        return windows[:, :-1], windows[:, 1:]
