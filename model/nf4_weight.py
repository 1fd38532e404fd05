"""A frozen matrix of a linear layer in NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from model.frozen import frozen_linear
from model.nf4 import Nf4, block_count, dequantize, packed_bytes, quantize, scale_block_count
from model.slots import QuantizedWeight


class Nf4Weight(QuantizedWeight):
    """A matrix (out, in) in NF4, multiplied in the dtype of the input or, where it is on, of autocast.

    It lies in buffers that no state dict holds: what a fine-tune saves is what it learns.
    """

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None

    def __init__(self, out_features: int, in_features: int, double: bool = True) -> None:
        """A matrix without values, also on the meta device, that waits for `fill` or `take`.

        `double`: the scales are quantised too.
        """
        super().__init__()
        self.shape, self.dtype = torch.Size((out_features, in_features)), torch.float32
        blocks = block_count(self.shape.numel())
        packed = torch.empty(packed_bytes(self.shape.numel()), 1, dtype=torch.uint8)
        absmax = torch.empty(blocks, dtype=torch.uint8 if double else torch.float32)
        nested = torch.empty(scale_block_count(blocks)) if double else None
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("absmax", absmax, persistent=False)
        self.register_buffer("nested_absmax", nested, persistent=False)
        self.register_buffer("offset", torch.empty(()) if double else None, persistent=False)

    @property
    def nf4(self) -> Nf4:
        return Nf4(self.packed, self.absmax, self.nested_absmax, self.offset, self.shape, self.dtype)

    def fill(self, weight: Nf4) -> None:
        """Take over `weight`, moved to this device; on the meta device, this goes to the device of `weight`.

        Raises:
            UserError: it is of another shape.
        """
        if weight.shape != self.shape:
            raise UserError(f"a weight of {tuple(weight.shape)} does not fit one of {tuple(self.shape)}; load its own")
        device = weight.packed.device if self.packed.is_meta else self.packed.device
        self.packed, self.absmax, self.nested_absmax, self.offset, _, self.dtype = weight.to(device)

    def take(self, weight: Tensor) -> None:
        moved = weight if self.packed.is_meta else weight.to(self.packed.device)
        self.fill(quantize(moved, double=self.offset is not None))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.nf4, dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return frozen_linear(x, partial(dequantize, self.nf4), bias)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, double={self.offset is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> Nf4Weight:
        """What `to`, `cuda` and `half` do; the scales stay fp32, because rounding them would change every weight."""
        before = self.nf4
        super()._apply(fn, recurse)
        for name in ("absmax", "nested_absmax", "offset"):
            old, new = getattr(before, name), getattr(self, name)
            if old is not None and new.dtype != old.dtype:
                setattr(self, name, old.to(new.device))
        return self
