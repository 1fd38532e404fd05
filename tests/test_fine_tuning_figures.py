"""The figures of a fine-tuning run: what is drawn is what was logged, and what is missing is said."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fine_tuning_runs import curve, make_rows
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation import fine_tuning_plots as plots


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 12))
def test_running_mean_is_the_mean_of_those_around(values: list[float], window: int) -> None:
    found = plots.running_mean(values, window)
    for place, mean in enumerate(found):
        around = values[max(0, place - (window - 1) // 2) : place + window // 2 + 1]
        assert mean == pytest.approx(sum(around) / len(around), abs=1e-9)


def drawn(panel: plots.Panel, rows: list[dict[str, Any]]) -> tuple[Axes, dict[str, tuple[list[float], list[float]]]]:
    """The axes that `panel` drew on, and its curves by their label in the legend."""
    axes = Figure().subplots()
    panel(axes, rows)
    handles, labels = axes.get_legend_handles_labels()
    return axes, {
        label: (list(handle.get_xdata()), list(handle.get_ydata()))  # type: ignore[attr-defined]
        for handle, label in zip(handles, labels, strict=True)
    }


def test_the_loss_is_shown_raw_and_smoothed_and_how_is_said() -> None:
    losses = curve()
    for panel in (plots.loss_by_step, plots.loss_log_scale):
        axes, curves = drawn(panel, make_rows(losses))
        assert curves["each logged step"] == (list(range(1, 301)), losses)
        smooth = curves["running mean of 15 logged steps"][1]
        assert smooth[100] == pytest.approx(np.mean(losses[93:108]))
        assert axes.get_title() and axes.get_xlabel() == "optimizer step" and "nats" in axes.get_ylabel()
    assert axes.get_yscale() == "log"
    _, curves = drawn(plots.loss_by_step, make_rows(curve(10)))
    assert list(curves) == ["each logged step, not smoothed"]


def test_what_has_no_place_on_a_log_scale_is_left_out() -> None:
    _, curves = drawn(plots.loss_log_scale, make_rows([2.0, 0.0, math.nan, 1.0]))
    assert curves["each logged step, not smoothed"] == ([1, 4], [2.0, 1.0])
    axes, _ = drawn(plots.loss_log_scale, make_rows([0.0]))
    assert [text.get_text() for text in axes.texts] == ["no training loss was logged"]


@pytest.mark.parametrize(("low", "high"), [(1.2, 1.9), (0.5, 3.5), (0.003, 9.0)])
def test_a_log_scale_has_values_to_read(low: float, high: float) -> None:
    axes, _ = drawn(plots.loss_log_scale, make_rows([high, low]))
    axes.figure.canvas.draw()
    ticks = [float(label.get_text()) for label in axes.get_yticklabels() if label.get_text()]
    bottom, top = axes.get_ylim()
    assert sum(bottom <= tick <= top for tick in ticks) >= 3


def test_means_of_epochs() -> None:
    rows = make_rows([3.0, 2.0, 1.5, 0.5], {1: 9.0, 2: 8.0, 4: 7.0}, epochs=2)  # epochs seen: .5, 1, 1.5, 2
    _, curves = drawn(plots.loss_by_epoch, rows)
    assert curves["train, mean of the epoch"] == ([1, 2], [2.5, 1.0])
    assert curves["validation, last of the epoch"] == ([1, 2], [8.0, 7.0])
    for row in rows:
        del row["epoch"]
    axes, _ = drawn(plots.loss_by_epoch, rows)
    assert [text.get_text() for text in axes.texts] == ["no epochs were logged"]


@pytest.mark.parametrize(
    ("seen", "epoch"), [(0, 1), (0.2, 1), (1.0, 1), (1.0000001, 1), (1.01, 2), (3, 3), (None, None)]
)
def test_a_step_belongs_to_the_epoch_that_it_is_part_of(seen: float | None, epoch: int | None) -> None:
    assert plots.epoch_of({"epoch": seen}) == epoch


def test_perplexity_stands_beside_the_validation_loss() -> None:
    axes, curves = drawn(plots.validation_loss, make_rows(curve(), {100: 2.0, 200: 1.0, 300: 3.0}))
    assert curves["validation"] == ([100, 200, 300], [2.0, 1.0, 3.0])
    assert curves["best: 1.000, perplexity 2.72, step 200"] == ([200], [1.0])
    assert "train, running mean of 15 logged steps" in curves
    axes.figure.canvas.draw()
    (right,) = axes.child_axes
    losses, labels = right.get_yticks(), [label.get_text() for label in right.get_yticklabels()]
    for loss, label in zip(losses, labels, strict=True):
        assert float(label.replace(",", "")) == pytest.approx(math.exp(loss), rel=5e-3)
    axes, _ = drawn(plots.validation_loss, make_rows(curve()))
    assert [text.get_text() for text in axes.texts] == ["the run was not validated"]


def test_steps_are_whole_numbers_on_the_axis_of_a_single_one() -> None:
    axes, _ = drawn(plots.loss_by_step, make_rows([2.0]))
    axes.figure.canvas.draw()
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [1]
