"""report.html: everything about a run, or about several beside each other, on one page without network and script.

python -m evaluation.report RUN draws it again from metrics.jsonl, samples.jsonl, config.json and summary.json, and
python -m evaluation.report RUN RUN ... compares; neither needs the model or the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import atomic_write
from common.pages import page_loader
from common.runs import RUNS_ROOT, Run, find_run
from evaluation.charts import short
from evaluation.report_facts import gather
from evaluation.run_comparison import compare

COMPARISON = "comparison.html"


@dataclass(frozen=True)
class ReportCommand:
    """Draw the report of a run again, or with several runs one page that compares them."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names below runs/, or paths; by default the newest run."""
    out: str | None = None
    """Where a comparison goes; by default runs/comparison.html."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, draw, and print where. A bad flag or run ends the process with status 2."""
    command = tyro.cli(ReportCommand, args=list(argv), prog="python -m evaluation.report")
    if len(command.runs) > 1:
        print(write_comparison([find_run(name) for name in command.runs], Path(command.out or RUNS_ROOT / COMPARISON)))
        return
    if command.out is not None:
        raise UserError("--out is for a comparison of several runs; the report of one lies in its directory")
    print(write_report(find_run(command.runs[0] if command.runs else None)))


def write_report(run: Run, summary: dict[str, Any] | None = None) -> Path:
    """Write the page of a run into its directory.

    Args:
        summary: what summary.json holds, where that has not been written yet.

    Raises:
        UserError: config.json is missing or damaged.
    """
    page = _environment().get_template("report.html").render(facts=gather(run, summary))
    with atomic_write(run.report) as file:
        file.write(page)
    return run.report


def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Write the page that compares `runs` to `path`.

    Raises:
        UserError: a run is named twice, or its config.json is missing or damaged.
    """
    page = _environment().get_template("comparison.html").render(facts=compare(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(page)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=page_loader(Path(__file__).parent / "templates"),
        autoescape=True,  # samples and document sources may hold any markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}" if value is not None else "–"
    environment.filters["fixed"] = lambda value, digits=3: f"{value:,.{digits}f}" if value is not None else "–"
    environment.filters["signed"] = lambda value, digits=3: f"{value:+,.{digits}f}" if value is not None else "–"
    environment.filters["short"] = lambda value: short(float(value)) if value is not None else "–"
    environment.filters["duration"] = duration
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %" if value is not None else "–"
    environment.filters["bounds"] = _bounds
    return environment


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 42 s, 6.5 min, 3.2 h."""
    if seconds is None:
        return "–"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bounds(value: Sequence[float] | None, digits: int = 3) -> str:
    return f"{value[0]:.{digits}f} to {value[1]:.{digits}f}" if value else "–"


if __name__ == "__main__":
    run_command(main)
