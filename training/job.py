"""What the loop works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common.runs import Run
from model import Decoder
from model.device import Precision
from training.averaging import WeightAverage
from training.config import RunConfig
from training.data import TrainingData
from training.distribution import World
from training.plan import BatchSplit
from training.schedules import Progress, fraction_used
from training.spikes import SpikeGuard


@dataclass
class Job:
    """One run in one process; `training.run` puts it together and the loop moves its `progress`."""

    config: RunConfig
    run: Run
    model: Decoder
    network: nn.Module  # the model as forward passes see it: wrapped or sharded where several processes train it
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler  # does nothing unless the precision is fp16
    data: TrainingData
    split: BatchSplit
    opening: BatchSplit  # the split of the first part of the run
    spikes: SpikeGuard
    average: WeightAverage | None
    progress: Progress
    world: World
    device: torch.device
    precision: Precision
    peak_flops: float | None  # of one device, None where it is not known
    base_fingerprint: str | None = None  # of what an adapter is trained on
    compiled: bool = False
    gradients_checked: bool = False
    stopped: bool = False  # as it was asked to, maybe at its very end

    def current_split(self) -> BatchSplit:
        """How the next step is split."""
        return self.opening if self.fraction_used() < self.config.opening.fraction else self.split

    def fraction_used(self, progress: Progress | None = None) -> float:
        """The fraction of the budget that is used now, or with another `progress`."""
        return fraction_used(self.config.budget, progress or self.progress, self.data.windows_per_epoch)

    def windows_of(self, split: BatchSplit, number: int) -> range:
        """The training windows in this process's micro-batch `number` of the next step."""
        first = self.progress.windows + (number * self.world.size + self.world.rank) * split.micro_batch
        return range(first, first + split.micro_batch)
