"""`python -m data_pipeline CONFIG`: raw text in, a curated dataset in data/<config name>/ out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from common.cli import parse_command, run_command
from common.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.executors import worker_count
from data_pipeline.pipeline import curate

PROGRAM = "python -m data_pipeline"


@dataclass(frozen=True)
class Command:
    """Turn raw text into token shards. The same command again does only what is not done yet."""

    config: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    out: str | None = None
    """Directory of the dataset; data/<name of the config file> when it is not given."""
    workers: int | None = None
    """Processes; one a core when it is not given. The result does not depend on it."""
    executor: str = "processes"
    """Where tasks run: processes, serial (this process), dask (a cluster of --workers on this machine), or
    dask://HOST:PORT (a scheduler whose workers share the file system)."""


def main(argv: Sequence[str]) -> None:
    """Parse `CONFIG [--field value ...]` and curate.

    Raises:
        UserError: anything that the user can mend.
    """
    command = parse_command(Command, DataConfig, argv, PROGRAM)
    workers = worker_count(command.workers)
    out = Path(command.out or Path("data") / Path(argv[0]).stem)
    try:
        curate(command.config, out, workers, command.executor)
    except OSError as error:
        raise UserError(
            f"cannot go on with {out}: {error}; what is finished is kept: mend it (make room, say), then run the same "
            "command again"
        ) from error


if __name__ == "__main__":
    run_command(main)
