"""`python -m data_pipeline CONFIG`: raw text in, a curated dataset in data/<config name>/ out.

A config may also ask for examples to fine-tune on: questions made from facts, or verses and their translations.
"""

from __future__ import annotations

import ast
import shlex
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
from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.making import make as make_questions
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.making import make as make_translations

PROGRAM = "python -m data_pipeline"


@dataclass(frozen=True)
class Command:
    """Turn raw text into token shards. The same command again does only what is not done yet.

    A config file that defines a QuestionsConfig or a TranslationConfig makes examples to fine-tune on instead, with
    settings of its own: name it before --help to see them.
    """

    config: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    out: str | None = None
    """Directory of the dataset; data/<name of the config file> when it is not given."""
    workers: int | None = None
    """Processes; one a core when it is not given. The result does not depend on it."""
    executor: str = "processes"
    """Where tasks run: processes, serial (this process), dask (a cluster of --workers on this machine), or
    dask://HOST:PORT (a scheduler whose workers share the file system)."""


@dataclass(frozen=True)
class QuestionsCommand:
    """Make questions and answers from facts, for fine-tuning. The same command again writes the same bytes."""

    config: Annotated[QuestionsConfig, tyro.conf.arg(name="")] = field(default_factory=QuestionsConfig)
    out: str | None = None
    """Directory of the files; data/<name of the config file> when it is not given."""


@dataclass(frozen=True)
class TranslationCommand:
    """Make examples of translation from verses. The same command again writes the same bytes."""

    config: Annotated[TranslationConfig, tyro.conf.arg(name="")] = field(default_factory=TranslationConfig)
    out: str | None = None
    """Directory of the files; data/<name of the config file> when it is not given."""


AnyCommand = Command | QuestionsCommand | TranslationCommand


def parse(argv: Sequence[str]) -> AnyCommand:
    """The command that `CONFIG [--field value ...]` asks for: the config file decides which it is.

    Raises:
        UserError: the config file or a setting of it is not usable.
    """
    if _names(argv, QuestionsConfig):
        return parse_command(QuestionsCommand, QuestionsConfig, argv, PROGRAM)
    if _names(argv, TranslationConfig):
        return parse_command(TranslationCommand, TranslationConfig, argv, PROGRAM)
    return parse_command(Command, DataConfig, argv, PROGRAM)


def main(argv: Sequence[str]) -> None:
    """Parse `CONFIG [--field value ...]` and curate, or make examples.

    Raises:
        UserError: anything that the user can mend.
    """
    command = parse(argv)
    out = Path(command.out or Path("data") / Path(argv[0]).stem)
    try:
        if isinstance(command, QuestionsCommand):
            make_questions(command.config, out, f"{PROGRAM} {shlex.join(argv)}")
        elif isinstance(command, TranslationCommand):
            make_translations(command.config, out, f"{PROGRAM} {shlex.join(argv)}")
        else:
            curate(command.config, out, worker_count(command.workers), command.executor)
    except OSError as error:
        raise UserError(
            f"cannot go on with {out}: {error}; what is finished is kept: mend it (make room, say), then run the same "
            "command again"
        ) from error


def _names(argv: Sequence[str], config: type) -> bool:
    """Whether the config file names that class, as one has to that builds it, mistakes in it or not."""
    path = Path(argv[0]) if argv else Path()
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # told when it is loaded
        return False
    named = {getattr(node, field, None) for node in ast.walk(tree) for field in ("id", "attr", "name")}
    return config.__name__ in named


if __name__ == "__main__":
    run_command(main)
