"""The figures of a run in stages as PNG: the forgetting matrix, and how perplexity, diversity and loss went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, StrMethodFormatter

from evaluation.fine_tuning_plots import LINE, RAW, running_mean, smoothing_window
from evaluation.plots import png
from evaluation.stage_results import Stages, Varied, as_text

COLORS = ("#1f4e9c", "#b9770e", "#2e7d5b", "#a93226", "#6b4fa0", "#4a7a8c", "#8a6d3b", "#5f5f5f")
MARKERS = "osD^vP*X"  # so that lines can be told apart without their colours
SHARES = {
    "distinct-1 (type-token)": "distinct_1",  # the same number
    "distinct-2": "distinct_2",
    "distinct-3": "distinct_3",
    "MATTR": "mattr",
}
LONGEST_LABEL = 22
DPI = 150


def draw_figures(stages: Stages) -> dict[str, bytes]:
    """All figures by name, as PNG; equal results give equal bytes."""
    return {
        "stages_matrix": _matrix(stages),
        "stages_perplexity": _perplexity(stages),
        "stages_diversity": _diversity(stages),
        "stages_loss": _loss(stages),
    }


def _matrix(stages: Stages) -> bytes:
    """Perplexity of every model (rows) on every part (columns); darker is higher, on a logarithmic scale."""
    rows, columns = len(stages.models), len(stages.parts)
    figure = Figure(figsize=(3.2 + 1.3 * columns, 1.9 + 0.55 * rows), layout="constrained")
    axes = figure.add_subplot(title="Perplexity on the held-out part of every stage", xlabel="held-out part of stage")
    losses = np.array([[math.nan if loss is None else loss for loss in row] for row in stages.losses])
    image = axes.imshow(np.ma.masked_invalid(losses), cmap="Blues", aspect="auto")
    low, high = image.get_clim()
    for row, column in np.ndindex(rows, columns):
        loss = stages.losses[row][column]
        dark = loss is not None and high > low and (loss - low) / (high - low) > 0.6
        axes.text(column, row, as_text(loss), ha="center", va="center", color="white" if dark else "black")
    for stage in range(1, rows):
        axes.add_patch(Rectangle((stage - 1.46, stage - 0.46), 0.92, 0.92, fill=False, color=COLORS[1], linewidth=2))
    labels = _short(stages.labels)
    turned: dict[str, Any] = (
        {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 11 else {}
    )
    axes.set_xticks(range(columns), labels, **turned)
    axes.set_yticks(range(rows), [f"after {model}" if row else "base" for row, model in enumerate(stages.models)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if not np.isnan(losses).all():
        bar = figure.colorbar(image, ax=axes, label="perplexity")
        _perplexity_ticks(bar.ax)
    figure.supxlabel("outlined: the part that this stage was trained on", fontsize=9, color="#666666")
    return png(figure, DPI)


def _perplexity(stages: Stages) -> bytes:
    """A line a part, over the stages; a ring where the part was trained on."""
    figure, axes = _over_stages(stages.models, "Perplexity by stage", "perplexity (log scale)")
    for number, label in enumerate(_short(stages.labels)):
        style = _style(number)
        column = [losses[number] for losses in stages.losses]
        points = [(row, loss) for row, loss in enumerate(column) if loss is not None]
        axes.plot([row for row, _ in points], [loss for _, loss in points], label=label, **style)
        trained = [(row, loss) for row, loss in points if row == number + 1]
        for row, loss in trained:
            axes.plot(row, loss, marker="o", markersize=13, markerfacecolor="none", color=style["color"], linestyle="")
    if any(loss is not None for row in stages.losses for loss in row):
        axes.margins(y=0.12)
        _perplexity_ticks(axes)
    _legend(axes, "held-out part (ring: trained on)")
    return png(figure, DPI)


def _diversity(stages: Stages) -> bytes:
    """The measures of generated text over the stages; dotted what texts by people have."""
    models = [varied for varied in stages.varied if varied.name in stages.models]
    human = next((varied for varied in stages.varied if varied.name not in stages.models), None)
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    grid = figure.subplots(1, 3)
    words = max((varied.diversity.words for varied in stages.varied), default=0)
    panels = (
        (f"Diversity of {words:,} words", "share (higher: more varied)", SHARES),
        ("Lexical diversity (MTLD)", "words (higher: more varied)", {"MTLD": "mtld"}),
        (
            f"Coherence and repetition of {stages.unit}",
            "mean cosine, or share",
            {"coherence": "coherence", "unrelated texts": "unrelated", "repetition": "repetition"},
        ),
    )
    for axes, (title, label, measures) in zip(grid, panels, strict=True):
        _prepare(axes, stages.models, title, label)
        for number, (name, key) in enumerate(measures.items()):
            points = [
                (stages.models.index(varied.name), value)
                for varied in models
                if (value := _value(varied, key)) is not None
            ]
            style = _style(number)
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **style)
            by_people = None if human is None else _value(human, key)
            if points and by_people is not None:
                axes.axhline(by_people, color=style["color"], linestyle=":", linewidth=1.2)
        axes.margins(y=0.12)
        _legend(axes, "dotted: held-out text" if human else "")
    return png(figure, DPI)


def _value(varied: Varied, key: str) -> float | None:
    of = varied if hasattr(varied, key) else varied.diversity
    value: float | None = getattr(of, key)
    return value


def _loss(stages: Stages) -> bytes:
    """The training loss of all stages one after the other, over the steps of all of them."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.add_subplot(title="Training loss over all stages", xlabel="optimizer step, of all stages together")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    offset, labelled = 0, False
    for label, (steps, losses) in zip(_short(stages.labels), stages.curves, strict=False):
        if offset:
            axes.axvline(offset, color="#666666", linestyle="--", linewidth=1)
        if not steps:
            continue
        places, window = [offset + step for step in steps], smoothing_window(len(losses))
        first = not labelled
        axes.plot(places, losses, color=RAW, marker=".", linestyle="", label="each logged step" if first else None)
        mean = running_mean(losses, window)
        mean_label = "running mean of a twentieth of them" if window > 1 else "joined"
        axes.plot(places, mean, color=LINE, linewidth=1.6, label=mean_label if first else None)
        middle = offset + steps[-1] / 2
        axes.text(middle, 1.0, label, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=9)
        offset, labelled = offset + steps[-1], True
    axes.set_title("Training loss over all stages", pad=18)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend(axes, "", drop=-0.16)  # below the name of the axis
    return png(figure, DPI)


