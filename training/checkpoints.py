"""Checkpoints that hold all an exact resume needs, as safetensors and JSON: nothing has to be unpickled.

Weights and optimizer state lie in them whole, under the names of the bare model, however the processes share them in
memory. So a checkpoint does not depend on the number of processes or on the strategy that wrote it.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import TEMPORARY_SUFFIX, atomic_directory, remove_temporaries, write_json
from common.runs import AVERAGE, Checkpoint, CheckpointError, Run, write_checkpoint_manifest
from model import Decoder
from model.adapters.attach import trained_state
from model.tensor_files import some
from training.averaging import WeightAverage
from training.distribution import release_gathered, share_of, whole

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Snapshot:
    """Whole weights and optimizer state, on the CPU; what is whole there already is not copied."""

    weights: Tensors  # without the frozen ones of a base, which the run began with
    optimizer: Tensors  # as `parameter:key`
    optimizer_scalars: dict[str, Any]  # everything in the optimizers' state that is not a tensor, likewise
    average: Tensors  # of the weights, empty when none is kept


def take_snapshot(
    model: Decoder, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None, keep: bool
) -> Snapshot:
    """Gather what a checkpoint holds; all processes take part, and those that do not `keep` it return an empty one.

    Shards are gathered tensor by tensor, so a process that keeps nothing never holds more than one whole tensor.
    """
    release_gathered(model)
    weights = _gather(trained_state(model), keep)
    tensors, scalars = _flatten_optimizers(model, optimizers)
    averages = {**weights, **_gather(average.averages, keep)} if average else {}
    return Snapshot(weights, _gather(tensors, keep), scalars, averages)


def _gather(tensors: Tensors, keep: bool) -> Tensors:
    gathered: Tensors = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        value = whole(tensor)
        if keep:
            value = value.cpu().contiguous()
            # Tables that 8-bit optimizers share between parameters; a file refuses what lies in the same place.
            place = value.untyped_storage().data_ptr()
            gathered[name] = value.clone() if place in places else value
            places.add(place)
    return gathered


def save_checkpoint(
    run: Run, snapshot: Snapshot, state: dict[str, Any], random_states: list[dict[str, Any]]
) -> Checkpoint:
    """Write `checkpoints/step_XXXXXXXX/` whole or not at all. `random_states` has one entry a process.

    Raises:
        UserError: the disk refused the write (full, say); earlier checkpoints are untouched.
    """
    path = run.checkpoint_path(int(state["step"]))
    try:
        with atomic_directory(path) as directory:
            save_file(snapshot.weights, _file(directory, "model"))
            save_file(snapshot.optimizer, _file(directory, "optimizer"))
            if snapshot.average:
                save_file(snapshot.average, directory / AVERAGE)
            for rank, random_state in enumerate(random_states):
                save_file(random_state["tensors"], _file(directory, f"random_{rank:05d}"))
            python_random = [random_state["python"] for random_state in random_states]
            all_state = {**state, "optimizer": snapshot.optimizer_scalars, "python_random": python_random}
            write_json(directory / "state.json", all_state)
            write_checkpoint_manifest(directory)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(run.path).free / 1e6
        newest = run.checkpoints()
        kept = f"{newest[-1].path} is whole" if newest else "there is no earlier one"
        raise UserError(
            f"checkpoint {path} could not be written ({error}); {free:,.0f} MB are free there. Earlier checkpoints are "
            f"untouched ({kept}): make room, then run the same command again to go on"
        ) from error
    return Checkpoint(path, int(state["step"]))


def load_checkpoint(
    checkpoint: Checkpoint,
    model: Decoder,
    optimizers: list[torch.optim.Optimizer],
    average: WeightAverage | None,
) -> dict[str, Any]:
    """Put weights and optimizer state back in place; returns `state.json`. The random state is restored separately.

    An average that the checkpoint does not have begins as its weights.

    Every process reads the files itself, tensor by tensor, and keeps its share of each.

    Raises:
        UserError: the checkpoint belongs to another architecture.
    """
    places = trained_state(model)
    weights = {name: share_of(value, places.get(name)) for name, value in _read(_file(checkpoint.path, "model"))}
    if weights.keys() != places.keys():
        raise UserError(
            f"{checkpoint.path} does not fit the configured model: of {some(weights.keys() ^ places.keys())} one has "
            "more than the other"
        )
    try:
        model.load_state_dict(weights, strict=False)  # what is frozen is in place already
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path} does not fit the configured model: {error}") from error
    if average:
        file = checkpoint.path / AVERAGE
        values = _read(file) if file.is_file() else _read(_file(checkpoint.path, "model"))
        average.load({name: share_of(value, places.get(name)) for name, value in values})
    state = checkpoint.state
    _restore_optimizers(model, optimizers, _read(_file(checkpoint.path, "optimizer")), state["optimizer"])
    return state


def newest_whole(run: Run) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, and what is wrong with the newer ones, which are renamed out of the way.

    Half-written leftovers of a killed run are swept.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    for directory in (run.path, run.checkpoint_root):
        remove_temporaries(directory)
    damaged: list[Checkpoint] = []
    damage: list[str] = []
    for checkpoint in reversed(run.checkpoints()):
        try:
            checkpoint.verify()
        except CheckpointError as error:
            damaged.append(checkpoint)
            damage.append(str(error))
            continue
        for other in damaged:
            other.path.rename(_free_name(other.path.with_name(f"damaged_{other.path.name}")))
        return checkpoint, damage
    if damage:
        raise UserError(
            "no checkpoint of this run is whole:\n  "
            + "\n  ".join(damage)
            + f"\nrestore one from a backup, or delete {run.path} to start over"
        )
    return None, damage


def _free_name(path: Path) -> Path:
    """`path`, or with a number behind it when it is taken."""
    candidates = itertools.chain([path], (path.with_name(f"{path.name}_{n}") for n in itertools.count(2)))
    return next(candidate for candidate in candidates if not candidate.exists())


def prune(run: Run, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the one with the lowest validation loss."""
    checkpoints = run.checkpoints()
    best = min(checkpoints, key=lambda checkpoint: checkpoint.validation_loss, default=None)
    for checkpoint in checkpoints[: -max(1, keep)]:
        if best is None or checkpoint.step != best.step or math.isinf(best.validation_loss):
            # Renamed first: a directory with a checkpoint's name is never half deleted.
            doomed = checkpoint.path.with_name(checkpoint.path.name + TEMPORARY_SUFFIX)
            checkpoint.path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def capture_random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator of this process."""
    _, numpy_keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(numpy_keys).astype(np.int64))}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        tensors["mps"] = torch.mps.get_rng_state()
    version, keys, gauss = random.getstate()
    return {"tensors": tensors, "python": [version, list(keys), gauss, [int(position), int(has_gauss), float(cached)]]}


def restore_random_state(checkpoint: Checkpoint, rank: int, device: torch.device) -> None:
    """Undo `capture_random_state`. A process that the saved run did not have keeps its freshly seeded state."""
    file = _file(checkpoint.path, f"random_{rank:05d}")
    if not file.is_file():
        return
    tensors = load_file(file)
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    if device.type == "mps" and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])
    version, keys, gauss, (position, has_gauss, cached) = checkpoint.state["python_random"][rank]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.safetensors"


def _read(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a safetensors file, one at a time."""
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dictionary
            yield name, tensors.get_tensor(name)


