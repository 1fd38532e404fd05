"""The loss of a model on fine-tuning examples: every target predicted once, summed over targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from data_pipeline.examples.dataset import ExampleSet
from model import Decoder
from model.functions import IGNORE

BATCH_TOKENS = 4096  # inputs of one pass, padding included; no matter of the result


@torch.no_grad()
def mean_loss(model: Decoder, examples: ExampleSet, device: torch.device) -> float:
    """Mean negative log-likelihood of a target in nats, in fp32; exp of it is the perplexity. NaN if that diverged.

    Raises ValueError when an example is longer than the model's context.
    """
    total = 0.0
    for numbers in _batches(examples.lengths - 1):
        shape = len(numbers), int(examples.lengths[numbers].max()) - 1
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        for row, number in enumerate(numbers):
            ids, learned = examples.ids(int(number)), examples.learned(int(number))
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, : len(ids) - 1] = np.where(learned[1:], ids[1:], IGNORE)
        learned_at = torch.from_numpy(np.flatnonzero(targets != IGNORE))
        batch = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
        total += model(*batch, learned=learned_at.to(device)).item()
    return total / examples.targets


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of examples of similar length, longest first, as many together as a pass may hold, but one at least."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, BATCH_TOKENS // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
