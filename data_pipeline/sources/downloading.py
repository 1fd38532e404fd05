"""Downloading wheels with pip. They are opened as archives and read as data: none is installed, none of its code runs.
And the sha256 of whatever was downloaded, which is noted beside it.

Wheels only: to learn the metadata of a source distribution pip runs the build script inside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from common.errors import UserError
from common.files import TEMPORARY_SUFFIX, atomic_write, sha256_of, sync_directory, sync_file

_PATIENCE = 1800  # seconds
_ARGUMENTS = ("download", "--no-deps", "--only-binary=:all:", "--dest")


def download_wheel(requirement: str, directory: Path, otherwise: str) -> Path:
    """Download the wheel of `requirement`, such as `name==1.0`, into `directory`: whole, or not at all.

    Args:
        requirement: name and version.
        directory: where the wheel is put.
        otherwise: what the user can do instead, the end of a sentence in the error message.

    Raises:
        UserError: pip could not download it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / f"pip.{os.getpid()}{TEMPORARY_SUFFIX}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *_ARGUMENTS, str(staging), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        downloaded = sorted(staging.glob("*.whl"))
        if result.returncode == 0 and downloaded:
            sync_file(downloaded[0])
            path = directory / downloaded[0].name
            os.replace(downloaded[0], path)
            sync_directory(directory)
            return path
        last_line = (result.stderr or result.stdout).strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        last_line = f"no answer within {_PATIENCE} seconds"
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    raise UserError(
        f"could not download {requirement} ({last_line}). Where there is a network, run\n"
        f"    python -m pip {' '.join(_ARGUMENTS)} {directory} {requirement}\n"
        f"and then this command again; or {otherwise}"
    )


def noted_sha256(path: Path) -> str:
    """The sha256 of a downloaded file. It is noted beside it once, in the form that `sha256sum --check` reads.

    Raises:
        UserError: the file is not what it was.
    """
    sha256 = sha256_of(path)
    noted = path.with_name(f"{path.name}.sha256")
    line = f"{sha256}  {path.name}\n"
    if not noted.is_file():
        with atomic_write(noted) as file:
            file.write(line)
    if noted.read_text(encoding="utf-8") != line:
        raise UserError(f"{path} is damaged: its sha256 is not that in {noted}; delete both and run the command again")
    return sha256
