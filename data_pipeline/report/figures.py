"""The figures of a dataset as PNG: the funnel, lengths, languages, tokens by source, sizes of clusters."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # slow to import, and most runs find their figures drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, LIGHT, RED = "#1f4e9c", "#9db4d3", "#b9770e"
_MOST_BARS = 15
_LONGEST_LABEL = 22


def funnel(stages: Sequence[dict[str, Any]]) -> bytes:
    """How much of the documents and of the bytes that were collected is left after each stage, in per cent."""
    figure, axes = _figure("left of what could be read (%)", "", height=0.9 + 0.55 * len(stages))
    places = np.arange(len(stages))
    for offset, unit, color in ((-0.2, "documents", BLUE), (0.2, "bytes", LIGHT)):
        start = stages[0][f"{unit}_out"] or 1
        shares = [100 * stage[f"{unit}_out"] / start for stage in stages]
        bars = axes.barh(places + offset, shares, height=0.36, color=color, label=unit)
        axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=3, fontsize=8)
    _name(axes, [stage["name"] for stage in stages])
    axes.set_xlim(0, 112)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _png(figure)


def lengths(edges: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> bytes:
    """Histograms of document lengths in bytes, on a logarithmic scale, each in per cent of its own documents.

    Args:
        edges: of the bins, (bins + 1,), in bytes.
        kept: documents in each bin, (bins,).
        dropped: likewise; all zero where nothing was dropped.
    """
    figure, axes = _figure("length of a document (bytes)", "documents (%)")
    for name, counts, color in (("kept", kept, LIGHT), ("dropped", dropped, RED)):
        total = max(1, int(counts.sum()))
        axes.stairs(
            100 * counts / total, edges, color=color, fill=name == "kept", linewidth=1.5,
            label=f"{name}: {counts.sum():,}",
        )  # fmt: skip
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    used = np.flatnonzero(kept + dropped)
    axes.set_xscale("log")
    if len(used):
        axes.set_xlim(edges[used[0]] / 1.2, edges[used[-1] + 1] * 1.2)
    axes.xaxis.set_major_formatter(_engineering())
    return _png(figure)


def languages(rows: Sequence[dict[str, Any]]) -> bytes:
    """Kept and dropped documents of every language; `rows` are the most frequent first."""
    rows = rows[:_MOST_BARS]
    figure, axes = _figure("documents", "", height=0.9 + 0.3 * len(rows))
    _stack(axes, [row["name"] or "unknown" for row in rows], rows, ("kept", "dropped"), (BLUE, RED))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _png(figure)


def tokens_by_source(sources: Sequence[dict[str, Any]]) -> bytes:
    """Tokens of every source in the training and the validation split, the largest source first."""
    rows = [
        {"name": source["name"], **{name: split["tokens"] for name, split in source["splits"].items()}}
        for source in sources
    ]
    rows.sort(key=lambda row: -row["train"] - row["val"])
    rest = rows[_MOST_BARS:]
    if rest:
        others = {name: sum(row[name] for row in rest) for name in ("train", "val")}
        rows = [*rows[:_MOST_BARS], {"name": f"{len(rest)} others", **others}]
    figure, axes = _figure("tokens", "", height=0.9 + 0.3 * len(rows))
    _stack(axes, [row["name"] for row in rows], rows, ("train", "val"), (BLUE, RED))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _png(figure)


def cluster_sizes(sizes: dict[int, int]) -> bytes:
    """How many clusters of duplicates have how many documents; sizes from 9 on are put together by doubling."""
    from matplotlib.ticker import MaxNLocator

    largest = max(sizes)
    starts = [size for size in (*range(2, 9), *(2**n + 1 for n in range(3, 64))) if size <= largest]
    counts = np.zeros(len(starts), np.int64)
    for size, count in sizes.items():
        counts[np.searchsorted(starts, size, side="right") - 1] += count
    labels = [str(start) if start < 9 else f"{start}–{2 * (start - 1)}" for start in starts]
    figure, axes = _figure("documents in the cluster", "clusters")
    bars = axes.bar(range(len(starts)), counts, color=BLUE, width=0.7)
    axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts.tolist()], padding=2, fontsize=8)
    axes.set_xticks(range(len(starts)), labels, rotation=0 if len(starts) < 8 else 45)
    axes.set_xlim(-0.6, max(len(starts), 6) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if counts.max() > 100:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    axes.margins(y=0.15)
    return _png(figure)


def _stack(
    axes: Axes, names: list[str], rows: Sequence[dict[str, Any]], parts: tuple[str, ...], colors: tuple[str, ...]
) -> None:
    """Horizontal bars, one a row, each made of `parts`."""
    starts = np.zeros(len(rows))
    for part, color in zip(parts, colors, strict=True):
        widths = np.array([row[part] for row in rows])
        axes.barh(range(len(rows)), widths, left=starts, height=0.65, color=color, label=part)
        starts += widths
    axes.xaxis.set_major_formatter(_engineering())
    axes.set_xlim(0, max(1, starts.max()) * 1.05)
    _name(axes, names)


def _name(axes: Axes, names: list[str]) -> None:
    """Label horizontal bars from the top; a dollar sign in a name does not begin a formula."""
    short = [name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…" for name in names]
    axes.set_yticks(range(len(names)), short, parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _figure(x: str, y: str, height: float = 3.0) -> tuple[Figure, Axes]:
    # A Figure of its own, without pyplot: no window system is asked for, and nothing stays in global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, height), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the bundled font lacks some scripts: names are boxes then
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})  # equal input, equal bytes
    return buffer.getvalue()
