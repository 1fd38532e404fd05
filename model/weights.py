"""A decoder from stored weights, tensor by tensor: besides the model, memory holds one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from model.config import ModelConfig
from model.decoder import Decoder
from model.tensor_files import TensorFiles, some


def load_decoder(config: ModelConfig, path: Path, device: torch.device) -> Decoder:
    """The decoder whose weights are in the safetensors file `path`, as fp32 on `device`.

    Raises:
        UserError: the file is damaged, or its tensors are not those of `config`.
    """
    model = empty_decoder(config, device)
    files = TensorFiles.of_file(path)
    fill(model, ((name, files.read(name)) for name in files.files), str(path))
    return model


def empty_decoder(config: ModelConfig, device: torch.device) -> Decoder:
    """A decoder whose weights are still to be filled in."""
    with torch.device("meta"):  # none are drawn that would be overwritten
        model = Decoder(config)
    model.to_empty(device=device)
    model.make_tables()
    return model


@torch.no_grad()
def fill(model: Decoder, tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Put named tensors into `model`, in its own dtype.

    Raises:
        UserError: one is missing, of another shape, or of no use there; the message begins with `where`.
    """
    places = dict(model.named_parameters())
    for name, tensor in tensors:
        place = places.pop(name, None)
        if place is None:
            raise UserError(f"{where}: {name} does not belong to this model")
        if place.shape != tensor.shape:
            raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)}, the model needs {tuple(place.shape)}")
        place.copy_(tensor)
    if places:
        raise UserError(f"{where} lacks {some(places)}")
