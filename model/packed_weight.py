"""A frozen matrix in bf16, int8 or int4, in the layout of the native kernels or, without them, of PyTorch's."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model.frozen import frozen_linear
from model.native import library
from model.native.library import Matrix
from model.slots import QuantizedWeight

Bits = Literal["bf16", "int8", "int4"]
GROUP, LANES = 32, 16  # of native/products.h: inputs that share a scale, outputs side by side
ROUNDING = (0.85, 0.9, 0.95, 1.0, 1.05)  # scales to choose from, as shares of that which reaches the largest weight
MANY = 32  # rows from which on a product in bf16 is faster in PyTorch


class PackedWeight(QuantizedWeight):
    """A matrix (out, in) in the layout that `native/products.h` multiplies with.

    int8: codes (blocks, groups, 8, 16, 4), unsigned with 128 for zero: 16 outputs side by side, and for each four
    inputs at a time; scales (blocks * 16,) fp32. int4: codes (blocks, groups, 4, 16, 4), in whose bytes the lower four
    bits are of the first 16 inputs of a group and the upper ones of the other 16, with 8 for zero; scales (blocks,
    groups, 16) bf16. bf16: codes (out, in). What is missing to whole blocks and groups is zero.
    """

    codes: Tensor
    scales: Tensor | None

    def __init__(self, bits: Bits, out_features: int, in_features: int) -> None:
        """A matrix without values, that waits for `take`."""
        super().__init__()
        self.bits, self.shape = bits, torch.Size((out_features, in_features))
        self.register_buffer("codes", torch.empty(0), persistent=False)
        self.register_buffer("scales", None, persistent=False)

    def take(self, weight: Tensor) -> None:
        if self.bits == "bf16":
            self.codes = checked(weight).bfloat16()
        elif self.bits == "int8":
            codes, scales = round_to_int8(padded(weight))
            # (blocks, lanes, groups, steps, 4) -> (blocks, groups, steps, lanes, 4)
            split = (codes + 128).to(torch.uint8).unflatten(0, (-1, LANES)).unflatten(-1, (-1, 4))
            self.codes, self.scales = split.permute(0, 2, 3, 1, 4).contiguous(), scales
        else:
            codes, scales = round_to_int4(padded(weight))
            # (blocks, lanes, groups, halves, steps, 4) -> (halves, blocks, groups, steps, lanes, 4)
            split = (codes + 8).to(torch.uint8).unflatten(0, (-1, LANES)).unflatten(-1, (2, -1, 4))
            low, high = split.permute(3, 0, 2, 4, 1, 5).contiguous()
            self.codes = low | high << 4
            self.scales = scales.unflatten(0, (-1, LANES)).mT.bfloat16().contiguous()

    def rows(self, ids: Tensor) -> Tensor:
        if self.scales is None:
            return self.codes[ids].float()
        block, lane = ids // LANES, ids % LANES
        codes = self.codes[block, :, :, lane].flatten(-2)  # (..., groups, bytes)
        if self.bits == "int8":
            values = (codes.float() - 128) * self.scales[ids][..., None, None]
        else:
            values = torch.cat((codes & 15, codes >> 4), dim=-1).float() - 8
            values = values * self.scales[block, :, lane][..., None]
        return values.flatten(-2)[..., : self.shape[1]]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.rows(torch.arange(self.shape[0], device=self.codes.device)).to(dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Where the native kernels run, inputs of int8 and int4 are rounded to 8 bits in groups of 32."""
        if torch.is_grad_enabled() and x.requires_grad:
            return frozen_linear(x, self.dequantized, bias)
        native = self.codes.device.type == "cpu" and library.available()
        if self.bits == "bf16" and (not native or x.numel() >= MANY * x.shape[-1]):
            return F.linear(x.bfloat16(), self.codes, None if bias is None else bias.bfloat16()).type_as(x)
        if not native:
            return frozen_linear(x, self.dequantized, bias)
        return library.multiply(self.matrix(bias), x.float()).type_as(x)

    def matrix(self, bias: Tensor | None) -> Matrix:
        """For the native kernels."""
        return library.matrix(self.bits, self.codes, self.shape, self.scales, bias)

    def extra_repr(self) -> str:
        return f"{self.bits}, {self.shape[0]}, {self.shape[1]}"

    def _apply(self, fn: Any, recurse: bool = True) -> PackedWeight:
        """What `to`, `cuda` and `half` do: the device changes, what is stored does not."""
        codes, scales = self.codes, self.scales
        super()._apply(fn, recurse)
        self.codes = codes.to(self.codes.device)
        self.scales = None if scales is None else scales.to(self.codes.device)
        return self


