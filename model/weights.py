"""A decoder from stored weights, tensor by tensor: besides the model, memory holds one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from model.config import ModelConfig
from model.decoder import Decoder
from model.device import DTYPES
from model.nf4_weight import Nf4Weight
from model.slots import Linear, QuantizedWeight
from model.tensor_files import TensorFiles, some


@dataclass(frozen=True)
class Storage:
    """How the weights of a decoder are kept; what is not as in training, fp32, is frozen.

    It does not say in which precision they are multiplied: that is autocast's or, without it, fp32.
    """

    quantization: Literal["none", "nf4", "nf4-single"] = "none"
    """The matrices of the blocks: not quantised, in NF4 with scales of 8 bits, or with scales of fp32."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """All other matrices; gains, biases and scalars are always fp32. In half precision they take half the memory, but
    where products run in fp32 each use makes a copy."""


FULL = Storage()


def empty_decoder(config: ModelConfig, device: torch.device, storage: Storage = FULL) -> Decoder:
    """A decoder on `device` that waits for `fill`: nothing is drawn that would be overwritten.

    Raises UserError when the config is impossible.
    """
    with torch.device("meta"):
        model = Decoder(config)
        if storage.quantization != "none":
            for layer in model.blocks.modules():
                if isinstance(layer, Linear):
                    double = storage.quantization == "nf4"
                    layer.keep_in(Nf4Weight(layer.out_features, layer.in_features, double))
    for parameter in model.parameters():
        if parameter.ndim == 2 and storage.dtype != "fp32":
            parameter.data = parameter.data.to(DTYPES[storage.dtype])
            parameter.requires_grad = False
    model.to_empty(device=device)
    model.make_tables()
    return model


def load_decoder(config: ModelConfig, path: Path, device: torch.device, storage: Storage = FULL) -> Decoder:
    """The decoder whose weights are in the safetensors file `path`, on `device`.

    Raises:
        UserError: the file is damaged, or its tensors are not those of `config`, or cannot be stored so.
    """
    model = empty_decoder(config, device, storage)
    files = TensorFiles.of_file(path)
    fill(model, ((name, files.read(name)) for name in files.files), str(path))
    return model


@torch.no_grad()
def fill(model: Decoder, tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Put named tensors into `model`, each as the model keeps it.

    Raises:
        UserError: one is missing, of another shape, of no use there, or too large for how it is kept; the message
            begins with `where`.
    """
    places = dict(model.weights())
    for name, tensor in tensors:
        place = places.pop(name, None)
        if place is None:
            raise UserError(f"{where}: {name} does not belong to this model")
        if place.shape != tensor.shape:
            raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)}, the model needs {tuple(place.shape)}")
        _put(place, tensor, f"{where}: {name}")
    if places:
        raise UserError(f"{where} lacks {some(places)}")


@torch.no_grad()
def make_dense(model: Decoder) -> None:
    """Turn all that `model` keeps in fewer bits into the fp32 weights that these stand for."""
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.quantized is not None:
            layer.weight = nn.Parameter(layer.dense_weight(), requires_grad=False)
            layer.quantized = None
    model.float()


def _put(place: Tensor | QuantizedWeight, tensor: Tensor, where: str) -> None:
    if isinstance(place, QuantizedWeight):
        try:
            place.take(tensor)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return
    place.copy_(tensor)
    if place.dtype == torch.float16 and tensor.dtype != torch.float16 and not place.isfinite().all():
        raise UserError(f"{where} holds values that fp16 cannot; store the weights as bf16")
