"""Beginning a run with the weights of another model, read tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from common.cli import from_dict
from common.errors import UserError
from common.runs import RUNS_ROOT, Run
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_import import pack
from model import Decoder, ModelConfig
from model.convert.source import Source, open_source, read_config_file
from model.weights import fill
from training.config import RunConfig

# Fields that a run may set apart from where its weights come from; those of the first weights do not matter.
FREE = ("vocab_size", "context_length", "window", "document_start", "dropout")
OF_INITIALIZATION = ("init_std", "embedding_std", "zero_init_projections")


def model_of_start(config: RunConfig, flags: Sequence[str]) -> RunConfig:
    """`config` with the architecture of the weights that it begins with, if a flag or the config itself names some.

    A config that names weights and a model as well keeps its model, which then has to fit; `--start-from` replaces it.
    A run that has begun already says itself what its model is, so the weights may be gone by then.

    Raises:
        UserError: there are no such weights.
    """
    flag = _value(flags, "start-from")
    place = config.start_from if flag is None else flag
    if place in (None, "None") or (flag is None and config.model != ModelConfig()):
        return config
    run = Run(RUNS_ROOT / (_value(flags, "name") or config.name))
    begun = read_config_file(run.config) if run.config.is_file() else {}
    if begun.get("start_from") == place and run.checkpoints():
        model = from_dict(ModelConfig, begun.get("model") or {}, where=f"{run.config}: model")
    else:
        model = open_source(str(place)).config
    return replace(config, model=model)


def _value(flags: Sequence[str], name: str) -> str | None:
    """What the flag `--name` is given, as `--name value` or `--name=value`."""
    for number, flag in enumerate(flags):
        given, equals, value = flag.partition("=")
        if given.replace("_", "-") == f"--{name}":
            return value if equals else next(iter(flags[number + 1 :]), None)
    return None


def start(model: Decoder, source: Source) -> None:
    """Put the weights of `source` into `model`.

    A larger vocabulary gets rows that are the mean of all others (Hewitt 2021): the new tokens begin as likely as the
    average one. Of a smaller vocabulary or, with learned positions, a shorter context, the first rows are taken.

    Raises:
        UserError: they are those of another architecture.
    """
    check_fits(model.config, source)
    fill(model, map(partial(_fitted, model.config), source.tensors()), str(source.path))


def check_tokenizer(source: Source, tokenizer: Tokenizer) -> None:
    """Raises UserError when the weights of `source` were trained with another tokenizer."""
    content = pack(source.path) if source.is_theirs else Run(source.path).tokenizer.read_bytes()
    if hashlib.sha256(content).hexdigest() != tokenizer.sha256:
        raise UserError(
            f"{source.path} has another tokenizer than the data ({tokenizer.path}): its weights would take the ids for "
            f"other text. Make the data with --tokenizer.kind existing --tokenizer.path {source.path}, name other data "
            "with --data.directory, or say --other-tokenizer if that is meant"
        )


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
