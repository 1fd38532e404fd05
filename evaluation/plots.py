"""The curves of a run as PNG: loss, learning rate, throughput, over the number of training tokens."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from common.files import atomic_write, read_json_lines
from common.runs import Run
from evaluation.baselines import best_ngram
from evaluation.charts import is_number

Rows = list[dict[str, Any]]


def write_plots(run: Run, summary: dict[str, Any]) -> None:
    """Draw the curves into the directory of `run`, with unigram and best n-gram of `summary` as levels of the loss."""
    metrics = read_json_lines(run.metrics)
    baselines = summary["baselines"]
    shown = ("unigram", best_ngram(baselines))
    levels = {name: float(score["loss"]) for name, score in baselines.items() if name in shown}
    images = {
        "loss": loss_curve(metrics, levels),
        "learning_rate": learning_rate_curve(metrics),
        "throughput": throughput_curve(metrics),
    }
    for name, image in images.items():
        with atomic_write(run.path / f"{name}.png", "wb") as file:
            file.write(image)


def loss_curve(metrics: Rows, levels: dict[str, float]) -> bytes:
    """Training and validation loss, with `levels` (label to nats a token) as horizontal lines."""
    figure, axes = _figure("training tokens", "loss (nats a token)")
    _line(axes, metrics, "train/loss", label="train", color="#9db4d3", linewidth=1)
    _line(axes, metrics, "val/loss", label="validation", color="#1f4e9c", marker="o", markersize=3.5)
    for (label, level), color in zip(levels.items(), ("#b9770e", "#a93226"), strict=False):
        axes.axhline(level, color=color, linestyle="--", linewidth=1)
        # Below its line and far left, where a falling curve is still above the lowest of them.
        axes.annotate(
            f"{label} {level:.2f}", (0.1, level), xycoords=("axes fraction", "data"), color=color,
            xytext=(0, -3), textcoords="offset points", ha="left", va="top", fontsize=9,
        )  # fmt: skip
    axes.margins(y=0.1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return png(figure)


def learning_rate_curve(metrics: Rows) -> bytes:
    figure, axes = _figure("training tokens", "learning rate")
    _line(axes, metrics, "lr", color="#1f4e9c")
    axes.set_ylim(bottom=0)
    return png(figure)


def throughput_curve(metrics: Rows) -> bytes:
    figure, axes = _figure("training tokens", "tokens a second")
    _line(axes, metrics, "tokens_per_second", color="#1f4e9c")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    return png(figure)


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    # A Figure of its own, without pyplot: no window system is asked for, and nothing stays in global state.
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure, axes


def _line(axes: Axes, metrics: Iterable[dict[str, Any]], key: str, **style: Any) -> None:
    """Draw the rows that have a finite number under `key`."""
    points = [(row["tokens"], row[key]) for row in metrics if "tokens" in row and is_number(row.get(key))]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as a PNG, `dpi` pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # equal input, equal bytes
    return buffer.getvalue()
