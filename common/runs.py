"""The run directory: where everything of a run lies, and which of its checkpoints are whole.

A checkpoint is a directory `checkpoints/step_00000500/` that was renamed into place after all its files were synced.
Its `manifest.json` gives the size and sha256 of every other file, so that damage done later is noticed too.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import TEMPORARY_SUFFIX, read_json, sha256_of, write_json

RUNS_ROOT = Path("runs")
TRACKIO_ROOT = RUNS_ROOT / "trackio"  # one database a project, so that its runs can be compared
AVERAGE = "average.safetensors"  # in a checkpoint: the running average of the weights, where one is kept


class CheckpointError(Exception):
    """A checkpoint that is not whole; the message says which file and how."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int

    @property
    def weights(self) -> Path:
        """The weights to use: their running average where one was kept, as in every validation of that run."""
        average = self.path / AVERAGE
        return average if average.is_file() else self.path / "model.safetensors"

    @cached_property
    def state(self) -> dict[str, Any]:
        """`state.json`: step, tokens, seconds, val_loss (None where it was not evaluated) and what resuming needs."""
        return dict(read_json(self.path / "state.json"))

    @property
    def validation_loss(self) -> float:
        """Infinite where it was not evaluated, or cannot be read."""
        try:
            loss = self.state["val_loss"]
        except (OSError, ValueError, TypeError, KeyError):
            return math.inf
        return math.inf if loss is None else float(loss)

    def verify(self) -> None:
        """Raises CheckpointError when a file is missing, truncated, altered or cannot be read."""
        try:
            manifest = read_json(self.path / "manifest.json")
            files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: manifest.json is missing or unreadable ({error})") from error
        for name, (size, sha256) in files.items():
            file = self.path / name
            if not file.is_file():
                raise CheckpointError(f"{self.path}: {name} is missing")
            try:
                found = file.stat().st_size
                same = found == size and sha256_of(file) == sha256
            except OSError as error:
                raise CheckpointError(f"{self.path}: {name} cannot be read ({error})") from error
            if found != size:
                raise CheckpointError(f"{self.path}: {name} has {found} bytes, not {size}")
            if not same:
                raise CheckpointError(f"{self.path}: {name} does not have the sha256 it was written with")


def write_checkpoint_manifest(directory: Path) -> None:
    """Put down size and sha256 of every file in a checkpoint's directory, by which `verify` knows it whole."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(directory.iterdir())
    }
    write_json(directory / "manifest.json", {"files": files})


@dataclass(frozen=True)
class Run:
    """Paths of one run, `runs/<name>/`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def generations(self) -> Path:
        return self.path / "generations.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoint_root(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoint_root / f"step_{step:08d}"

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints that have their final name, oldest first; not verified."""
        found = []
        for path in self.checkpoint_root.glob("step_*"):
            number = path.name.removeprefix("step_")
            if number.isdigit() and path.is_dir():
                found.append(Checkpoint(path, int(number)))
        return sorted(found, key=lambda checkpoint: checkpoint.step)


def find_run(name: str | None) -> Run:
    """The run called `name` (a name below `runs/` or a path), or without a name the newest one with a checkpoint.

    Raises:
        UserError: there is no such run; the message lists those there are.
    """
    whole = [path for path in RUNS_ROOT.glob("*/config.json") if not path.parent.name.endswith(TEMPORARY_SUFFIX)]
    known = sorted(whole, key=lambda path: path.stat().st_mtime)
    if name is None:
        trained = [path.parent for path in known if Run(path.parent).checkpoints()]
        if not trained:
            raise UserError("no trained run under runs/; train one with: make quickstart")
        return Run(trained[-1])
    for path in (Path(name), RUNS_ROOT / name):
        if (path / "config.json").is_file():
            return Run(path)
    names = ", ".join(path.parent.name for path in known) or "none yet; train one with: make quickstart"
    raise UserError(f"no run {name!r} (runs here: {names})")


def choose_checkpoint(run: Run, which: str = "best") -> Checkpoint:
    """The checkpoint with the lowest validation loss ("best"), the newest ("last"), or one step's ("500"), verified.

    A damaged one is passed over with a warning for the next best or next newest.

    Raises:
        UserError: the run has no such checkpoint that is whole.
    """
    candidates = list(reversed(run.checkpoints()))
    if which == "best":
        candidates.sort(key=lambda checkpoint: checkpoint.validation_loss)  # stable: of equals the newest first
    elif which != "last":
        candidates = [c for c in candidates if which.isdigit() and c.step == int(which)]
    damage = []
    for checkpoint in candidates:
        try:
            checkpoint.verify()
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for line in damage:
            print(f"warning: {line}; using {checkpoint.path.name} instead", file=sys.stderr)
        return checkpoint
    if not run.checkpoints() and _is_theirs(run):
        raise UserError(
            f"{run.path} is a Hugging Face directory, not a run; make one of it with: "
            f"python -m model.convert from-hf {run.path} runs/{run.name}"
        )
    steps = ", ".join(str(c.step) for c in run.checkpoints()) or "none"
    reason = "; ".join(damage) or f"steps there are: {steps}"
    raise UserError(f"run {run.path} has no whole checkpoint {which!r} ({reason}); train it on with train.py")


def _is_theirs(run: Run) -> bool:
    try:
        return "model_type" in read_json(run.config)
    except (OSError, ValueError, TypeError):
        return False
