"""What a fine-tuning run leaves behind: metrics as JSON and CSV, figures, and a summary that says how it went.

python -m evaluation.fine_tuning RUN makes it all again from the run directory.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import atomic_write, read_json, write_json
from common.runs import Run, find_run
from evaluation.fine_tuning_plots import Rows, draw_figures
from evaluation.fine_tuning_summary import FineTuningSummary, read_metrics, summarise
from evaluation.fine_tuning_text import describe

METRICS, TABLE, SUMMARY = "training_metrics.json", "training_metrics.csv", "summary.md"


def write_artifacts(run: Run, loading: Sequence[str] | None = None) -> FineTuningSummary:
    """Write training_metrics.json, training_metrics.csv, summary.md and the figures into the run directory.

    Args:
        loading: lines of code or commands that load the result; by default those that were given the last time.

    Raises:
        UserError: the run has not logged a single step, or the disk refuses a file.
    """
    try:
        return _write_artifacts(run, loading)
    except OSError as error:
        raise UserError(
            f"metrics, figures and summary in {run.path} could not be written: {error}; the checkpoints are whole, so "
            f"mend that, then run python -m evaluation.fine_tuning {run.path}"
        ) from error


def _write_artifacts(run: Run, loading: Sequence[str] | None) -> FineTuningSummary:
    rows, notes = read_metrics(run)
    summary = summarise(run, rows, notes, _earlier_loading(run) if loading is None else loading)
    steps = [{key: _json_value(value) for key, value in row.items()} for row in rows]
    write_json(run.path / METRICS, {"summary": asdict(summary), "steps": steps})
    with atomic_write(run.path / TABLE) as file:
        file.write(as_csv(rows))
    for name, image in draw_figures(rows).items():
        with atomic_write(run.path / f"{name}.png", "wb") as file:
            file.write(image)
    shown = ["training_metrics"] if summary.best_validation_loss is None else ["training_metrics", "validation_loss"]
    images = "\n\n".join(f"![{name.replace('_', ' ')}]({name}.png)" for name in shown)
    with atomic_write(run.path / SUMMARY) as file:
        file.write(f"{describe(summary)}\n## Curves\n\n{images}\n")
    return summary


def figures(run: Run) -> dict[str, bytes]:
    """The figures of a run by name, as PNG, for a report to embed. Raises UserError when nothing was logged."""
    return draw_figures(read_metrics(run)[0])


def as_csv(rows: Rows) -> str:
    """The rows as comma-separated values under a header; what a row lacks is an empty cell."""
    columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json_value(value: Any) -> Any:
    """None for what is no number in JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _earlier_loading(run: Run) -> list[str]:
    """The lines of the last time, or none."""
    try:
        return [str(line) for line in read_json(run.path / METRICS)["summary"]["loading"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@dataclass(frozen=True)
class FineTuningCommand:
    """Make the metrics files, figures and summary of a fine-tuning run again, and print the summary."""

    run: tyro.conf.Positional[str | None] = None
    """Name below runs/, or path; by default the newest run."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, write, and print. A bad flag ends the process with status 2."""
    command = tyro.cli(FineTuningCommand, args=list(argv), prog="python -m evaluation.fine_tuning")
    run = find_run(command.run)
    print(describe(write_artifacts(run)))
    print(f"figures and metrics in {run.path}")


if __name__ == "__main__":
    run_command(main)
