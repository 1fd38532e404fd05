"""Laws of how the loss falls with parameters, tokens and compute, fitted to runs (Hoffmann et al. 2022, approach 3).

    loss = E + A / N^alpha + B / D^beta        parameters and tokens
    loss = E + K / C^gamma                     compute, C = 6 N D

The Huber loss of the logarithm is minimised (arXiv 2203.15556, equation 3), from the best points of a grid of exponents
at which the rest is a least-squares problem without negative coefficients. That paper's own optimizer stopped early and
its intervals are too narrow (Besiroglu et al. 2024, arXiv 2404.10102); here the intervals take in how far each run
lies from a fit to all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import nnls
from scipy.special import logsumexp

from evaluation.resampling import bounds

Law = Literal["parameters-tokens", "compute"]
TERMS: dict[Law, tuple[tuple[str, str], ...]] = {
    "parameters-tokens": (("A", "alpha"), ("B", "beta")),
    "compute": (("K", "gamma"),),
}
FEWEST: dict[Law, int] = {"parameters-tokens": 7, "compute": 4}  # runs; more than a law has constants
FEWEST_VALUES = 3  # different sizes, and different numbers of tokens, for the law of both
HUBER = 1e-3
EXPONENTS = np.geomspace(0.05, 1.5, 9)
STARTS, STEPS = 6, 300
RESAMPLES, SEED = 200, 0
_BOUND = 15.0  # on logarithms of what the terms are at the centre of the runs


@dataclass(frozen=True)
class Point:
    """A run as a law sees it."""

    name: str
    parameters: float
    tokens: float
    loss: float
    """Validation loss at the end, in nats a token."""

    @property
    def compute(self) -> float:
        """Training FLOPs by the usual estimate, 6 for each parameter and token."""
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class Fit:
    """A law with its constants: of the runs, and of every resampling of them."""

    law: Law
    centre: np.ndarray  # (terms,) mean logarithms of what the terms are of
    theta: np.ndarray  # (1 + 2 terms,): log E, log of every term at the centre, its exponent
    resampled: np.ndarray  # (resamples, 1 + 2 terms)
    left_out: np.ndarray  # (runs,) log of measured over predicted loss, each predicted from all other runs

    @property
    def constants(self) -> dict[str, float]:
        return _constants(self, self.theta)

    @property
    def intervals(self) -> dict[str, list[float]]:
        """95 % of every constant."""
        found = [_constants(self, theta) for theta in self.resampled]
        return {name: bounds(np.array([one[name] for one in found])) for name in self.constants}

    def predict(self, parameters: float, tokens: float) -> float:
        """Loss in nats a token."""
        x = logs(self.law, parameters, tokens) - self.centre
        return float(np.exp(_log_loss(self.theta[None], x[None])[0, 0]))

    def interval(self, parameters: float, tokens: float) -> list[float]:
        """Between which 95 % of new runs lie: what resampling changes, and how far runs lie from the law."""
        x = logs(self.law, parameters, tokens) - self.centre
        return bounds(np.exp(_log_loss(self.resampled, x[None]) + self.left_out[None]))

    def best_split(self, compute: float) -> tuple[float, float]:
        """Parameters and tokens with the lowest loss for so many FLOPs, by the law of both (equation 4)."""
        found = self.constants
        alpha, beta = found["alpha"], found["beta"]
        ratio = (alpha * found["A"] / (beta * found["B"])) ** (1 / (alpha + beta))
        parameters = ratio * (compute / 6) ** (beta / (alpha + beta))
        return parameters, compute / 6 / parameters


def choose_law(points: Sequence[Point]) -> Law | None:
    """The law that so many runs can tell, None where they can tell none."""
    values = min(len({point.parameters for point in points}), len({round(np.log(point.tokens), 2) for point in points}))
    if len(points) >= FEWEST["parameters-tokens"] and values >= FEWEST_VALUES:
        return "parameters-tokens"
    return "compute" if len(points) >= FEWEST["compute"] else None


def fit(points: Sequence[Point], law: Law, resamples: int = RESAMPLES, seed: int = SEED) -> Fit:
    """Fit `law` to at least `FEWEST[law]` runs.

    Resampling draws errors again and adds them to the fitted losses (Efron 1979): those of each run from a fit to all
    others, because the residuals of so few runs with so many constants are far smaller than the errors are.
    """
    count = len(points)
    assert count >= FEWEST[law], f"{count} runs for the law of {law}"
    values = np.array([logs(law, point.parameters, point.tokens) for point in points])  # (runs, terms)
    centre, target = values.mean(axis=0), np.log([point.loss for point in points])
    x, every = values - centre, np.ones(count)
    starts = _starts(x, target)
    found, costs = _descend(starts, x, np.tile(target, (len(starts), 1)), np.tile(every, (len(starts), 1)))
    theta = found[int(np.argmin(costs))]
    others, _ = _descend(np.tile(theta, (count, 1)), x, np.tile(target, (count, 1)), 1 - np.eye(count))
    left_out = target - np.diagonal(_log_loss(others, x))
    draws = np.random.default_rng(seed).choice(left_out - left_out.mean(), (resamples, count))
    targets = _log_loss(theta[None], x) + draws
    resampled, _ = _descend(np.tile(theta, (resamples, 1)), x, targets, np.tile(every, (resamples, 1)))
    return Fit(law, centre, theta, resampled, left_out)


def logs(law: Law, parameters: float, tokens: float) -> np.ndarray:  # (terms,)
    """Logarithms of what the terms of a law are of."""
    if law == "compute":
        return np.log([6 * parameters * tokens])
    return np.log([parameters, tokens])


def _starts(x: np.ndarray, target: np.ndarray) -> np.ndarray:  # (starts, 1 + 2 terms)
    """The best points of the grid of exponents."""
    found = []
    for exponents in itertools.product(EXPONENTS, repeat=x.shape[1]):
        columns = np.concatenate([np.ones((len(x), 1)), np.exp(-x * np.array(exponents))], axis=1)
        weights, distance = nnls(columns / np.exp(target)[:, None], np.ones(len(x)))  # relative errors
        found.append((distance, [*np.log(np.maximum(weights, 1e-4)), *exponents]))
    return np.array([theta for _, theta in sorted(found)[:STARTS]])


def _descend(
    theta: np.ndarray,  # (fits, 1 + 2 terms), where each begins
    x: np.ndarray,  # (runs, terms) centred logarithms
    target: np.ndarray,  # (fits, runs) log losses
    weights: np.ndarray,  # (fits, runs), 0 for a run that is left out
) -> tuple[np.ndarray, np.ndarray]:
    """Constants with the least Huber loss, and that loss: many fits at once, each step that of Levenberg and Marquardt
    with the weights that make squares the Huber loss."""
    terms = x.shape[1]
    low = np.array([-_BOUND] * (1 + terms) + [0.01] * terms)
    high = np.array([_BOUND] * (1 + terms) + [3.0] * terms)
    theta, damping = np.clip(theta, low, high), np.full(len(theta), 1e-2)
    cost = _huber(_log_loss(theta, x) - target, weights)
    for _ in range(STEPS):
        residual, gradient = _log_loss(theta, x) - target, _gradient(theta, x)
        scaled = gradient * (weights / np.maximum(1, np.abs(residual) / HUBER))[..., None]
        curvature = np.einsum("fri,frj->fij", scaled, gradient)
        diagonal = np.einsum("fii->fi", curvature)
        diagonal += damping[:, None] * diagonal + 1e-12
        step = np.linalg.solve(curvature, np.einsum("fri,fr->fi", scaled, residual)[..., None])[..., 0]
        tried = np.clip(theta - step, low, high)
        tried_cost = _huber(_log_loss(tried, x) - target, weights)
        better = tried_cost < cost
        theta, cost = np.where(better[:, None], tried, theta), np.where(better, tried_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    return theta, cost


def _huber(residual: np.ndarray, weights: np.ndarray) -> np.ndarray:  # (fits, runs) -> (fits,)
    size = np.abs(residual)
    return np.asarray((weights * np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2))).sum(axis=1))


def _parts(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Logarithms of the floor and of every term, (fits, runs, 1 + terms)."""
    terms = x.shape[1]
    falling = theta[:, None, 1 : 1 + terms] - theta[:, None, 1 + terms :] * x
    return np.concatenate([np.broadcast_to(theta[:, :1, None], (len(theta), len(x), 1)), falling], axis=2)


def _log_loss(theta: np.ndarray, x: np.ndarray) -> np.ndarray:  # (fits, 1 + 2 terms), (runs, terms) -> (fits, runs)
    return np.asarray(logsumexp(_parts(theta, x), axis=2))


def _gradient(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of the log losses by the constants, (fits, runs, 1 + 2 terms)."""
    parts = _parts(theta, x)
    shares = np.exp(parts - logsumexp(parts, axis=2, keepdims=True))
    return np.concatenate([shares, -shares[:, :, 1:] * x], axis=2)


def _constants(fitted: Fit, theta: np.ndarray) -> dict[str, float]:
    found = {"E": float(np.exp(theta[0]))}
    terms = len(fitted.centre)
    for number, (factor, exponent) in enumerate(TERMS[fitted.law]):
        power = theta[1 + terms + number]
        found[factor] = float(np.exp(theta[1 + number] + power * fitted.centre[number]))
        found[exponent] = float(power)
    return found
