"""The model of configs/mini.py in a night on two CPU cores, on data that needs no account.

Make the data first: python -m data_pipeline configs/data/mini_local.py (Debian 12, apt-get). Small steps, and short
sequences for most of the time, because there is time for half of the data only.
"""

from model.presets import preset
from training.config import (
    BatchConfig,
    BudgetConfig,
    CheckpointConfig,
    DataConfig,
    OpeningConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
    ValidationConfig,
)

config = RunConfig(
    name="mini_cpu",
    model=preset("mini"),
    data=DataConfig(directory="data/mini_local"),
    batch=BatchConfig(tokens_per_step=8192, micro_batch_size=4),
    optimizer=OptimizerConfig(
        lr=0.02, embedding_lr=0.01, head_lr=0.01, scalar_lr=0.01, beta1=0.8, eps=1e-5, momentum_warmup=0.18
    ),
    opening=OpeningConfig(fraction=0.7, context_length=256),
    schedule=ScheduleConfig(kind="wsd", warmup=0.012, cooldown=0.8, final=0.05),
    budget=BudgetConfig(tokens=75_000_000),
    validation=ValidationConfig(
        every=250, tokens=131_072, prompts=("The history of", "La ciudad de", "from __future__ import annotations")
    ),
    checkpoint=CheckpointConfig(every=125, keep=2),
    tracking=TrackingConfig(log_every=10),
)
