"""From a run directory to a model that is ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from common.cli import from_dict
from common.errors import UserError
from common.files import read_json
from common.runs import Checkpoint, Run, choose_checkpoint
from data_pipeline.tokenizer import Tokenizer
from model import Decoder, ModelConfig
from model.convert.opening import adapter_of, load_adapted, open_source
from model.convert.starting import base_decoder
from model.device import DeviceName, choose_device
from model.weights import load_decoder


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint's network in evaluation mode, with all that belongs to it."""

    model: Decoder
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    run: Run
    config: dict[str, Any]  # the run's whole config.json
    device: torch.device


def load_run(run: Run, which: str = "best", device: DeviceName = "auto") -> LoadedRun:
    """Load checkpoint `which` ("best", "last" or a step) of `run`.

    Raises:
        UserError: there is no such whole checkpoint, or `load_checkpoint` refused it.
    """
    return load_checkpoint(run, choose_checkpoint(run, which), device)


def load_checkpoint(run: Run, checkpoint: Checkpoint, device: DeviceName = "auto", local_rank: int = 0) -> LoadedRun:
    """Load a checkpoint; only safetensors are read, nothing is unpickled. Each process of several takes a GPU.

    Raises:
        UserError: a damaged config, a tokenizer that the checkpoint was not trained with, weights that do not fit the
            config, or an adapter whose base is gone.
    """
    config = read_config(run)
    tokenizer = Tokenizer(run.tokenizer)
    model_config = from_dict(ModelConfig, config["model"], where=f"{run.config}: model")
    _check_tokenizer(run, checkpoint, tokenizer, model_config)
    target = choose_device(device, local_rank)
    if adapter_of(config, run) is not None:
        model = load_adapted(run, checkpoint, config, target)
        return LoadedRun(model.eval(), tokenizer, checkpoint, run, config, target)
    try:
        model = load_decoder(model_config, checkpoint.weights, target)
    except UserError as error:
        raise UserError(
            f"{error}; restore the {run.config} that these weights were trained with, or train again under another "
            "--name"
        ) from error
    return LoadedRun(model.eval(), tokenizer, checkpoint, run, config, target)


def load_base(run: Run, device: DeviceName = "auto") -> Decoder:
    """The model that `run` began with, in evaluation mode.

    Raises:
        UserError: it did not begin with one, or that is no longer there, or is another one now.
    """
    config = read_config(run)
    if config.get("start_from") is None:
        raise UserError(f"{run.path} did not start from another model")
    source = open_source(config["start_from"])
    model_config = from_dict(ModelConfig, config["model"], where=f"{run.config}: model")
    return base_decoder(model_config, source, choose_device(device)).eval()


def read_config(run: Run) -> dict[str, Any]:
    """The whole config.json of a run. Raises UserError when it is damaged."""
    try:
        config = read_json(run.config)
    except (OSError, ValueError) as error:
        raise UserError(f"{run.config} is damaged ({error}); train the run again under another --name") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"{run.config} has no section 'model'; train the run again under another --name")
    return config


def _check_tokenizer(run: Run, checkpoint: Checkpoint, tokenizer: Tokenizer, config: ModelConfig) -> None:
    trained_with = checkpoint.state.get("tokenizer_sha256")
    if trained_with != tokenizer.sha256:
        raise UserError(
            f"{run.tokenizer} (sha256 {tokenizer.sha256[:12]}) is not the tokenizer that {checkpoint.path.name} was "
            f"trained with (sha256 {str(trained_with)[:12]}); copy the right {Tokenizer.file_name} from the data "
            f"directory of the run into {run.path}"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{run.tokenizer} has {tokenizer.vocab_size} ids, but model.vocab_size in {run.config} is only "
            f"{config.vocab_size}: set model.vocab_size in the config file and train again"
        )
