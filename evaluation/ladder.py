"""Train a ladder of runs for a scaling law: python -m evaluation.ladder CONFIG --sizes 64x2 128x3 --tokens 1e6 2e6.

Every size is trained on every number of tokens, each a run of its own with a whole schedule, NAME_WIDTHxLAYERS_TOKENS.
The same command again goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from common.cli import load_config, run_command
from common.errors import UserError
from common.runs import RUNS_ROOT
from evaluation.charts import short
from evaluation.compare_runs import train
from model import Decoder, ModelConfig
from training.config import BudgetConfig, RunConfig


@dataclass(frozen=True)
class LadderCommand:
    """Train several sizes of a config's model on several budgets, smallest first."""

    config: tyro.conf.Positional[Path]
    """What all runs share; its model gives the size of a head and the width of the feed-forward layer."""
    sizes: tuple[str, ...] = ("128x4", "192x6", "256x8", "384x12")
    """WIDTHxLAYERS of every model; a width is a multiple of the size of a head (the default fits heads of 64)."""
    tokens: tuple[float, ...] = (5e6, 10e6, 20e6)
    """Training tokens of every budget."""
    dry_run: bool = False
    """Print the runs with their sizes and compute, and stop."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, train what is not trained yet, and print the command that fits a law."""
    command = tyro.cli(LadderCommand, args=list(argv), prog="python -m evaluation.ladder")
    config = load_config(command.config, RunConfig)
    rungs = rungs_of(config, command.sizes, command.tokens)
    for rung in rungs:
        parameters = size_of(rung.model)
        compute = 6 * parameters * (rung.budget.tokens or 0)
        print(f"{rung.name}: {short(parameters)} parameters, {short(compute)} FLOPs", file=sys.stderr)
    if command.dry_run:
        return
    directory = RUNS_ROOT / f"{config.name}_ladder"  # of their configs
    done = [rung.name for rung in rungs if train(rung, directory) is not None]
    missing = [rung.name for rung in rungs if rung.name not in done]
    if missing:
        print(f"training diverged and is left out: {', '.join(missing)}", file=sys.stderr)
    print(f"next: python -m evaluation.scaling {' '.join(done)}")


def rungs_of(config: RunConfig, sizes: Sequence[str], tokens: Sequence[float]) -> list[RunConfig]:
    """The configs of all runs, those with the least compute first.

    Raises:
        UserError: a size is no WIDTHxLAYERS, does not go with the heads of the config, or a budget is not positive.
    """
    if config.examples.used or config.start_from is not None:
        raise UserError(f"{config.name} starts from other weights; a ladder is of runs from fresh ones on curated data")
    if not tokens or min(tokens) < 1:
        raise UserError(f"--tokens {' '.join(map(str, tokens))}: give one or more positive numbers")
    rungs = []
    for size in dict.fromkeys(sizes):
        model = resized(config.model, size)
        for budget in sorted({int(one) for one in tokens}):
            name = f"{config.name}_{size}_{short(budget, 15)}"  # whole, so that no two budgets share a run
            rungs.append(replace(config, name=name, model=model, budget=BudgetConfig(tokens=budget)))
    return sorted(rungs, key=lambda rung: size_of(rung.model) * (rung.budget.tokens or 0))


def resized(model: ModelConfig, size: str) -> ModelConfig:
    """`model` with another width and number of layers; heads keep their size, everything else its proportion.

    Raises:
        UserError: `size` is no WIDTHxLAYERS, or its width is no multiple of the size of a head.
    """
    width, times, layers = size.partition("x")
    if not times or not width.isdigit() or not layers.isdigit() or not int(width) or not int(layers):
        raise UserError(f"--sizes {size}: a size is WIDTHxLAYERS, such as 256x8")
    heads, rest = divmod(int(width), model.head_size)
    if rest or not heads:
        raise UserError(f"--sizes {size}: the width must be a multiple of the size of a head, {model.head_size}")
    groups = model.heads // model.key_value_heads  # heads that share a key and a value
    return replace(
        model,
        width=int(width),
        layers=int(layers),
        heads=heads,
        kv_heads=None if model.kv_heads is None else max(1, heads // groups),
        mlp_width=None if model.mlp_width is None else round(model.mlp_width * int(width) / model.width / 8) * 8,
    )


def size_of(model: ModelConfig) -> int:
    """Parameters of a model."""
    with torch.device("meta"):
        return Decoder(model).parameter_count()


if __name__ == "__main__":
    run_command(main)
