"""The bootstrap: equal to drawing sentences one by one, and as wide as theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest

import evaluation.resampling as resampling
from evaluation.resampling import bootstrap_interval, bounds, mean_interval, paired_bootstrap, resampled_sums


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    interval = mean_interval(values, resamples=2000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_draw_counts_whole_sentences() -> None:
    statistics = np.array([[1, 2], [30, 40], [500, 600]])
    seen: list[np.ndarray] = []

    def figure(sums: np.ndarray) -> np.ndarray:
        seen.append(sums)
        return ratio(sums)

    bootstrap_interval(statistics, figure, resamples=200)
    sums = np.concatenate(seen)
    possible = {
        (a + 30 * b + 500 * c, 2 * a + 40 * b + 600 * c) for a in range(4) for b in range(4) for c in range(4)
        if a + b + c == 3
    }  # fmt: skip
    assert len(sums) == 200 and {(int(a), int(b)) for a, b in sums} <= possible


def test_draws_in_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = np.random.default_rng(1).random((50, 2)) + 1
    whole = bootstrap_interval(statistics, ratio, resamples=100, seed=7)
    monkeypatch.setattr(resampling, "_AT_ONCE", 50 * 7)
    assert bootstrap_interval(statistics, ratio, resamples=100, seed=7) == whole


def test_a_seed_always_means_the_same_draws() -> None:
    """So that figures that were published can be had again: those of documents, and those of sentences."""
    values = np.random.default_rng(4).random((3, 40))
    draws = np.random.default_rng(7).integers(0, 40, (20, 40))
    np.testing.assert_allclose(resampled_sums(values, 20, seed=7), values[:, draws].sum(-1).T)
    counts = np.random.default_rng(7).multinomial(40, [1 / 40] * 40, size=20)
    interval = bootstrap_interval(values[:2].T, ratio, resamples=20, seed=7)
    assert bounds(ratio(counts @ values[:2].T)) == pytest.approx([interval.low, interval.high])
    assert bounds(np.arange(201)) == pytest.approx([5, 195])


def test_pairs_see_a_difference_that_two_intervals_do_not() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(0, 5, 300)
    first = np.stack([common + 0.3 + rng.normal(0, 0.5, 300), np.ones(300)], 1)
    second = np.stack([common, np.ones(300)], 1)
    found = paired_bootstrap(first, second, ratio)
    assert found.difference == pytest.approx(0.3, abs=0.1)
    assert found.interval.low > 0 and found.p < 0.01
    assert bootstrap_interval(first, ratio).low < bootstrap_interval(second, ratio).high
