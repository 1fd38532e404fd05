"""The comparison of methods as one figure: what each brings, and what each costs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from evaluation.compare_methods import Row


def draw_comparison(rows: Sequence[Row]) -> bytes:
    """Six bar charts, a bar a method, as PNG."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    charts: list[tuple[str, Callable[[Row], float | None], bool]] = [
        ("validation loss, nats a token", lambda row: row.validation_loss, False),
        ("held-out questions with the right fact, %", lambda row: _percent(row.score), False),
        ("tokens a second in training", lambda row: row.tokens_per_second, False),
        ("trainable parameters, logarithmic", lambda row: row.trainable_parameters, True),
        ("peak memory of training, MB", lambda row: row.peak_memory_mb, False),
        ("file to hand on, MB, logarithmic", lambda row: _megabytes(row.adapter_bytes), True),
    ]
    for axes, (title, value, logarithmic) in zip(figure.subplots(2, 3).flat, charts, strict=True):
        _bars(axes, title, [(row.method, value(row)) for row in rows], logarithmic)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()


def _bars(axes: Axes, title: str, values: Sequence[tuple[str, float | None]], logarithmic: bool) -> None:
    known = [(name, value) for name, value in values if value is not None]
    axes.set_title(title, fontsize=11)
    if not known:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names, heights = zip(*known, strict=True)
    colors = ["#9aa0a6" if name == "base" else "#3b6fb6" for name in names]
    bars = axes.barh(names, heights, color=colors)
    axes.bar_label(
        bars, [f"{height:,.3g}" if height < 1000 else f"{height:,.0f}" for height in heights], padding=3, fontsize=9
    )
    axes.invert_yaxis()
    if logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6
