"""The figures of a fine-tuning run as PNG, drawn over the number of optimizer steps."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from evaluation.charts import is_number

Rows = Sequence[dict[str, Any]]
"""Lines of metrics.jsonl in the order of their steps; a value that is missing or not finite is not drawn."""
Panel = Callable[[Axes, Rows], None]

RAW, LINE, VALIDATION = "#9db4d3", "#1f4e9c", "#b9770e"
MANY = 1000  # points, from which on their marks are drawn smaller


def draw_figures(rows: Rows) -> dict[str, bytes]:
    """All figures by name, as PNG; equal rows give equal bytes. What was not logged is said in the figure."""
    panels: dict[str, Panel] = {
        "loss_by_step": loss_by_step,
        "loss_by_epoch": loss_by_epoch,
        "learning_rate": learning_rate,
        "loss_log_scale": loss_log_scale,
        "validation_loss": validation_loss,
    }
    drawn = {name: _draw(rows, [[panel]], (7, 4.4)) for name, panel in panels.items()}
    drawn["training_metrics"] = _draw(rows, [[loss_by_step, loss_by_epoch], [learning_rate, loss_log_scale]], (11, 7.6))
    return drawn


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """The mean of the `window` values around each one, float64; at either end of those there are on that side."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    places = np.arange(len(values))
    start = np.maximum(places - (window - 1) // 2, 0)
    stop = np.minimum(places + window // 2 + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a finite number under `key`."""
    points = [(row["step"], float(row[key])) for row in rows if is_number(row.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def epoch_of(row: dict[str, Any]) -> int | None:
    """The epoch that a row belongs to, from 1 on; its `epoch` is how many of them were seen when it was logged."""
    seen = row.get("epoch")
    return max(1, math.ceil(seen - 1e-6)) if is_number(seen) else None


def loss_by_step(axes: Axes, rows: Rows) -> None:
    """Every logged loss, pale, and their running mean: batches of like lengths make the loss of one step jump."""
    _label(axes, "Training loss by step", "optimizer step", "loss (nats a token)")
    _draw_loss(axes, *series(rows, "train/loss"))


def loss_log_scale(axes: Axes, rows: Rows) -> None:
    """The same on a logarithmic axis, on which equal ratios are equally high; a loss of 0 has no place on it."""
    _label(axes, "Training loss by step, log scale", "optimizer step", "loss (nats a token)")
    steps, losses = series(rows, "train/loss")
    positive = [(step, loss) for step, loss in zip(steps, losses, strict=True) if loss > 0]
    _draw_loss(axes, [step for step, _ in positive], [loss for _, loss in positive])
    if positive:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        wide = high / low > 6  # less than that has too few of these marks to read a value from
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def loss_by_epoch(axes: Axes, rows: Rows) -> None:
    """The mean of the logged losses of each epoch, and the last validation in it."""
    _label(axes, "Loss by epoch", "epoch", "loss (nats a token)")
    training: dict[int, list[float]] = defaultdict(list)
    validation: dict[int, float] = {}
    for row in rows:
        epoch = epoch_of(row)
        if epoch is not None and is_number(row.get("train/loss")):
            training[epoch].append(row["train/loss"])
        if epoch is not None and is_number(row.get("val/loss")):
            validation[epoch] = row["val/loss"]
    if not training:
        return _say(axes, "no epochs were logged")
    means = {epoch: float(np.mean(losses)) for epoch, losses in training.items()}
    marker = "o" if len(means) <= 50 else ""
    axes.plot(*_points(means), color=LINE, marker=marker, label="train, mean of the epoch")
    if validation:
        axes.plot(
            *_points(validation), color=VALIDATION, marker=marker, linestyle="--", label="validation, last of the epoch"
        )
    if len(means) <= 8:
        for epoch, mean in means.items():
            axes.annotate(f"{mean:.3f}", (epoch, mean), xytext=(6, 5), textcoords="offset points")
    axes.margins(x=0.15, y=0.15)
    axes.legend(frameon=False)


def learning_rate(axes: Axes, rows: Rows) -> None:
    """The learning rate of each logged step."""
    _label(axes, "Learning rate", "optimizer step", "learning rate")
    steps, rates = series(rows, "lr")
    if not steps:
        return _say(axes, "no learning rate was logged")
    axes.plot(steps, rates, color=LINE, marker="o" if len(steps) == 1 else "")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)


def validation_loss(axes: Axes, rows: Rows) -> None:
    """Validation loss, with its perplexity on the right axis, over the running mean of the training loss."""
    _label(axes, "Validation loss and perplexity", "optimizer step", "loss (nats a token)")
    steps, losses = series(rows, "val/loss")
    if not steps:
        return _say(axes, "the run was not validated")
    train_steps, train_losses = series(rows, "train/loss")
    if train_steps:
        window = smoothing_window(len(train_losses))
        label = f"train, {_smoothing(window)}" if window > 1 else "train"
        axes.plot(train_steps, running_mean(train_losses, window), color=RAW, label=label)
    marker = "o" if len(steps) <= 100 else ""
    axes.plot(steps, losses, color=LINE, marker=marker, markersize=4, label="validation")
    best = int(np.argmin(losses))
    label = f"best: {losses[best]:.3f}, perplexity {_perplexity(losses[best])}, step {steps[best]:,}"
    axes.plot(steps[best], losses[best], color=VALIDATION, marker="*", markersize=13, linestyle="", label=label)
    axes.legend(frameon=False)
    right = axes.secondary_yaxis("right")
    right.set_ylabel("perplexity")
    right.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: _perplexity(loss)))
    right.spines["right"].set_visible(False)


def smoothing_window(points: int) -> int:
    """How many logged steps one point of a running mean is taken over: a twentieth of them, 1 for too few to smooth."""
    return points // 20 if points >= 40 else 1


def _draw_loss(axes: Axes, steps: Sequence[int], losses: Sequence[float]) -> None:
    if not steps:
        return _say(axes, "no training loss was logged")
    window = smoothing_window(len(losses))
    if window == 1:
        axes.plot(steps, losses, color=LINE, marker="o", markersize=4, label="each logged step, not smoothed")
    else:
        size = 4 if len(steps) < MANY else 1.5
        axes.plot(steps, losses, color=RAW, marker=".", markersize=size, linestyle="", label="each logged step")
        smooth = running_mean(losses, window)
        axes.plot(steps, smooth, color=LINE, linewidth=1.8, label=_smoothing(window))
    axes.legend(frameon=False, markerscale=1 if len(steps) < MANY else 4)


def _smoothing(window: int) -> str:
    return f"running mean of {window:,} logged steps"


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))  # also for a run of one step
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _say(axes: Axes, text: str) -> None:
    """Write why there is nothing to see."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#666666", fontsize=12)
    axes.set(xticks=[], yticks=[])


def _points(values: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(values), list(values.values())


def _perplexity(loss: float) -> str:
    value = math.exp(min(loss, 700.0))  # more is no number
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def _draw(rows: Rows, panels: Sequence[Sequence[Panel]], inches: tuple[float, float]) -> bytes:
    # A Figure of its own, without pyplot: no window system is asked for, and nothing stays in global state.
    figure = Figure(figsize=inches, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))  # inches
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for line, axes_of_line in zip(panels, grid, strict=True):
        for panel, axes in zip(line, axes_of_line, strict=True):
            panel(axes, rows)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})  # equal input, equal bytes
    return buffer.getvalue()
