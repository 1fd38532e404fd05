"""How sure a figure is: the bootstrap over sentences or documents (Efron 1979), and over pairs of them (Koehn 2004).

A figure of a whole corpus is worked out from sums over its sentences. So a resampled corpus is a draw of how often
every sentence counts, and all of them together are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 1 << 23  # counts of sentences that are held at a time

Figure = Callable[[np.ndarray], np.ndarray]
"""From sums over sentences, (resamples, statistics), to the figure of each, (resamples,)."""

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""From a generator, resamples and sentences to how often each sentence counts, (resamples, sentences)."""


@dataclass(frozen=True)
class Interval:
    """Between these lies the figure of 95 of 100 resampled corpora."""

    low: float
    high: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same sentences."""

    difference: float
    """First minus second, on the corpus as it is."""
    interval: Interval
    """Of the difference."""
    p: float
    """How often resampling alone moves the difference by more than it is; two-sided, as sacrebleu counts it."""


def bootstrap_interval(statistics: np.ndarray, figure: Figure, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile interval of a figure whose statistics are given for every sentence, (sentences, statistics)."""
    return _interval(_resampled([statistics], figure, resamples, seed)[0], resamples, seed)


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, figure: Figure, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two systems by their statistics on the same sentences, (sentences, statistics) each.

    Both are resampled with the same draws. p is the share of resampled differences that lie further from their own mean
    than the difference from nothing (Riezler and Maxwell 2005), with one added above and below.
    """
    assert first.shape == second.shape, f"{first.shape} and {second.shape} are not of the same sentences"
    ours, theirs = _resampled([first, second], figure, resamples, seed)
    differences = ours - theirs
    difference = float(figure(first.sum(0)[None])[0] - figure(second.sum(0)[None])[0])
    further = int((np.abs(differences - differences.mean()) > abs(difference)).sum())
    return Comparison(difference, _interval(differences, resamples, seed), (further + 1) / (resamples + 1))


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values`, (sentences,)."""
    statistics = np.stack([values, np.ones(len(values))], axis=1)
    return bootstrap_interval(statistics, lambda sums: sums[:, 0] / sums[:, 1], resamples, seed)


def one_by_one(rng: np.random.Generator, resamples: int, sentences: int) -> np.ndarray:
    """A `Draw`: as many sentences as there are, each any of them."""
    draws = rng.integers(0, sentences, (resamples, sentences))
    return np.stack([np.bincount(draw, minlength=sentences) for draw in draws])


def multinomial(rng: np.random.Generator, resamples: int, sentences: int) -> np.ndarray:
    """A `Draw` of the same distribution, which spends the generator otherwise: a seed gives other figures."""
    return rng.multinomial(sentences, np.full(sentences, 1 / sentences), size=resamples)


def resampled_sums(
    values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, draw: Draw = one_by_one
) -> np.ndarray:
    """Sums over sentences drawn with replacement; (values, sentences) -> (resamples, values). All share the draws."""
    rng, sentences = np.random.default_rng(seed), values.shape[1]
    assert sentences, "a corpus without sentences cannot be resampled"
    step = max(1, _AT_ONCE // sentences)
    parts = (draw(rng, min(step, resamples - start), sentences) for start in range(0, resamples, step))
    return np.concatenate([counts.astype(np.float64) @ values.T for counts in parts])


def bounds(values: np.ndarray) -> list[float]:
    """Between which 95 of 100 resampled `values` lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _resampled(systems: list[np.ndarray], figure: Figure, resamples: int, seed: int) -> list[np.ndarray]:
    """The figure of every resampled corpus, (resamples,) for each system; all systems share the draws."""
    sums = resampled_sums(np.concatenate(systems, axis=1).T, resamples, seed, multinomial)
    return [figure(own) for own in np.split(sums, len(systems), axis=1)]


def _interval(figures: np.ndarray, resamples: int, seed: int) -> Interval:
    low, high = bounds(figures)
    return Interval(low, high, resamples, seed)
