"""Checkpoints that hold all an exact resume needs, as safetensors and JSON: nothing has to be unpickled."""

from __future__ import annotations

import itertools
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import TEMPORARY_SUFFIX, atomic_directory, remove_temporaries, sha256_of, write_json
from common.runs import Checkpoint, CheckpointError, Run
from model import Decoder

Tensors = dict[str, torch.Tensor]


def save_checkpoint(
    run: Run,
    model: Decoder,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    random_states: list[dict[str, Any]],
) -> Checkpoint:
    """Write `checkpoints/step_XXXXXXXX/` whole or not at all. `random_states` has one entry a process.

    Raises:
        UserError: the disk refused the write (full, say); earlier checkpoints are untouched.
    """
    path = run.checkpoint_path(int(state["step"]))
    try:
        with atomic_directory(path) as directory:
            weights = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(weights, _file(directory, "model"))
            tensors, optimizer_state = _flatten_optimizers(model, optimizers)
            save_file(tensors, _file(directory, "optimizer"))
            for rank, random_state in enumerate(random_states):
                save_file(random_state["tensors"], _file(directory, f"random_{rank:05d}"))
            python_random = [random_state["python"] for random_state in random_states]
            all_state = {**state, "optimizer": optimizer_state, "python_random": python_random}
            write_json(directory / "state.json", all_state)
            files = {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
                for file in sorted(directory.iterdir())
            }
            write_json(directory / "manifest.json", {"files": files})
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(run.path).free / 1e6
        newest = run.checkpoints()
        kept = f"{newest[-1].path} is whole" if newest else "there is no earlier one"
        raise UserError(
            f"checkpoint {path} could not be written ({error}); {free:,.0f} MB are free there. Earlier checkpoints are "
            f"untouched ({kept}): make room, then run the same command again to go on"
        ) from error
    return Checkpoint(path, int(state["step"]))


def load_checkpoint(checkpoint: Checkpoint, model: Decoder, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put weights and optimizer state back in place; returns `state.json`. The random state is restored separately.

    Raises:
        UserError: the checkpoint belongs to another architecture.
    """
    try:
        model.load_state_dict(load_file(_file(checkpoint.path, "model")))
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path} does not fit the configured model: {error}") from error
    state = checkpoint.state
    _restore_optimizers(model, optimizers, load_file(_file(checkpoint.path, "optimizer")), state["optimizer"])
    return state


def newest_whole(run: Run) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, and what is wrong with the newer ones, which are renamed out of the way.

    Half-written leftovers of a killed run are swept.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    remove_temporaries(run.checkpoint_root)
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
                tensors[full] = value.contiguous()
            else:
                scalars[full] = value
    return tensors, scalars


def _restore_optimizers(
    model: Decoder, optimizers: list[torch.optim.Optimizer], tensors: Tensors, scalars: dict[str, Any]
) -> None:
    state: dict[str, dict[str, Any]] = {}
    for full, value in {**tensors, **scalars}.items():
        name, key = full.rsplit(":", 1)
        state.setdefault(name, {})[key] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        # Through PyTorch's own loading, which knows which values must lie on the parameter's device.
        empty = optimizer.state_dict()
        order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        numbered = {number: state[name] for number, name in enumerate(order) if name in state}
        optimizer.load_state_dict({**empty, "state": numbered})
