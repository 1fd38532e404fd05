"""`python -m data_pipeline.report data/NAME`: draw report, figures and card of a curated dataset again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import only_process_in
from data_pipeline.report import render


@dataclass(frozen=True)
class Command:
    """Draw report.html, its figures and the dataset card again. Without `stages/` they show no examples."""

    directory: tyro.conf.Positional[Path]
    """Directory of the dataset, such as data/quickstart."""


def main(argv: Sequence[str]) -> None:
    """Parse `DIRECTORY` and draw.

    Raises:
        UserError: there is no dataset in it, or another process is making one.
    """
    out = tyro.cli(Command, args=argv, prog="python -m data_pipeline.report").directory
    stages = out / "stages"
    try:
        with only_process_in(stages) if stages.is_dir() else nullcontext():
            names = render.write(out)
    except OSError as error:
        raise UserError(f"cannot draw the report of {out}: {error}; curate it again, or make it writable") from error
    print(f"{out}: {', '.join(names)}")


if __name__ == "__main__":
    run_command(main)
