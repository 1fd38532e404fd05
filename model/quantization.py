"""Weights of a decoder that only predicts in fewer bits: a token then reads less memory, which is what it waits for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from common.errors import UserError
from model.decoder import Decoder
from model.native import library
from model.native.library import Matrix
from model.packed_weight import Bits, PackedWeight, TorchInt4, TorchInt8
from model.slots import Embedding, Linear, QuantizedWeight

__all__ = ["Bits", "as_matrix", "layers_of", "quantize"]


@torch.no_grad()
def quantize(model: Decoder, bits: Bits) -> None:
    """Keep all matrices of `model` in so many bits from now on, each rounded on its own; nothing stays in fp32 but
    gains, biases, positions, adapters and value embeddings.

    int8 has a scale for every output, int4 one for every 32 inputs of it, both without an offset. With int4 the output
    head, and so a tied embedding, is in int8, because rounding costs most there (docs/log.md). Adapters stay beside the
    weights as they are; they are to be loaded before, because they know their base by its weights, and merged before.

    Raises:
        UserError: a weight is quantised already, or not finite.
    """
    for name, layer in layers_of(model):
        if layer.quantized is not None:
            raise UserError(f"{name} is quantised already; load the model with its weights as they were trained")
        outer = layer is model.head or layer is model.embedding
        kept = _container("int8" if outer and bits == "int4" else bits, layer.weight)
        try:
            kept.take(layer.weight)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        layer.keep_in(kept)


def _container(bits: Bits, weight: torch.Tensor) -> QuantizedWeight:
    if bits == "bf16" or weight.device.type != "cpu" or library.available():
        return PackedWeight(bits, *weight.shape)
    return (TorchInt8 if bits == "int8" else TorchInt4)(*weight.shape)


def layers_of(model: Decoder) -> Iterator[tuple[str, Linear | Embedding]]:
    """The layers whose matrices are quantised, by name; of adapters none."""
    for name, module in model.named_modules():
        if isinstance(module, (Linear, Embedding)) and name != "position_embedding":
            yield name, module


def as_matrix(layer: Linear | Embedding) -> Matrix | None:
    """The weight and bias of a layer for the native kernels; None where they cannot read it."""
    bias = layer.bias if isinstance(layer, Linear) else None
    if isinstance(layer.quantized, PackedWeight):
        return layer.quantized.matrix(bias)
    if layer.quantized is not None or layer.weight.dtype != torch.float32 or not layer.weight.is_contiguous():
        return None
    return library.matrix("fp32", layer.weight, layer.weight.shape, None, bias)
