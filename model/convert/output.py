"""Where a conversion writes: something new, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.files import atomic_directory


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the block ends well.

    Raises:
        UserError: `out` holds something already, or the disk refuses a write.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another place, or remove it")
    try:
        with atomic_directory(out) as path:
            yield path
    except OSError as error:
        raise UserError(f"{out} could not be written: {error}") from error
