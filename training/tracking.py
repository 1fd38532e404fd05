"""Where a run's numbers go: metrics.jsonl and samples.jsonl always, and whatever dashboards are asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from common.files import atomic_write, read_json_lines, sync_file
from common.runs import Checkpoint
from common.threads import unbound
from training.histograms import Histogram
from training.job import Job
from training.tensorboard import start_tensorboard
from training.trackio_run import start_trackio
from training.wandb_run import start_wandb


class JsonLines:
    """An append-only file of one JSON object a line, each with a `step`."""

    def __init__(self, path: Path, logged: int) -> None:
        """Keep the lines up to step `logged`: what a killed run logged after its last checkpoint will come again."""
        self.path = path
        kept = [row for row in read_json_lines(path) if row.get("step", 0) <= logged]
        with atomic_write(path) as file:
            file.writelines(_line(row) for row in kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        self._file.writelines(_line(row) for row in rows)
        self._file.flush()

    def sync(self) -> None:
        sync_file(self.path)

    def close(self) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class Dashboard(Protocol):
    """A place beside the run's own files that shows a run. What it raises is said once, and training goes on."""

    name: str

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]], histograms: dict[str, Histogram]) -> None:
        """Show one logged step: its line of metrics.jsonl, and its samples and histograms where there are any."""

    def sync(self) -> None:
        """Make what was logged durable: a checkpoint is about to be written, and the run may resume from there."""

    def add_checkpoint(self, checkpoint: Checkpoint, best: bool) -> None:
        """A checkpoint was written, `best` when its validation loss is the lowest so far; it may be deleted later."""

    def close(self, failed: bool, hurried: bool) -> None:
        """The run has ended; `failed` unless by itself. When `hurried`, what would take long is left undone."""


class Tracker:
    """Everything that the main process logs. Processes other than the main one have none."""

    def __init__(self, job: Job, logged: int, wandb_id: str | None) -> None:
        """Log what comes after step `logged`; `wandb_id` is that of the W&B run that is resumed, if there was one."""
        self.metrics = JsonLines(job.run.metrics, logged)
        self.samples = JsonLines(job.run.samples, logged)
        with unbound():
            wandb = start_wandb(job, wandb_id)
            found: list[Dashboard | None] = [wandb, start_tensorboard(job, logged), start_trackio(job)]
        self.wandb_id = wandb.id if wandb else wandb_id
        self._dashboards = [dashboard for dashboard in found if dashboard]
        self._said: set[str] = set()

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]], histograms: dict[str, Histogram]) -> None:
        """Log one step: its metrics and, where there are any, its samples and histograms."""
        self.metrics.write([row])
        self.samples.write(samples)
        self._each("log", lambda dashboard: dashboard.log(row, samples, histograms))

    def sync(self) -> None:
        """Make what was logged as durable as the checkpoint that is about to be written."""
        self.metrics.sync()
        self.samples.sync()
        self._each("sync", lambda dashboard: dashboard.sync())

    def add_checkpoint(self, checkpoint: Checkpoint, best: bool) -> None:
        """Tell the dashboards of a new checkpoint, before any is pruned."""
        self._each("add_checkpoint", lambda dashboard: dashboard.add_checkpoint(checkpoint, best))

    def close(self, failed: bool, hurried: bool) -> None:
        """The run has ended; `failed` unless by itself, `hurried` when it was asked to stop."""
        self._each("close", lambda dashboard: dashboard.close(failed, hurried))
        self.metrics.close()
        self.samples.close()

    def _each(self, doing: str, action: Callable[[Dashboard], None]) -> None:
        """A dashboard's trouble is not the run's: it is said once for each thing that fails."""
        for dashboard in self._dashboards:
            try:
                action(dashboard)
            except Exception as error:
                message = f"tracking: {dashboard.name} failed to {doing.replace('_', ' ')} ({error}); training goes on"
                if f"{dashboard.name} {doing}" not in self._said:
                    print(message, file=sys.stderr)
                self._said.add(f"{dashboard.name} {doing}")