def _flatten_optimizers(model: Decoder, optimizers: list[torch.optim.Optimizer]) -> tuple[Tensors, dict[str, Any]]:
    """Optimizer state under parameter names: tensors as `name:key`, everything else for JSON."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: Tensors = {}
    scalars: dict[str, Any] = {}
    state = [item for optimizer in optimizers for item in optimizer.state.items()]
    for parameter, values in state:
        for key, value in values.items():
            full = f"{names[id(parameter)]}:{key}"
            if isinstance(value, torch.Tensor):
                tensors[full] = value
            else:
                scalars[full] = value
    return tensors, scalars


def _restore_optimizers(
    model: Decoder,
    optimizers: list[torch.optim.Optimizer],
    tensors: Iterator[tuple[str, torch.Tensor]],
    scalars: dict[str, Any],
) -> None:
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    state: dict[str, dict[str, Any]] = {}
    for full, value in itertools.chain(tensors, scalars.items()):
        name, key = full.rsplit(":", 1)
        # A mean over gradients has the parameter's shape and is shared out like it; a step count is not.
        spread = isinstance(value, torch.Tensor) and name in parameters and value.shape == parameters[name].shape
        state.setdefault(name, {})[key] = share_of(value, parameters[name]) if spread else value
    for optimizer in optimizers:
        # Through PyTorch's own loading, which knows which values must lie on the parameter's device.
        empty = optimizer.state_dict()
        order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        numbered = {number: state[name] for number, name in enumerate(order) if name in state}
        optimizer.load_state_dict({**empty, "state": numbered})