class TorchInt8(QuantizedWeight):
    """A matrix (out, in) on a CPU without native kernels, multiplied by PyTorch's in bf16. It is not to be moved.

    It is filled up to whole blocks and groups too: PyTorch's kernels read past the end of others.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, out_features: int, in_features: int) -> None:
        """A matrix without values, that waits for `take`."""
        super().__init__()
        self.shape = torch.Size((out_features, in_features))

    def take(self, weight: Tensor) -> None:
        codes, scales = round_to_int8(padded(weight))
        self.register_buffer("codes", codes.flatten(1).to(torch.int8), persistent=False)
        self.register_buffer("scales", scales.bfloat16(), persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        return self.codes[ids][..., : self.shape[1]].float() * self.scales[ids].float()[..., None]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.rows(torch.arange(self.shape[0])).to(dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return frozen_linear(x, self.dequantized, bias)
        flat = F.pad(x.reshape(-1, self.shape[1]).bfloat16(), (0, -self.shape[1] % GROUP))
        y = self.multiplied(flat)[:, : self.shape[0]].type_as(x).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    def multiplied(self, x: Tensor) -> Tensor:  # (rows, in filled up) -> (rows, out filled up), bf16
        return torch.ops.aten._weight_int8pack_mm(x, self.codes, self.scales)


class TorchInt4(TorchInt8):
    """The same in int4."""

    def take(self, weight: Tensor) -> None:
        codes, scales = round_to_int4(padded(weight))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes.flatten(1) + 8).int(), 1)
        self.register_buffer("codes", packed, persistent=False)
        pairs = torch.stack((scales.mT, torch.zeros_like(scales.mT)), dim=-1)  # (groups, out, scale and offset)
        self.register_buffer("scales", pairs.bfloat16().contiguous(), persistent=False)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.linear(torch.eye(self.shape[1]), None).T.to(dtype)

    def multiplied(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, GROUP, self.scales)


def checked(weight: Tensor) -> Tensor:
    """`weight` itself. Raises UserError when it is not finite."""
    if not weight.isfinite().all():
        raise UserError("the weight is not finite; the model has diverged")
    return weight


def padded(weight: Tensor) -> Tensor:  # (rows, columns) -> (blocks * 16, groups, 32)
    """With zeros to whole blocks and groups. Raises UserError when it is not finite."""
    rows, columns = weight.shape
    return F.pad(checked(weight).float(), (0, -columns % GROUP, 0, -rows % LANES)).unflatten(1, (-1, GROUP))


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:  # (rows, groups, inputs)
    """Integers from -127 to 127 of the same shape, and the scale of each row, (rows,)."""
    scales = weight.float().abs().amax(dim=(1, 2)) / 127
    return (weight / scales.where(scales > 0, 1)[:, None, None]).round(), scales


def round_to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:  # (rows, groups, inputs)
    """Integers from -8 to 7 of the same shape, and the scale of each group, (rows, groups), which bf16 holds exactly.

    Of a few scales the one with the smallest squared error is taken. They may be negative: the largest weight of a
    group becomes -8, which has no positive counterpart.
    """
    extreme = weight.gather(-1, weight.abs().argmax(-1, keepdim=True)) / -8
    best, least = extreme, torch.full_like(extreme, torch.inf)
    for share in ROUNDING:
        scales = (extreme * share).bfloat16().float()
        error = (weight - _nearest(weight, scales) * scales).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return _nearest(weight, best), best.squeeze(-1)


def _nearest(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales.where(scales != 0, 1)).round().clamp(-8, 7)
