"""Weights to start from or to use: a run of this project, with its adapter if it trained one, or a Hugging Face
directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from common.cli import from_dict
from common.errors import UserError
from common.hub import is_address
from common.runs import Checkpoint, Run, choose_checkpoint, find_run
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_import import pack
from model.adapters.attach import attach, merge, trained_of_base, trained_state
from model.adapters.config import AdapterConfig, Method
from model.adapters.fingerprint import base_fingerprint, compare_bases
from model.config import ModelConfig
from model.convert.source import Source, open_theirs, read_config_file
from model.convert.starting import base_decoder
from model.decoder import Decoder
from model.tensor_files import TensorFiles, TensorsInMemory, some
from model.weights import FULL, Storage, make_dense

MergeBase = Literal["original", "dequantized"]
"""Into what an adapter is merged that was trained on a quantized base: that base as it was before, or as its bits have
it, which is the model that was trained."""

NEVER_MERGED: dict[Method, str] = {
    "prefix": "a prefix (keys and values before every text)",
    "prompt": "a soft prompt (embeddings before every text)",
    "bottleneck": "bottleneck adapters (small networks behind layers)",
}


def open_source(path: str | Path) -> Source:
    """The weights at `path`: a run (a path, or a name below runs/), a Hugging Face directory, or hf://ORG/NAME.

    Raises:
        UserError: there is neither, it is damaged, or it is a model that this decoder cannot express.
    """
    return open_theirs(path) if _is_theirs(path) else open_run(path)


def architecture_of(path: str | Path) -> ModelConfig:
    """The architecture of the weights at `path`, without opening those of a run. Raises UserError as `open_source`."""
    if _is_theirs(path):
        return open_theirs(path).config
    run = find_run(str(path))
    values = read_config_file(run.config)
    return from_dict(ModelConfig, values.get("model") or {}, where=f"{run.config}: model")


def tokenizer_of(source: Source) -> Tokenizer:
    """The tokenizer that belongs to some weights. Raises UserError when there is none."""
    if source.is_theirs:
        return Tokenizer(source.path, pack(source.path))
    return Tokenizer(Run(source.path).tokenizer)


def _is_theirs(path: str | Path) -> bool:
    if is_address(path):
        return True
    file = Path(path) / "config.json"
    return file.is_file() and "model_type" in read_config_file(file)


def open_run(path: str | Path, which: str = "best", merge_base: MergeBase = "original") -> Source:
    """Checkpoint `which` of a run, an adapter merged into its base, in fp32.

    Raises:
        UserError: as `open_source` does; the adapter is of a kind that cannot be merged; or `merge_base` would change
            nothing, because there is no adapter or its base was not quantized.
    """
    run = find_run(str(path))
    values = read_config_file(run.config)
    if "model_type" in values:
        raise UserError(f"{run.path} is a directory of Hugging Face already, no run; from-hf makes one of it")
    config = from_dict(ModelConfig, values.get("model") or {}, where=f"{run.config}: model")
    checkpoint = choose_checkpoint(run, which)
    if merge_base != "original" and not is_quantized(values, run):
        raise UserError(
            f"--merge-base {merge_base} changes nothing of {run.path}, which trained no adapter on a quantized base; "
            "leave it out"
        )
    if adapter_of(values, run) is not None:
        model = load_merged(run, checkpoint, values, torch.device("cpu"), merge_base)
        return Source(run.path, config, TensorsInMemory(model.state_dict()))
    files = TensorFiles.of_file(checkpoint.weights)
    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in Decoder(config).named_parameters()}
    for name in {**expected, **files.files}:
        shape = files.layout(name)[0] if name in files.files else "missing"
        if shape != expected.get(name):
            raise UserError(f"{run.path}: {name} is {shape}; config.json makes it {expected.get(name, 'no tensor')}")
    return Source(run.path, config, files)


def adapter_of(values: dict[str, Any], run: Run) -> AdapterConfig | None:
    """The adapter that a run trained, by its config.json; None where it trained the whole model."""
    config = from_dict(AdapterConfig, values.get("adapter") or {}, where=f"{run.config}: adapter")
    return None if config.method == "none" else config


def is_quantized(values: dict[str, Any], run: Run) -> bool:
    """Whether a run trained an adapter on a quantized base, by its config.json."""
    return adapter_of(values, run) is not None and _storage_of(values, run).quantization != "none"


def _storage_of(values: dict[str, Any], run: Run) -> Storage:
    return from_dict(Storage, values.get("storage") or {}, where=f"{run.config}: storage")


def load_merged(
    run: Run, checkpoint: Checkpoint, values: dict[str, Any], device: torch.device, merge_base: MergeBase
) -> Decoder:
    """The decoder of a run that trained an adapter, which is merged into its base; all weights are fp32.

    Raises:
        UserError: as `load_adapted` does, or the adapter is of a kind that cannot be merged.
    """
    adapter = adapter_of(values, run)
    assert adapter is not None
    if adapter.method in NEVER_MERGED:
        raise UserError(
            f"{run.path} trained {NEVER_MERGED[adapter.method]}, which no weight could stand for, so it cannot be "
            f"merged into {values.get('start_from')}: hand on {run.path / 'adapter'} instead"
        )
    model = load_adapted(run, checkpoint, values, device, FULL if merge_base == "original" else None)
    merge(model, dequantize=True)
    make_dense(model)
    return model


@torch.no_grad()
def load_adapted(
    run: Run, checkpoint: Checkpoint, values: dict[str, Any], device: torch.device, storage: Storage | None = None
) -> Decoder:
    """The decoder of a run that trained an adapter: the base that it began with, and on it what was trained.

    Args:
        values: the run's config.json.
        storage: how the base is kept; by default as it was in training.

    Raises:
        UserError: the base is no longer there or another one, or the checkpoint does not fit it.
    """
    adapter = adapter_of(values, run)
    assert adapter is not None
    where = values.get("start_from")
    config = from_dict(ModelConfig, values["model"], where=f"{run.config}: model")
    try:
        source = open_source(str(where))
    except UserError as error:
        raise UserError(f"{run.path} is an adapter of {where}, which cannot be opened: {error}") from error
    if storage is None:
        storage = _storage_of(values, run)
    model = base_decoder(config, source, device, storage)
    attach(model, replace(adapter, prompt_text=None))  # with which it began
    found = base_fingerprint(model, trained_of_base(model))
    check_base(found, checkpoint.state.get("base_fingerprint"), f"{checkpoint.path} was trained on", str(where))
    files, places = TensorFiles.of_file(checkpoint.weights), trained_state(model)
    different = set(files.files) ^ set(places)
    if different:
        raise UserError(f"{checkpoint.weights} does not fit {run.config}: {some(different)} is in one of them only")
    for name, place in places.items():
        tensor = files.read(name)
        if tensor.shape != place.shape:
            raise UserError(
                f"{checkpoint.weights}: {name} has shape {tuple(tensor.shape)}, on {where} it is {tuple(place.shape)}"
            )
        place.copy_(tensor)
    return model


def check_base(found: str | None, expected: str | None, what: str, where: str) -> None:
    """Raises UserError when the fingerprint of a base is not the one that is expected; None where none is known."""
    if found and expected and compare_bases(found, expected) == "different":
        raise UserError(f"{what} another base than the one that now lies at {where}; put that back")
