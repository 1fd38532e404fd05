"""All that is held out, every target predicted once, summed over targets and processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from model import Decoder
from model.device import Precision
from model.functions import IGNORE
from training.data import Row, ValidationSplit
from training.distribution import World

NOTHING: Row = (np.zeros(1, np.int64), np.full(1, IGNORE, np.int64))


@dataclass(frozen=True)
class ValidationResult:
    loss: float  # nats per token
    bits_per_byte: float  # of the raw UTF-8 text

    def to_metrics(self) -> dict[str, float]:
        perplexity = math.exp(min(self.loss, 20.0))
        return {"val/loss": self.loss, "val/perplexity": perplexity, "val/bits_per_byte": self.bits_per_byte}


@torch.no_grad()
def validate(
    model: Decoder,
    split: ValidationSplit,
    world: World,
    device: torch.device,
    precision: Precision,
    batch: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> ValidationResult | None:
    """Score all rows, `batch` at a time, dealt out over the processes.

    Before every batch the processes ask each other for `stop_requested`; where one has been asked, all return None.
    """
    mine = range(world.rank, len(split.rows), world.size)
    total = 0.0
    was_training = model.training
    model.eval()
    try:
        for first in range(0, math.ceil(len(split.rows) / world.size), batch):
            if any(world.sum([stop_requested()], device)):
                return None
            # All take equally many passes, as a sharded model needs; with no row left they score one of nothing.
            chosen = [split.rows[number] for number in mine[first : first + batch]] or [NOTHING]
            shape = len(chosen), max(len(ids) for ids, _ in chosen)
            inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
            for row, (ids, wanted) in enumerate(chosen):
                inputs[row, : len(ids)], targets[row, : len(wanted)] = ids, wanted
            wanted_at = np.flatnonzero(targets != IGNORE)
            learned = None if len(wanted_at) == targets.size else torch.from_numpy(wanted_at).to(device)
            with precision.autocast(device):
                loss = model(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device), learned=learned)
            total += loss.item()
    finally:
        model.train(was_training)
    (total,) = world.sum([total], device)
    return ValidationResult(total / split.targets, total / (max(1, split.text_bytes) * math.log(2)))
