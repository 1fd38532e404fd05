"""Trackio as a dashboard: a database beside the runs, no account, no server until one looks at it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import defaultdict
from datetime import datetime, timezone
from typing import Any

from common.cli import to_dict
from common.files import read_json_lines
from common.runs import TRACKIO_ROOT, Checkpoint
from training.histograms import Histogram
from training.job import Job
from training.wandb_run import describe

SAMPLE_COLUMNS = ("prompt", "text")

# Seconds between two writes, and how many times as long as a write takes: a slow disk costs a hundredth of the time.
PAUSE, PAUSE_FACTOR = 1.0, 100.0


def start_trackio(job: Job) -> Trackio | None:
    """Trackio when the config asks for it, or None, with a one-line reason where it cannot be had.

    What it has of steps that metrics.jsonl does not have is purged.
    """
    if not job.config.tracking.trackio:
        return None
    # Read when the package is imported. Its own choice is a directory in the user's home.
    os.environ["TRACKIO_DIR"] = os.environ.get("TRACKIO_DIR") or str(TRACKIO_ROOT)
    try:
        return Trackio(job)
    except Exception as error:
        missing = isinstance(error, ImportError)
        hint = "; install it with: pip install -c constraints.txt -e '.[trackio]'" if missing else ""
        print(f"tracking: Trackio cannot be used ({error}){hint}", file=sys.stderr)
        return None


class Trackio:
    """Metrics, samples and histograms over steps, of all runs of a project in one database.

    Rows go straight into Trackio's storage. Its own `init` asks the hub for the user's name, writes in a thread, and
    warns of a write that failed where this raises.
    """

    name = "Trackio"

    def __init__(self, job: Job) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self._trackio, self._storage = trackio, SQLiteStorage
        self._project, self._run = job.config.tracking.wandb_project, job.config.name
        self._config = to_dict(job.config) | describe(job)
        self._rows: list[tuple[int, str, dict[str, Any]]] = []  # step, time and values that are yet to be written
        self._due = 0.0
        SQLiteStorage.validate_project_name(self._project)
        SQLiteStorage.init_db(self._project)
        self._begin_anew(job)
        look = f"TRACKIO_DIR={shlex.quote(str(trackio.utils.TRACKIO_DIR))} trackio show --project"
        print(f"tracking: Trackio, look at it with: {look} {shlex.quote(self._project)}", file=sys.stderr)

    def _begin_anew(self, job: Job) -> None:
        """Put the run in as metrics.jsonl has it, which ends at the step that the run goes on from.

        So what a killed run logged after its checkpoint is gone, and what was logged without Trackio is there.
        """
        shown = {row["step"]: row for row in self._storage.get_logs(self._project, self._run)}
        if shown and not self._storage.delete_run(self._project, self._run):
            raise OSError(f"what {self._storage.get_project_db_path(self._project)} has of this run cannot be purged")
        samples = defaultdict(list)
        for sample in read_json_lines(job.run.samples):
            samples[sample["step"]].append(sample)
        for row in read_json_lines(job.run.metrics):
            before = shown.get(row["step"], {})
            if row.items() <= before.items():  # only there are its time and its histograms
                self._rows.append((before.pop("step"), before.pop("timestamp"), before))
            else:
                self._add(row, samples[row["step"]], {})
        self._write()

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]], histograms: dict[str, Histogram]) -> None:
        self._add(row, samples, histograms)
        if time.monotonic() >= self._due:
            self._write()

    def sync(self) -> None:
        self._write()

    def add_checkpoint(self, checkpoint: Checkpoint, best: bool) -> None:
        """Trackio is given no files: its artifacts are copies on the same disk."""

    def close(self, failed: bool, hurried: bool) -> None:
        self._write()

    def _add(self, row: dict[str, Any], samples: list[dict[str, Any]], histograms: dict[str, Histogram]) -> None:
        step, values = row["step"], {key: value for key, value in row.items() if key != "step"}
        if samples:
            texts = [[sample[column] for column in SAMPLE_COLUMNS] for sample in samples]
            table = self._trackio.Table(columns=list(SAMPLE_COLUMNS), data=texts)
            values["samples"] = table._to_dict(self._project, self._run, step)
        for tag, taken in histograms.items():
            values[tag] = self._trackio.Histogram(np_histogram=(taken.counts, taken.edges))._to_dict()
        self._rows.append((step, datetime.now(timezone.utc).isoformat(), values))

    def _write(self) -> None:
        """Write what is yet to be written; it stays so where that fails."""
        if not self._rows:
            return
        started = time.monotonic()
        steps, times, values = (list(column) for column in zip(*self._rows, strict=True))
        try:
            self._storage.bulk_log(self._project, self._run, values, steps=steps, timestamps=times, config=self._config)
            self._rows = []
        finally:
            now = time.monotonic()
            self._due = now + max(PAUSE, PAUSE_FACTOR * (now - started))
