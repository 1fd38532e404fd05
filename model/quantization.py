"""Weights of a decoder that only predicts in fewer bits: bf16, int8 or int4. A token then reads less memory, which is
what its time goes into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model import Decoder
from model.frozen import frozen_linear
from model.native import library
from model.native.library import Matrix
from model.slots import Embedding, Linear, QuantizedWeight

Bits = Literal["bf16", "int8", "int4"]
GROUP, LANES = 32, 16  # of native/products.h: inputs that share a scale, outputs side by side
ROUNDING = (0.85, 0.9, 0.95, 1.0, 1.05)  # scales to choose from, as shares of that which reaches the largest weight
MANY = 32  # rows from which on a product in bf16 is faster in PyTorch


def quantize(model: Decoder, bits: Bits) -> None:
    """Keep all matrices of `model` in so many bits from now on, each rounded on its own; nothing stays in fp32 but
    gains, biases, positions, adapters and value embeddings.

    int8 has a scale for every output, int4 one for every 32 inputs of it, both without an offset. With int4 the output
    head, and so a tied embedding, is in int8, because rounding costs most there (docs/log.md). Adapters stay beside the
    weights as they are; one that is to be merged is to be merged before.

    Raises:
        UserError: a weight is quantised already, or not finite.
    """
    for name, layer in layers_of(model):
        if layer.quantized is not None:
            raise UserError(f"{name} is quantised already; load the model with its weights as they were trained")
        outer = layer is model.head or layer is model.embedding
        kept = PackedWeight("int8" if outer and bits == "int4" else bits, *layer.weight.shape)
        try:
            kept.take(layer.weight.detach())
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        layer.keep_in(kept)


def layers_of(model: Decoder) -> Iterator[tuple[str, Linear | Embedding]]:
    """The layers whose matrices are quantised, by name; of adapters none."""
    for name, module in model.named_modules():
        if isinstance(module, (Linear, Embedding)) and name != "position_embedding":
            yield name, module


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
        if not weight.isfinite().all():
            raise UserError("the weight is not finite; the model has diverged")
        weight = weight.float()
        if self.bits == "bf16":
            self.codes, self.scales = weight.bfloat16(), None
        else:
            rows, columns = self.shape
            padded = F.pad(weight, (0, -columns % GROUP, 0, -rows % LANES)).unflatten(1, (-1, GROUP))
            self.codes, self.scales = _int8(padded) if self.bits == "int8" else _int4(padded)

    def rows(self, ids: Tensor) -> Tensor:
        """What the bits of these rows stand for: `ids` (...) int64 -> (..., in) fp32."""
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
        """fp32 where the native kernels run; there inputs of int8 and int4 are rounded to 8 bits in groups of 32."""
        if (torch.is_grad_enabled() and x.requires_grad) or not self.is_native:
            return frozen_linear(x, self.dequantized, bias)
        if self.bits == "bf16" and x.numel() >= MANY * x.shape[-1]:
            return F.linear(x.bfloat16(), self.codes, None if bias is None else bias.bfloat16()).float()
        return library.multiply(self.matrix(bias), x.float())

    @property
    def is_native(self) -> bool:
        return self.codes.device.type == "cpu" and library.available()

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


def as_matrix(layer: Linear | Embedding) -> Matrix | None:
    """The weight and bias of a layer for the native kernels; None where they cannot read it."""
    bias = layer.bias if isinstance(layer, Linear) else None
    if isinstance(layer.quantized, PackedWeight):
        return layer.quantized.matrix(bias)
    if layer.quantized is not None or layer.weight.dtype != torch.float32:
        return None
    return library.matrix("fp32", layer.weight, layer.weight.shape, None, bias)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:  # (rows, groups, 32) -> codes and scales as in `PackedWeight`
    scales = weight.abs().amax(dim=(1, 2)) / 127
    codes = (weight / scales.where(scales > 0, 1)[:, None, None]).round() + 128
    # (blocks, lanes, groups, steps, 4) -> (blocks, groups, steps, lanes, 4)
    return codes.to(torch.uint8).unflatten(0, (-1, LANES)).unflatten(-1, (-1, 4)).permute(0, 2, 3, 1, 4).contiguous(), scales


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:  # as `_int8`
    # Codes reach from -8 to 7, so the sign of a scale is such that the largest weight of the group becomes -8.
    extreme = weight.gather(-1, weight.abs().argmax(-1, keepdim=True)) / -8
    best, least = extreme, torch.full_like(extreme, torch.inf)
    for share in ROUNDING:
        scales = (extreme * share).bfloat16().float()
        error = (weight - _four_bits(weight, scales) * scales).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    codes = (_four_bits(weight, best) + 8).to(torch.uint8).unflatten(0, (-1, LANES)).unflatten(-1, (2, -1, 4))
    low, high = codes.permute(3, 0, 2, 4, 1, 5)  # (blocks, groups, steps, lanes, 4)
    return low | high << 4, best.squeeze(-1).unflatten(0, (-1, LANES)).mT.bfloat16().contiguous()


def _four_bits(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales.where(scales != 0, 1)).round().clamp(-8, 7)
