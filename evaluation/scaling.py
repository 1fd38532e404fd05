"""How the loss falls with size, data and compute: python -m evaluation.scaling RUN RUN RUN RUN [...].

Fits a law to runs of several sizes and budgets (see scaling_fit.py), predicts others with intervals, and says whether a
larger run lies where the law has it. Reads config.json, metrics.jsonl and tokenizer.model of every run, and state.json
of its newest checkpoint where there is one: neither weights nor data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from common.cli import from_dict, run_command
from common.errors import UserError
from common.files import atomic_write, read_json_lines, sha256_of, write_json
from common.runs import RUNS_ROOT, Run, find_run
from evaluation.charts import short
from evaluation.scaling_fit import FEWEST, Fit, Point, choose_law, fit
from evaluation.scaling_plot import draw_scaling
from inference import read_config
from model import Decoder, ModelConfig

RESULT, FIGURE = "scaling.json", "scaling.png"


@dataclass(frozen=True)
class ScalingCommand:
    """Fit a scaling law to runs that differ in size and budget, and predict others."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Names below runs/, or paths."""
    law: Literal["auto", "parameters-tokens", "compute"] = "auto"
    """E + A/N^alpha + B/D^beta, or E + K/C^gamma; "auto" takes the first where there are runs enough."""
    parameters: float | None = None
    """Size to predict, with `tokens`; 50e6 for example."""
    tokens: float | None = None
    """Training tokens to predict."""
    predict: tuple[str, ...] = ()
    """Runs that the law is not fitted to, to see whether they lie where it has them."""
    out: Path = RUNS_ROOT / "scaling"
    """Directory for the figure and the JSON."""

    def __post_init__(self) -> None:
        if (self.parameters is None) != (self.tokens is None):
            raise UserError("--parameters and --tokens go together: a prediction needs both")
        if min(self.parameters or 1, self.tokens or 1) <= 0:
            raise UserError("--parameters and --tokens must be positive")


@dataclass(frozen=True)
class Prediction:
    """What the law says of a run, beside what it came to where that is known."""

    name: str
    parameters: float
    tokens: float
    predicted: float
    interval: list[float]
    loss: float | None = None

    @property
    def within(self) -> bool | None:
        """Whether the loss lies in the interval, None where it is not known."""
        return None if self.loss is None else self.interval[0] <= self.loss <= self.interval[1]


def main(argv: Sequence[str]) -> None:
    """Parse the command line, fit, write and print. A bad flag or run ends the process with status 2."""
    command = tyro.cli(ScalingCommand, args=list(argv), prog="python -m evaluation.scaling")
    runs, held_out = [find_run(name) for name in command.runs], [find_run(name) for name in command.predict]
    check_alike([*runs, *held_out])
    points = [point_of(run) for run in runs]
    law = command.law if command.law != "auto" else choose_law(points)
    if law is None or len(points) < FEWEST[law]:
        fewest = FEWEST[law or "compute"]
        raise UserError(
            f"{len(points)} runs are too few for the law of {law or 'compute'}, which takes at least {fewest}; train "
            "more sizes or budgets, for example with: python -m evaluation.ladder CONFIG"
        )
    fitted = fit(points, law)
    predictions = [predicted(fitted, point, point.loss) for point in map(point_of, held_out)]
    if command.parameters is not None and command.tokens is not None:
        predictions.append(predicted(fitted, Point("asked for", command.parameters, command.tokens, np.nan), None))
    command.out.mkdir(parents=True, exist_ok=True)
    write_json(command.out / RESULT, as_json(fitted, points, predictions))
    with atomic_write(command.out / FIGURE, "wb") as file:
        file.write(draw_scaling(fitted, points, predictions))
    show(fitted, points, predictions)
    print(f"figure {command.out / FIGURE}\nnumbers {command.out / RESULT}")


def point_of(run: Run) -> Point:
    """Size, tokens and last validation loss of a run: that of a schedule which has ended, where it has.

    Raises:
        UserError: its config is damaged, or it was never validated.
    """
    config = from_dict(ModelConfig, read_config(run)["model"], where=f"{run.config}: model")
    with torch.device("meta"):
        parameters = Decoder(config).parameter_count()
    rows = [row for row in read_json_lines(run.metrics) if isinstance(row.get("val/loss"), float) and row.get("tokens")]
    if not rows or not np.isfinite(rows[-1]["val/loss"]):
        raise UserError(f"{run.path} has no finite validation loss in {run.metrics.name}; train it to its end")
    return Point(run.name, parameters, rows[-1]["tokens"], rows[-1]["val/loss"])


