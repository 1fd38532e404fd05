"""A small model that learns English prose and Python on a laptop CPU in five minutes."""

from model.config import ModelConfig
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
    name="quickstart",
    model=ModelConfig(
        vocab_size=8192,
        context_length=256,
        layers=3,
        width=192,
        heads=3,
        tied=False,
        logit_softcap=None,
    ),
    data=DataConfig(directory="data/quickstart"),
    batch=BatchConfig(tokens_per_step=2048, micro_batch_size=8),
    # eps well above the rounding noise of a gradient: where the true gradient is nearly zero, AdamW would otherwise let
    # that noise choose the direction, and runs that split a batch over more processes or threads would part.
    optimizer=OptimizerConfig(
        lr=0.02, embedding_lr=0.01, head_lr=0.01, scalar_lr=0.01, beta1=0.8, eps=1e-4, momentum_warmup=0.3
    ),
    opening=OpeningConfig(fraction=0.4, context_length=128),
    schedule=ScheduleConfig(kind="wsd", warmup=0.03, cooldown=0.6, final=0.05),
    budget=BudgetConfig(minutes=5),
    validation=ValidationConfig(every=200),
    checkpoint=CheckpointConfig(every=200, keep=2),
    tracking=TrackingConfig(log_every=10),
)
