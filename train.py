"""Train a model: python train.py CONFIG [--field value ...], or with torchrun in front for several processes."""

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402
from typing import Annotated  # noqa: E402

import tyro  # noqa: E402

from common.cli import parse_command, run_command  # noqa: E402
from training.config import BudgetConfig, RunConfig  # noqa: E402
from training.run import run_training  # noqa: E402
from training.starting import model_of_start  # noqa: E402


@dataclass(frozen=True)
class TrainCommand:
    """Train a decoder as CONFIG says; the same command again resumes the run."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    dry_run: bool = False
    """Print what the run would do and stop."""


def main(argv: Sequence[str]) -> None:
    command = parse_command(TrainCommand, RunConfig, argv, "train.py", prepare=model_of_start)
    config = command.config
    given = {name for name in ("tokens", "steps", "minutes") if any(a.startswith(f"--budget.{name}") for a in argv)}
    if given:
        # A budget on the command line replaces the config's, whichever of the three that set.
        config = replace(config, budget=BudgetConfig(**{name: getattr(config.budget, name) for name in given}))
    run_training(config, command.dry_run)


if __name__ == "__main__":
    run_command(main)