def _over_stages(models: Sequence[str], title: str, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    _prepare(axes, models, title, label)
    return figure, axes


def _prepare(axes: Axes, models: Sequence[str], title: str, label: str) -> None:
    axes.set(title=title, ylabel=label)
    axes.set_xticks(range(len(models)), models)
    axes.set_xlim(-0.3, len(models) - 0.7)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _perplexity_ticks(axes: Axes) -> None:
    """The axis holds losses, so it is logarithmic in the perplexity; at round perplexities it is marked."""
    low, high = (min(limit, 690.0) for limit in sorted(axes.get_ylim()))
    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(1 + 0.1 * tenth for tenth in range(90))):
        marks = [math.log(step) + decade * math.log(10) for decade in decades for step in steps]
        inside = [mark for mark in marks if low <= mark <= high]
        if len(inside) >= 3:
            break
    if len(inside) < 3:
        inside = list(np.linspace(low, high, 4))
    axes.set_yticks(inside[:: max(1, math.ceil(len(inside) / 8))])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: as_text(loss)))


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def _legend(axes: Axes, title: str, drop: float = -0.1) -> None:
    if axes.get_legend_handles_labels()[0]:
        # Below, where it hides nothing.
        axes.legend(
            **{"loc": "upper center", "bbox_to_anchor": (0.5, drop), "ncols": 4, "frameon": False},
            **{"title": title or None, "fontsize": 9, "title_fontsize": 9, "columnspacing": 1.2},
        )
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="#666666")


def _short(labels: Sequence[str]) -> list[str]:
    return [label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…" for label in labels]
