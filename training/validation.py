"""The whole validation split, every token predicted once, summed over tokens and processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.shards import Dataset
from model import Decoder
from model.device import Precision
from model.functions import IGNORE
from training.distribution import World


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
    dataset: Dataset,
    world: World,
    device: torch.device,
    precision: Precision,
    batch: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> ValidationResult | None:
    """Score the split in disjoint windows of the model's context, `batch` at a time, dealt out over the processes.

    Before every batch the processes ask each other for `stop_requested`; where one has been asked, all return None.
    """
    stream = dataset.split("val")
    context = model.config.context_length
    windows = stream.scoring_windows(context, dataset.eos_id)
    mine = range(world.rank, len(windows), world.size)
    total = 0.0
    was_training = model.training
    model.eval()
    try:
        for first in range(0, math.ceil(len(windows) / world.size), batch):
            if any(world.sum([stop_requested()], device)):
                return None
            chosen = [windows[number] for number in mine[first : first + batch]]
            # All take equally many passes, as a sharded model needs; with no window left they score a row of nothing.
            inputs = np.zeros((max(1, len(chosen)), context), np.int64)
            targets = np.full((max(1, len(chosen)), context), IGNORE, np.int64)
            for row, (ids, wanted) in enumerate(chosen):
                inputs[row, : len(ids)], targets[row, : len(wanted)] = ids, wanted
            with precision.autocast(device):
                total += model(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)).item()
    finally:
        model.train(was_training)
    (total,) = world.sum([total], device)
    text_bytes = int(dataset.manifest["splits"]["val"]["bytes"])
    return ValidationResult(loss=total / len(stream), bits_per_byte=total / (text_bytes * math.log(2)))
