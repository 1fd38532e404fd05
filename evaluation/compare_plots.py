"""The comparison of methods as one figure: what each brings, and what each costs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.compare_runs import Row


def draw_comparison(rows: Sequence[Row]) -> bytes:
    """Six bar charts, a bar a method, as PNG."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    charts: list[tuple[str, Callable[[Row], float | None], str, bool]] = [
        ("validation loss, nats a token", lambda row: row.validation_loss, ".3f", False),
        ("held-out questions with the right fact, %", lambda row: _percent(row.score), ".1f", False),
        ("tokens a second in training", lambda row: row.tokens_per_second, ",.0f", False),
        ("trainable parameters, logarithmic", lambda row: row.trainable_parameters, ",.0f", True),
        ("peak memory of training, MB", lambda row: row.peak_memory_mb, ",.0f", False),
        ("file to hand on, MB, logarithmic", lambda row: _megabytes(row.file_bytes), ",.3g", True),
    ]
    for axes, (title, value, form, logarithmic) in zip(figure.subplots(2, 3).flat, charts, strict=True):
        _bars(axes, title, [(row.method, value(row)) for row in rows], form, logarithmic)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()


def _bars(axes: Axes, title: str, values: Sequence[tuple[str, float | None]], form: str, logarithmic: bool) -> None:
    known = [(name, value) for name, value in values if value is not None]
    axes.set_title(title, fontsize=11, pad=10)
    if not known:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names, lengths = zip(*known, strict=True)
    colors = ["#9aa0a6" if name == "base" else "#3b6fb6" for name in names]
    bars = axes.barh(names, lengths, color=colors)
    axes.bar_label(bars, [format(length, form) for length in lengths], padding=3, fontsize=9)
    axes.invert_yaxis()
    longest, shortest = max(lengths), min(lengths)
    if logarithmic:  # with room for the numbers
        axes.set_xscale("log")
        axes.set_xlim(shortest / 3, longest * (longest / shortest) ** 0.35 * 2)
    else:
        axes.set_xlim(0, 1.25 * longest or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines[["top", "right"]].set_visible(False)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6
