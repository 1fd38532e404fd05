"""The whole validation split, every token predicted once, summed over tokens and processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.shards import Dataset
from model import Decoder
from model.functions import IGNORE
from model.device import Precision
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
    model: Decoder, dataset: Dataset, world: World, device: torch.device, precision: Precision, batch: int
) -> ValidationResult:
    """Score the split in disjoint windows of the model's context, dealt out over the processes."""
    was_training = model.training
    model.eval()
    stream = dataset.split("val")
    context = model.config.context_length
    windows = stream.scoring_windows(context, dataset.eos_id)
    mine = range(world.rank, len(windows), world.size)
    total = 0.0
    for first in range(0, len(mine), batch):
        chosen = [windows[number] for number in mine[first : first + batch]]
        inputs = np.zeros((len(chosen), context), np.int64)
        targets = np.full((len(chosen), context), IGNORE, np.int64)
        for row, (ids, wanted) in enumerate(chosen):
            inputs[row, : len(ids)], targets[row, : len(wanted)] = ids, wanted
        with precision.autocast(device):
            total += model(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)).item()
    model.train(was_training)
    (total,) = world.sum([total], device)
    text_bytes = int(dataset.manifest["splits"]["val"]["bytes"])
    return ValidationResult(loss=total / len(stream), bits_per_byte=total / (text_bytes * math.log(2)))
