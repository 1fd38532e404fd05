"""A running average of the weights: less noisy than the last ones while the learning rate is high."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model import Decoder
from training.distribution import release_gathered


class WeightAverage:
    """Exponential moving average of every trained parameter, spread over the processes as the parameter is."""

    def __init__(self, model: Decoder, decay: float) -> None:
        """It begins as the present weights."""
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`; the first ones count more, there being little to average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach(), 1 - decay)

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @contextmanager
    def in_place_of_weights(self, model: Decoder) -> Iterator[None]:
        """Within, `model` computes with the averages."""
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._assign(model, self.averages)
        try:
            yield
        finally:
            self._assign(model, weights)

    @torch.no_grad()
    def _assign(self, model: Decoder, values: dict[str, Tensor]) -> None:
        release_gathered(model)
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