def check_alike(runs: Sequence[Run]) -> None:
    """Raises UserError unless the runs are different ones, and their losses are of the same tokens in the same windows.

    What is not recorded of a run is not compared.
    """
    paths = [run.path.resolve() for run in runs]
    twice = next((run for run in runs if paths.count(run.path.resolve()) > 1), None)
    if twice is not None:
        raise UserError(f"run {twice.name} is named twice")
    seen: dict[str, tuple[str, Any]] = {}
    for run in runs:
        for what, value in _validated_on(run).items():
            name, expected = seen.setdefault(what, (run.name, value))
            if value != expected:
                raise UserError(
                    f"{run.name} and {name} have different {what} ({value} and {expected}), so their losses cannot be "
                    "compared"
                )


def _validated_on(run: Run) -> dict[str, Any]:
    config, checkpoints = read_config(run), run.checkpoints()
    directory = (config.get("data") or {}).get("directory")
    try:
        data_fingerprint = checkpoints[-1].state.get("data_fingerprint") if checkpoints else None
    except (OSError, ValueError, TypeError):
        data_fingerprint = None
    found = {
        "tokenizers": sha256_of(run.tokenizer) if run.tokenizer.is_file() else None,
        "data directories": None if directory is None else Path(directory).resolve(),
        "data fingerprints": data_fingerprint,
        "context lengths": config["model"].get("context_length"),
    }
    return {what: value for what, value in found.items() if value is not None}


def predicted(fitted: Fit, point: Point, loss: float | None) -> Prediction:
    """What the law has for a run."""
    size = (point.parameters, point.tokens)
    return Prediction(point.name, *size, fitted.predict(*size), fitted.interval(*size), loss)


def as_json(fitted: Fit, points: Sequence[Point], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Everything that was found, for scripts."""
    asked = [{**asdict(one), "within": one.within} for one in predictions]
    return {
        "law": fitted.law,
        "constants": fitted.constants,
        "intervals": fitted.intervals,
        "runs": [
            {**asdict(point), "fitted": fitted.predict(point.parameters, point.tokens), "left_out_error": float(error)}
            for point, error in zip(points, np.expm1(fitted.left_out), strict=True)
        ],
        "predictions": asked,
    }


def show(fitted: Fit, points: Sequence[Point], predictions: Sequence[Prediction]) -> None:
    """Print constants, runs with their leave-one-out errors, and predictions."""
    formula = {"parameters-tokens": "loss = E + A/N^alpha + B/D^beta", "compute": "loss = E + K/C^gamma, C = 6 N D"}
    out = Console(highlight=False)
    constants = Table(title=f"{formula[fitted.law]}, {len(points)} runs", title_justify="left")
    for name in ("constant", "value", "95 %"):
        constants.add_column(name, justify="left" if name == "constant" else "right")
    for name, (low, high) in fitted.intervals.items():
        constants.add_row(name, f"{fitted.constants[name]:.4g}", f"{low:.4g} to {high:.4g}")
    out.print(constants)
    runs = Table("run", title="predicted from all other runs", title_justify="left")
    for name in ("parameters", "tokens", "loss", "error"):
        runs.add_column(name, justify="right")
    for point, error in zip(points, fitted.left_out, strict=True):
        sizes = (short(point.parameters), short(point.tokens))
        runs.add_row(point.name, *sizes, f"{point.loss:.4f}", f"{100 * np.expm1(error):+.2f} %")
    out.print(runs)
    for one in predictions:
        low, high = one.interval
        text = f"{one.name}: {short(one.parameters)} parameters, {short(one.tokens)} tokens: {one.predicted:.3f} "
        text += f"({low:.3f} to {high:.3f})"
        if one.loss is not None:
            text += f"; it came to {one.loss:.3f}, which lies {'within' if one.within else 'OUTSIDE'}"
        out.print(text, soft_wrap=True)
        if fitted.law == "parameters-tokens":
            best = " parameters, ".join(map(short, fitted.best_split(6 * one.parameters * one.tokens)))
            out.print(f"  with its compute the law has the lowest loss at {best} tokens", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
