"""Cross-validation: the best validation losses of the folds of a run, their mean and how far they lie apart.

python -m evaluation.folds NAME
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import read_json, write_json
from common.runs import RUNS_ROOT, Run
from evaluation.fine_tuning_plots import series
from evaluation.fine_tuning_summary import read_metrics

RESULT = "folds.json"


@dataclass(frozen=True)
class Fold:
    run: str
    best_validation_loss: float
    """In nats a token."""
    perplexity: float
    step: int


@dataclass(frozen=True)
class Folds:
    name: str
    mean: float
    """Of the best validation losses."""
    standard_deviation: float | None
    """Of the folds as a sample, with n - 1; None for a single one. Folds share training data, so it is no error bar of
    the mean."""
    folds: tuple[Fold, ...]
    missing: tuple[str, ...]
    """Runs that have not been validated yet."""


def write_folds(name: str) -> Folds:
    """Write folds.json into runs/NAME from the runs NAME_fold_0, ..., and print what it says.

    Raises:
        UserError: none of them has been validated.
    """
    directory = RUNS_ROOT / Path(name).name
    names = [f"{directory.name}_fold_{number}" for number in range(_count(directory.name))]
    found = {fold: _fold(Run(RUNS_ROOT / fold)) for fold in names}
    folds = tuple(fold for fold in found.values() if fold is not None)
    if not folds:
        raise UserError(
            f"no fold of {directory.name} has been validated in {RUNS_ROOT}/; a config with examples.folds and without "
            "examples.fold trains them with train.py"
        )
    losses = [fold.best_validation_loss for fold in folds]
    result = Folds(
        name=directory.name,
        mean=statistics.fmean(losses),
        standard_deviation=statistics.stdev(losses) if len(losses) > 1 else None,
        folds=folds,
        missing=tuple(name for name, fold in found.items() if fold is None),
    )
    write_json(directory / RESULT, asdict(result))
    for fold in folds:
        loss = f"{fold.best_validation_loss:.4f} (perplexity {fold.perplexity:,.2f})"
        print(f"{fold.run}: best validation loss {loss} at step {fold.step:,}")
    spread = "" if result.standard_deviation is None else f", standard deviation {result.standard_deviation:.4f}"
    print(f"mean of {len(folds)} folds: {result.mean:.4f}{spread}")
    if result.missing:
        print(f"not validated yet: {', '.join(result.missing)}")
    print(f"result {directory / RESULT}")
    return result


def _count(name: str) -> int:
    """How many folds there are, by the config of any of them that has begun."""
    for path in RUNS_ROOT.glob(f"{name}_fold_*/config.json"):
        try:
            return int(read_json(path)["examples"]["folds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0


def _fold(run: Run) -> Fold | None:
    """None where the run has no finite validation loss."""
    try:
        steps, losses = series(read_metrics(run)[0], "val/loss")
    except UserError:
        return None
    if not losses:
        return None
    loss, step = min(zip(losses, steps, strict=True))
    return Fold(run.name, loss, math.exp(min(loss, 700.0)), step)


@dataclass(frozen=True)
class FoldsCommand:
    """Compare the folds of a run: best validation losses, mean and standard deviation."""

    name: tyro.conf.Positional[str]
    """NAME of the folds runs/NAME_fold_0, ..."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, write and print. A bad flag ends the process with status 2."""
    write_folds(tyro.cli(FoldsCommand, args=list(argv), prog="python -m evaluation.folds").name)


if __name__ == "__main__":
    run_command(main)
