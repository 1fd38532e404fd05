"""Where a conversion writes: something new, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from common.errors import UserError
from common.files import atomic_directory, atomic_write


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the block ends well.

    Raises:
        UserError: `out` holds something already, or the disk refuses a write.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise _taken(out)
    with _refusals_explained(out), atomic_directory(out) as path:
        yield path


@contextmanager
def new_file(out: Path) -> Iterator[IO[bytes]]:
    """A temporary file that becomes `out` when the block ends well. Raises UserError as `new_directory` does."""
    if out.exists():
        raise _taken(out)
    with _refusals_explained(out), atomic_write(out, "wb") as file:
        yield file


def _taken(out: Path) -> UserError:
    return UserError(f"{out} exists already; choose another place, or remove it")


@contextmanager
def _refusals_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out} could not be written: {error}") from error
