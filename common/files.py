"""Files that are either whole or absent: written beside their place, synced to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from common.errors import UserError

TEMPORARY_SUFFIX = ".tmp"
REPLACED_SUFFIX = f".replaced{TEMPORARY_SUFFIX}"


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` only when the block ends without an error.

    Its name is never used twice: processes of several machines, and threads, may write the same file at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` only when the block ends without an error.

    All in it is synced before the rename, so that a directory with the final name is always whole.
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for inside in temporary.rglob("*"):
            if inside.is_dir():
                sync_directory(inside)
            elif inside.is_file():
                sync_file(inside)
        sync_directory(temporary)
        replaced = path.with_name(path.name + REPLACED_SUFFIX)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            # Moved away first: deleting a large directory takes long, and until the next line there is none.
            os.rename(path, replaced)
        os.rename(temporary, path)
        sync_directory(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def only_process_in(directory: Path) -> Iterator[None]:
    """Hold a lock on `directory` for as long as the block runs: two runs in one place would undo each other's work.

    The system gives the lock up with the process, however that ends. Where there are no locks, that is said, and one
    run at a time is up to the user.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "a")  # noqa: SIM115 - held open until the block ends
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; choose another place") from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError as error:
            raise UserError(
                f"another process is working in {directory}; wait for it to end, or choose another place"
            ) from error
        except OSError as error:  # some file systems of clusters
            print(
                f"warning: {directory} cannot be locked ({error.strerror}); let one run at a time work there",
                file=sys.stderr,
            )
        yield


def remove_temporaries(directory: Path) -> None:
    """Sweep what a killed process left half-written in `directory`, and put back what it was about to replace."""
    for replaced in directory.glob(f"*{REPLACED_SUFFIX}"):
        path = replaced.with_name(replaced.name.removesuffix(REPLACED_SUFFIX))
        if not path.exists():
            replaced.rename(path)
    for leftover in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Raises ValueError for NaN and infinity, which are not JSON: other readers refuse the whole file."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, if it exists; a torn line, as a killed writer leaves it, is skipped."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable. Windows has no way to open a directory, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
