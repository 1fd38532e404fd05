"""The runs that one config stands for: one, or one a stage, or one a fold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from common.errors import UserError
from common.runs import RUNS_ROOT, Run
from model.device import choose_device
from training.config import RunConfig
from training.distribution import process_group, world_from_environment


def runs_of(config: RunConfig) -> list[RunConfig]:
    """The configs of these runs, in their order. Each stage starts from the last one, and has a schedule of its own.

    Raises:
        UserError: the stages and the files to validate on do not match.
    """
    examples = config.examples
    if examples.stages:
        return _stages(config)
    if examples.folds and examples.fold is None:
        return [
            replace(config, name=f"{config.name}_fold_{fold}", examples=replace(examples, fold=fold))
            for fold in range(examples.folds)
        ]
    return [config]


def _stages(config: RunConfig) -> list[RunConfig]:
    examples, found, start = config.examples, [], config.start_from
    held_out = examples.validation_files
    if held_out and len(held_out) != len(examples.stages):
        raise UserError(
            f"there are {len(examples.stages)} examples.stages and {len(held_out)} examples.validation_files; give one "
            "to validate on for every stage, or none"
        )
    for number, file in enumerate(examples.stages):
        name = f"{config.name}_stage_{number + 1}"
        of_stage = replace(examples, stages=(), files=(file,), validation_files=held_out[number : number + 1])
        found.append(replace(config, name=name, start_from=start, examples=of_stage))
        start = str(RUNS_ROOT / name)
    return found


def later_stages(config: RunConfig, runs: list[RunConfig], number: int) -> list[Run]:
    """Those of `runs_of(config)` after the first `number` that begin with what these have learned; folds never do."""
    return [Run(RUNS_ROOT / one.name) for one in runs[number:]] if config.examples.stages else []


@contextmanager
def joined(runs: list[RunConfig]) -> Iterator[None]:
    """Where there are several runs, the processes stay together from the first to the last."""
    if len(runs) == 1:
        yield
        return
    world = world_from_environment()
    with process_group(world, choose_device(runs[0].device, world.local_rank)):
        yield
