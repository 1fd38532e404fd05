"""Train a model: python train.py CONFIG [--field value ...], or with torchrun in front for several processes."""

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, field, fields, replace  # noqa: E402
from typing import Annotated, TypeVar  # noqa: E402

import tyro  # noqa: E402

from common.cli import parse_command, run_command, to_dict  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs import RUNS_ROOT, Run  # noqa: E402
from training.config import BudgetConfig, ExamplesConfig, RunConfig  # noqa: E402
from training.config_checks import check  # noqa: E402
from training.leaving import how_to_load, leave_adapter  # noqa: E402
from training.run import run_training  # noqa: E402
from training.series import joined, later_stages, runs_of  # noqa: E402
from training.starting import model_of_start  # noqa: E402

Section = TypeVar("Section", BudgetConfig, ExamplesConfig)


@dataclass(frozen=True)
class TrainCommand:
    """Train a decoder as CONFIG says, or fine-tune one; the same command again resumes the run."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    dry_run: bool = False
    """Print what the run would do and stop."""


def main(argv: Sequence[str]) -> None:
    command = parse_command(TrainCommand, RunConfig, argv, "train.py", prepare=model_of_start)
    config = command.config
    config = replace(
        config,
        budget=one_of(config.budget, "budget", [part.name for part in fields(BudgetConfig)], argv),
        examples=one_of(config.examples, "examples", ("validation_files", "validation_fraction", "folds"), argv),
    )
    check(config)
    runs = runs_of(config)
    if command.dry_run and len(runs) > 1:
        print(f"{len(runs)} runs, of which this is the first: {', '.join(one.name for one in runs)}", file=sys.stderr)
    with joined(runs):
        for number, one in enumerate(runs, start=1):
            finished = run_training(one, command.dry_run, later_stages(config, runs, number))
            if not finished:
                return
            if os.environ.get("RANK", "0") == "0":
                if one.examples.used:
                    leave_behind(one)
                    compare(config, runs, number)
                draw_report(one)


def one_of(section: Section, name: str, choices: Sequence[str], argv: Sequence[str]) -> Section:
    """`section` of a config without those `choices` that the config made where the command line makes another."""
    flags = {argument.partition("=")[0].replace("_", "-") for argument in argv}
    given = {choice for choice in choices if f"--{name}.{choice}".replace("_", "-") in flags}
    default = type(section)()
    return replace(section, **{one: getattr(default, one) for one in choices if given and one not in given})


def leave_behind(config: RunConfig) -> None:
    """What a fine-tune leaves in its directory: an adapter, metrics, figures, and a summary that is printed as well."""
    from evaluation.fine_tuning import describe, write_artifacts  # draws: not for those who only train

    run = Run(RUNS_ROOT / config.name)
    if run.checkpoints():
        adapter = leave_adapter(run)
        print(describe(write_artifacts(run, how_to_load(run, str(config.start_from), adapter))), file=sys.stderr)


def draw_report(config: RunConfig) -> None:
    """The page of a run that has ended. Trouble with it is said, and training goes on."""
    from evaluation.report import write_report

    try:
        print(f"report {write_report(Run(RUNS_ROOT / config.name))}", file=sys.stderr)
    except (UserError, OSError) as error:
        print(f"warning: the report could not be drawn: {error}", file=sys.stderr)


def compare(config: RunConfig, runs: Sequence[RunConfig], done: int) -> None:
    """Of the stages or folds that are done what they show together. Trouble with it is said, and training goes on."""
    from evaluation.folds import write_folds
    from evaluation.stage_parts import Part
    from evaluation.stages import write_stages

    try:
        if config.examples.stages:
            write_stages([Run(RUNS_ROOT / one.name) for one in runs[:done]], [Part.of(to_dict(one)) for one in runs])
        elif len(runs) > 1 and done == len(runs):
            write_folds(config.name)
    except (UserError, OSError) as error:
        print(f"warning: the comparison could not be made: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
