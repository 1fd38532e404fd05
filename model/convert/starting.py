"""A decoder that begins with the weights of another model, read tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from common.errors import UserError
from model.config import ModelConfig
from model.convert.source import Source
from model.decoder import Decoder
from model.weights import FULL, Storage, empty_decoder, fill

# Fields that a run may set apart from where its weights come from; those of the first weights do not matter.
FREE = ("vocab_size", "context_length", "window", "document_start", "dropout")
OF_INITIALIZATION = ("init_std", "embedding_std", "zero_init_projections")


def base_decoder(config: ModelConfig, source: Source, device: torch.device, storage: Storage = FULL) -> Decoder:
    """A decoder with the weights of `source` on `device`, kept as `storage` says. Raises UserError as `start` does."""
    model = empty_decoder(config, device, storage)
    start(model, source)
    return model


def start(model: Decoder, source: Source) -> None:
    """Put the weights of `source` into `model`.

    A larger vocabulary gets rows that are the mean of all others (Hewitt 2021): the new tokens begin as likely as the
    average one. Of a smaller vocabulary or, with learned positions, a shorter context, the first rows are taken.

    Raises:
        UserError: they are those of another architecture.
    """
    check_fits(model.config, source)
    fill(model, map(partial(_fitted, model.config), source.tensors()), str(source.path))


def check_fits(config: ModelConfig, source: Source) -> None:
    """Raises UserError unless the weights of `source` mean the same in `config`."""
    theirs = asdict(source.config)
    different = [
        f"model.{name}: {theirs[name]} there, {value} here"
        for name, value in asdict(config).items()
        if value != theirs[name] and name not in (*FREE, *OF_INITIALIZATION)
    ]
    if different:
        raise UserError(
            f"the weights in {source.path} are of another architecture:\n  "
            + "\n  ".join(different)
            + "\nleave the model out of the config and the flags: --start-from takes it from there"
        )
    if config.position == "learned" and config.context_length > source.config.context_length:
        raise UserError(
            f"model.context_length {config.context_length} is longer than the {source.config.context_length} positions "
            f"that were learned in {source.path}"
        )


def _fitted(config: ModelConfig, named: tuple[str, Tensor]) -> tuple[str, Tensor]:
    name, tensor = named
    if name == "position_embedding.weight":
        return name, tensor[: config.context_length]
    if name in ("embedding.weight", "head.weight") or name.startswith("value_embeddings."):
        missing = config.vocab_size - len(tensor)
        mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype) if missing > 0 else tensor[:0]
        return name, torch.cat((tensor[: config.vocab_size], mean.expand(max(missing, 0), -1)))
    return name, tensor
