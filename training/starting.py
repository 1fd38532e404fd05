"""What a run begins with: its data, its model, and what both take over from the weights that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from common.cli import from_dict
from common.errors import UserError
from common.runs import RUNS_ROOT, Run
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from model import Decoder, ModelConfig
from model.adapters.attach import attach
from model.convert.opening import architecture_of, tokenizer_of
from model.convert.source import Source, read_config_file
from model.convert.starting import base_decoder, start
from training.batches import CuratedData
from training.config import RunConfig
from training.data import TrainingData
from training.examples import ExampleData
from training.neftune import add_noise
from training.plan import BatchSplit, check_data


def model_of_start(config: RunConfig, flags: Sequence[str]) -> RunConfig:
    """`config` with the architecture of the weights that it begins with, if a flag or the config itself names some.

    A config that names weights and a model as well keeps its model, which then has to fit; `--start-from` replaces it.
    A single run that has begun says itself what its model is, so the weights may be gone by then; those of stages and
    folds are looked at whenever the command is given.

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
        model = architecture_of(str(place))
    return replace(config, model=model)


def _value(flags: Sequence[str], name: str) -> str | None:
    """What the flag `--name` is given, as `--name value` or `--name=value`."""
    for number, flag in enumerate(flags):
        given, equals, value = flag.partition("=")
        if given.replace("_", "-") == f"--{name}":
            return value if equals else next(iter(flags[number + 1 :]), None)
    return None


def open_data(config: RunConfig, run: Run, source: Source | None, split: BatchSplit) -> TrainingData:
    """What `run` trains on; `source` is what it begins with, None where it has begun already or begins anew.

    Raises:
        UserError: the data are missing, damaged, or made for another model or tokenizer.
    """
    begun = bool(run.checkpoints())
    if not config.examples.used:
        dataset = Dataset(config.data.directory)
        check_data(config, dataset)
        data = CuratedData(dataset, config.model.context_length, config.seed)
        if source is not None and not begun and not config.other_tokenizer:
            check_tokenizer(source, data.tokenizer)
        return data
    tokenizer = Tokenizer(run.tokenizer) if begun or source is None else tokenizer_of(source)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer of {config.start_from} has {tokenizer.vocab_size:,} ids, the model "
            f"{config.model.vocab_size:,}; leave model.vocab_size to that of the weights"
        )
    return ExampleData(config.examples, tokenizer, split.sequence, config.seed)


def make_model(config: RunConfig, source: Source | None, tokenizer: Tokenizer, device: torch.device) -> Decoder:
    """The model as it is before the first step, on `device`: fresh, from `source`, or that with a fresh adapter."""
    torch.manual_seed(config.seed)  # equal on all processes: they start from the same weights
    if config.adapter.method != "none":
        assert source is not None
        model = base_decoder(config.model, source, device, config.storage)
        text = config.adapter.prompt_text
        attach(model, config.adapter, prompt_ids=None if text is None else tokenizer.encode(text))
    else:
        model = Decoder(config.model)
        if source is not None:
            start(model, source)
    if config.examples.neftune_alpha:
        add_noise(model, config.examples.neftune_alpha)
    return model.to(device)


def check_tokenizer(source: Source, tokenizer: Tokenizer) -> None:
    """Raises UserError when the weights of `source` were trained with another tokenizer."""
    if tokenizer_of(source).sha256 != tokenizer.sha256:
        raise UserError(
            f"{source.path} has another tokenizer than the data ({tokenizer.path}): its weights would take the ids for "
            f"other text. Make the data with --tokenizer.kind existing --tokenizer.path {source.path}, name other data "
            "with --data.directory, or say --other-tokenizer if that is meant"
        )
