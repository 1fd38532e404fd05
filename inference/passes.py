"""Passes of a model over neighbouring rows of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from model import Decoder, KVCache
from model.adapters.attach import active_names
from model.native.library import is_built
from model.native.step import NativeStep, reason_against

Compile = Literal["auto", "on", "off"]
LONG = 200  # tokens that take longer to write than the native step takes to compile


class Passes:
    """Runs a model: few tokens by its native step, where that is wanted and possible, the rest by PyTorch."""

    def __init__(self, model: Decoder, native: bool) -> None:
        self.model = model
        self._step = NativeStep(model) if native and not reason_against(model) else None

    def __call__(
        self, ids: Sequence[Sequence[int]], cache: KVCache, first: int, last_only: bool, adapted: bool = False
    ) -> Tensor:  # (outputs, vocab) fp32, on the CPU
        """Read the `ids` of the rows of `cache` from `first` on.

        Args:
            last_only: whether logits are wanted after the last token of each row alone (anything, where it gets none),
                else after all of the first row, of the second, ….
            adapted: whether adapters are active, of which the native step knows nothing.
        """
        part, counts = cache.part(first, len(ids)), [len(row) for row in ids]
        if self._step is not None and not adapted and 0 < sum(counts) <= self._step.most_tokens:
            logits = self._step(ids, part, last_only)
        else:
            width = max(counts)
            padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids]).to(self.model.device)
            uneven = None if min(counts) == width else counts
            found = self.model(padded, cache=part, last_only=last_only, counts=uneven).cpu()
            logits = found[:, -1] if last_only else torch.cat([own[:n] for own, n in zip(found, counts, strict=True)])
        cache.take_lengths(first, part)
        return logits


def wants_native(model: Decoder, setting: Compile, tokens: int) -> bool:
    """Whether `model` is to write by its native step: with "auto" where so many tokens repay compiling it, or where it
    is compiled already, as quantised weights need it to be.

    Raises:
        UserError: with "on", when that cannot be.
    """
    adapted = bool(active_names(model))
    if setting == "on" and (reason := "an adapter is active" if adapted else reason_against(model)):
        raise UserError(f"--compile on is not possible for this model: {reason}; leave it out")
    if setting == "auto":
        return not adapted and (model.embedding.quantized is not None or tokens >= LONG or is_built())
    return setting == "on"
