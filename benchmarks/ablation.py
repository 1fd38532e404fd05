"""What each part of the recipe is worth: python -m benchmarks.ablation [--only NAME ...] [--seeds N] [--tokens N].

Every variant changes one thing of a config; all see the same tokens in the same order, seed by seed. Finished runs are
kept in a file, so the command can be interrupted and repeated.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.runs import Result, Results, digest, spread, train
from common.cli import load_config, override, run_command, to_dict
from common.errors import UserError
from common.runs import RUNS_ROOT
from data_pipeline.shards import Dataset
from training.config import RunConfig

# The flags that change one part of the recipe; "default" is the config as it is.
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "AdamW for the matrices": (
        *("--optimizer.matrices", "adamw", "--optimizer.lr", "2e-3", "--optimizer.beta1", "0.9"),
        *("--optimizer.eps", "1e-8", "--optimizer.momentum-warmup", "0"),
        *("--optimizer.embedding-lr", "6e-3", "--optimizer.head-lr", "6e-3", "--optimizer.scalar-lr", "6e-3"),
    ),
    "eps 1e-8": ("--optimizer.eps", "1e-8"),
    "no momentum warm-up": ("--optimizer.momentum-warmup", "0"),
    "cautious decay": ("--optimizer.cautious-decay",),
    "no weight decay": ("--optimizer.weight-decay", "0"),
    "no QK-norm": ("--model.no-qk-norm",),
    "attention scale 0.12": ("--model.attention-scale", "0.12"),
    "GELU": ("--model.activation", "gelu"),
    "LayerNorm": ("--model.norm", "layer"),
    "learned positions": ("--model.position", "learned"),
    "no zero init": ("--model.no-zero-init-projections",),
    "no residual scalars": ("--model.no-residual-scalars",),
    "soft-cap at 15": ("--model.logit-softcap", "15"),
    "no embedding norm": ("--model.no-embedding-norm",),
    "tied head": ("--model.tied",),
    "value embeddings in 1 block": ("--model.value-embeddings", "1"),
    "value embeddings in 2 blocks": ("--model.value-embeddings", "2"),
    "cosine": ("--schedule.kind", "cosine", "--schedule.cooldown", "0.5"),
    "no opening": ("--opening.fraction", "0", "--opening.context-length", "None"),
    "opening: half the batch": ("--opening.context-length", "None", "--opening.tokens-per-step", "1024"),
    "average of the weights": ("--optimizer.ema", "0.95"),
}


@dataclass(frozen=True)
class AblationCommand:
    """Train every variant with several seeds and compare."""

    config: str = "configs/quickstart.py"
    """Config that is varied."""
    only: tuple[str, ...] = ()
    """Variants to run, beside the default; by default all."""
    seeds: int = 3
    """Seeds of each."""
    tokens: int = 614_400
    """Training tokens of each run."""
    jobs: int = 1
    """Runs at the same time; of several, each has one thread."""
    out: str = "benchmarks/results/ablation.jsonl"
    """Where finished runs are kept."""


def run_one(command: AblationCommand, variant: str, seed: int) -> Result:
    """One training run from scratch."""
    name = f"ablation_{''.join(c if c.isalnum() else '_' for c in variant)}_{seed}"
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    arguments = ("--budget.tokens", str(command.tokens), "--seed", str(seed), "--validation.every", "100000")
    threads = 1 if command.jobs > 1 else None
    result = train(command.config, name, (*arguments, "--compile", "off", *VARIANTS[variant]), threads)
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    return {**key_of(command, variant), "seed": seed, **result}


def key_of(command: AblationCommand, variant: str) -> Result:
    """What the result of a run depends on, beside its seed."""
    config = override(load_config(command.config, RunConfig), VARIANTS[variant], variant)
    data = Dataset(config.data.directory).fingerprint
    about = {"config": command.config, "settings": digest([data, to_dict(config)])}
    return {**about, "variant": variant, "budget": command.tokens, "jobs": command.jobs}


def show(command: AblationCommand, results: Results, variants: Sequence[str]) -> None:
    """A table of means over seeds, and of differences to the default seed by seed."""
    table = Table(
        "variant", "bits per byte", "minus default, same seed", "time, ratio to default", title_justify="left"
    )
    base = {row["seed"]: row for row in rows_of(command, results, "default")}
    for variant in variants:
        rows = [row for row in rows_of(command, results, variant) if row["seed"] in base]
        if not rows:
            continue
        differences = [row["val/bits_per_byte"] - base[row["seed"]]["val/bits_per_byte"] for row in rows]
        times = statistics.median(row["seconds"] / base[row["seed"]]["seconds"] for row in rows)
        table.add_row(variant, spread([row["val/bits_per_byte"] for row in rows]), spread(differences), f"{times:.2f}")
    Console(width=120).print(table)


def rows_of(command: AblationCommand, results: Results, variant: str) -> list[Result]:
    key = key_of(command, variant).items()
    return [row for row in results.rows if all(row.get(name) == value for name, value in key)]


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(AblationCommand, args=argv, prog="python -m benchmarks.ablation")
    unknown = [name for name in command.only if name not in VARIANTS]
    if unknown:
        raise UserError(f"no variant {unknown[0]!r}; there are: {', '.join(VARIANTS)}")
    variants = ["default", *(command.only or list(VARIANTS)[1:])]
    Path(command.out).parent.mkdir(parents=True, exist_ok=True)
    results = Results(Path(command.out))
    wanted = [
        (variant, seed)
        for seed in range(command.seeds)  # every variant once before any twice
        for variant in variants
        if not any(row["seed"] == seed for row in rows_of(command, results, variant))
    ]
    with ThreadPoolExecutor(command.jobs) as pool:
        for result in pool.map(lambda pair: run_one(command, *pair), wanted):
            results.add(result)
            print(f"{result['variant']}, seed {result['seed']}: {result['val/bits_per_byte']:.4f} bits per byte")
    show(command, results, variants)


if __name__ == "__main__":
    run_command(main)
