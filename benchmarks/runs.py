"""Whole training runs as measurements: done once, kept in a file, compared over seeds."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json_lines
from common.runs import RUNS_ROOT, Run
from common.threads import unbound

Result = dict[str, Any]
TRAIN = Path(__file__).resolve().parent.parent / "train.py"


class Results:
    """One JSON line a finished run, so that a long comparison can be interrupted and goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Result] = read_json_lines(path)

    def find(self, **key: Any) -> Result | None:
        """The finished run with these properties, if there is one."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: Result) -> None:
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def digest(value: Any) -> str:
    """A short name of a JSON value: what a finished run depended on, whatever the file was called."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def train(config: str, name: str, arguments: Sequence[str], threads: int | None = None) -> Result:
    """Run `train.py` once and return its last validation: `val/loss`, `val/bits_per_byte`, `tokens`, `seconds`.

    Raises:
        UserError: it failed; its own message is above.
    """
    quiet = ("--tracking.wandb", "off", "--validation.sample-tokens", "0", "--checkpoint.keep", "1")
    command = [sys.executable, str(TRAIN), config, "--name", name, *quiet, *arguments]
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with unbound():
        status = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    if status:
        raise UserError(f"this run failed: {' '.join(command)}")
    rows = [row for row in read_json_lines(Run(RUNS_ROOT / name).metrics) if "val/loss" in row]
    return {key: rows[-1][key] for key in ("step", "tokens", "seconds", "val/loss", "val/bits_per_byte")}


def spread(values: Sequence[float], digits: int = 4) -> str:
    """`mean ± standard deviation` of several seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"
