"""Speed and memory of training steps: python -m benchmarks.training [CONFIG] [--field value ...] [options].

Each variant runs in a process of its own and takes its steps in turn with the others.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from benchmarks.peer import load_nanogpt, precision_without_scaler
from benchmarks.process import Worker
from benchmarks.table import Measurement, alternate, report
from benchmarks.worker import Variant
from common.cli import override, parse_command, run_command
from model.device import choose_device
from training.config import RunConfig
from training.config_checks import check

Aspect = Literal["precision", "allocator", "checkpointing", "compile", "processes"]


@dataclass(frozen=True)
class BenchmarkCommand:
    """Measure training steps of CONFIG on random tokens, beside variants of it in alternation."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    vary: tuple[Aspect, ...] = ("precision", "allocator", "checkpointing")
    """What to vary: number format, freed memory given back, activation checkpointing, torch.compile, processes."""
    against: tuple[str, ...] = ()
    """More variants, each CONFIG with other values of some fields: "compile on, model.activation gelu"."""
    peer: str | None = None
    """A nanoGPT checkout, to measure its model of the same shape beside ours, eager and compiled."""
    rounds: int = 5
    """Rounds after one that warms up."""
    json: str | None = None
    """Also write the figures to this file."""


def variants_of(command: BenchmarkCommand) -> dict[str, Variant]:
    """What to measure, the first being what the others are compared with."""
    config = replace(command.config, compile="off")
    device = choose_device(config.device)
    precision = precision_without_scaler(device, config.precision).name
    variants = {f"{precision}": Variant(config)}
    if "compile" in command.vary:
        variants[f"{precision}, compiled"] = Variant(replace(config, compile="on"))
    if "allocator" in command.vary and device.type == "cpu":
        variants[f"{precision}, freed memory returned"] = Variant(config, keep_freed=False)
    if "checkpointing" in command.vary:
        for kind in ("selective", "full"):
            variants[f"{precision}, {kind} checkpointing"] = Variant(replace(config, activation_checkpointing=kind))
    if "precision" in command.vary and precision != "fp32":
        variants["fp32"] = Variant(replace(config, precision="fp32"))
    if "processes" in command.vary:
        variants[f"{precision}, 2 processes (DDP)"] = Variant(config, processes=2)
    for fields in command.against:
        flags = shlex.split(" ".join(f"--{item.strip()}" for item in fields.split(",")))
        changed = override(config, flags, "--against")
        check(changed)
        precision_without_scaler(choose_device(changed.device), changed.precision)  # for its error
        variants[fields] = Variant(changed)
    if command.peer:
        load_nanogpt(command.peer)  # for its error, before anything is started
        variants["nanoGPT"] = Variant(config, peer=command.peer, keep_freed=False)
        variants["nanoGPT, compiled"] = Variant(config, peer=command.peer, peer_compiled=True, keep_freed=False)
    return variants


def main(argv: Sequence[str]) -> None:
    arguments = list(argv)
    if not arguments or arguments[0].startswith("-"):
        arguments.insert(0, "configs/quickstart.py")
    command = parse_command(BenchmarkCommand, RunConfig, arguments, "python -m benchmarks.training")
    check(command.config)
    with ExitStack() as stack:
        workers: dict[str, Callable[[], Measurement]] = {}
        for name, variant in variants_of(command).items():
            worker = Worker("benchmarks.worker", variant.to_json(), variant.processes)
            stack.callback(worker.close)
            workers[name] = worker
        results = alternate(workers, command.rounds)
    report(f"{arguments[0]}, {command.rounds} rounds", results, "tokens/s", command.json)


if __name__ == "__main__":
    run_command(main)
