"""The figure of a scaling law: runs and predictions over compute, and each run as predicted from all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from evaluation.charts import log_ticks, short
from evaluation.plots import png
from evaluation.scaling_fit import Fit, Point

if TYPE_CHECKING:
    from evaluation.scaling import Prediction

MEASURED, PREDICTED = "#b9770e", "#a93226"


def draw_scaling(fitted: Fit, points: Sequence[Point], predictions: Sequence[Prediction]) -> bytes:
    """Two panels as PNG."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _over_compute(left, fitted, points, predictions)
    _left_out(right, fitted, points)
    for axes in (left, right):
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure, dpi=130)


def _over_compute(axes: Axes, fitted: Fit, points: Sequence[Point], predictions: Sequence[Prediction]) -> None:
    """A line of the law for every size, with its runs."""
    sizes = sorted({point.parameters for point in points})
    colours = colormaps["viridis"](np.linspace(0.85, 0.1, len(sizes)))
    computes = [point.compute for point in points] + [6 * one.parameters * one.tokens for one in predictions]
    if fitted.law == "compute":
        line = np.geomspace(min(computes) / 1.5, max(computes) * 1.5, 200)
        axes.plot(line, [fitted.predict(1.0, compute / 6) for compute in line], color="#777777", linewidth=1)
    for size, colour in zip(sizes, colours, strict=True):
        own = [point for point in points if point.parameters == size]
        if fitted.law == "parameters-tokens":
            tokens = np.geomspace(min(one.tokens for one in own) / 1.5, max(one.tokens for one in own) * 1.5, 100)
            axes.plot(6 * size * tokens, [fitted.predict(size, one) for one in tokens], color=colour, linewidth=1)
        axes.plot(
            [one.compute for one in own], [one.loss for one in own], "o", color=colour, markersize=5,
            label=f"{short(size)} parameters",
        )  # fmt: skip
    for one in predictions:
        compute, (low, high) = 6 * one.parameters * one.tokens, one.interval
        spread = [[max(0.0, one.predicted - low)], [max(0.0, high - one.predicted)]]
        axes.errorbar(compute, one.predicted, yerr=spread, fmt="s", color=PREDICTED, capsize=4, markersize=5)
        axes.annotate(
            one.name, (compute, high), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8,
            parse_math=False,
        )  # fmt: skip
        if one.loss is not None:
            axes.plot(compute, one.loss, "*", color=MEASURED, markersize=13, zorder=5)
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs (6 N D)", ylabel="validation loss (nats a token)")
    _plain_ticks(axes)
    axes.margins(x=0.08, y=0.12)
    axes.legend(frameon=False, fontsize=8)


def _left_out(axes: Axes, fitted: Fit, points: Sequence[Point]) -> None:
    """Measured over predicted: on the diagonal where a run is as the others say."""
    measured = np.array([point.loss for point in points])
    expected = measured / np.exp(fitted.left_out)
    ends = [min(measured.min(), expected.min()), max(measured.max(), expected.max())]
    axes.plot(ends, ends, color="#777777", linewidth=1, linestyle="--")
    axes.plot(expected, measured, "o", color="#1f4e9c", markersize=5)
    worst = float(np.abs(np.expm1(fitted.left_out)).max())
    axes.set(
        xlabel="loss predicted from all other runs", ylabel="loss measured", title=f"largest error {100 * worst:.1f} %"
    )


def _plain_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_yticks(log_ticks(low, high))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
