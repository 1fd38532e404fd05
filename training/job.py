"""What the loop works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common.runs import Run
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from model import Decoder
from model.device import Precision
from training.batches import Batches
from training.config import RunConfig
from training.distribution import World
from training.plan import BatchSplit
from training.schedules import Progress


@dataclass
class Job:
    """One run in one process; `training.run` puts it together and the loop moves its `progress`."""

    config: RunConfig
    run: Run
    model: Decoder
    network: nn.Module  # the model as forward passes see it: wrapped or sharded where several processes train it
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler  # does nothing unless the precision is fp16
    dataset: Dataset
    tokenizer: Tokenizer
    batches: Batches
    split: BatchSplit
    progress: Progress
    world: World
    device: torch.device
    precision: Precision
