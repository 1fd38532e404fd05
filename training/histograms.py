"""Histograms of weights and gradients, on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.distribution import whole
from training.job import Job

BINS = 64


@dataclass(frozen=True)
class Histogram:
    """How the finite values of one tensor are spread over bins of equal width."""

    counts: tuple[int, ...]  # one a bin
    edges: tuple[float, ...]  # one more than bins, rising
    total: float  # sum of all values
    squares: float  # sum of their squares


def histogram(values: Tensor) -> Histogram | None:
    """The histogram of a tensor of any shape; None where not one value of it is finite."""
    values = values.detach().float().flatten()
    values = values[values.isfinite()]
    if not values.numel():
        return None
    low, high = (float(bound) for bound in values.aminmax())
    if low == high:  # a gain that is still all ones, say: bins need some width
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    return Histogram(
        counts=tuple(int(count) for count in counts.tolist()),
        edges=tuple(edges.tolist()),
        total=float(values.sum()),
        squares=float(values.square().sum()),
    )


class HistogramRecorder:
    """Takes the histograms of every `every`-th step through hooks of the optimizers.

    The gradients are gone once a step is over, so they are read just before it: as the optimizer sees them, clipped,
    beside the weights they were computed at. A step that an fp16 overflow skips has none.
    """

    def __init__(self, job: Job, every: int) -> None:
        self._job, self._every = job, every
        self._names = {id(parameter): name for name, parameter in job.model.named_parameters()}
        self._taken: dict[str, Histogram] = {}
        self._hooks = [optimizer.register_step_pre_hook(self._before_step) for optimizer in job.optimizers]

    def take(self) -> dict[str, Histogram]:
        """`weights/...` and `gradients/...` of the step just taken; empty where none were due. Forgets them."""
        taken, self._taken = self._taken, {}
        return taken

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if (self._job.progress.step + 1) % self._every:
            return
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            name = self._names[id(parameter)].replace(".", "/")
            for kind, values in (("weights", parameter), ("gradients", parameter.grad)):
                # A sharded tensor is put together by all processes, so all of them come here.
                values = whole(values) if values is not None else None
                taken = histogram(values) if values is not None and self._job.world.is_main else None
                if taken is not None:
                    self._taken[f"{kind}/{name}"] = taken
