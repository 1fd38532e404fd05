"""A small base for translation_es_en.py: Spanish and English, 8.4M parameters; see configs/data/translation_base.py."""

from model.config import ModelConfig
from training.config import (
    BatchConfig,
    BudgetConfig,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
    ValidationConfig,
)

config = RunConfig(
    name="translation_base",
    model=ModelConfig(vocab_size=8192, context_length=256, layers=8, width=256, heads=4, logit_softcap=None),
    data=DataConfig(directory="data/translation_base"),
    batch=BatchConfig(tokens_per_step=4096, micro_batch_size=16),
    optimizer=OptimizerConfig(
        lr=0.02, embedding_lr=0.01, head_lr=0.01, scalar_lr=0.01, beta1=0.8, eps=1e-6, momentum_warmup=0.3
    ),
    schedule=ScheduleConfig(kind="wsd", warmup=0.03, cooldown=0.6, final=0.05),
    budget=BudgetConfig(tokens=4_000_000),
    validation=ValidationConfig(every=250, prompts=("Y dijo", "And he said")),
    checkpoint=CheckpointConfig(every=250, keep=1),
    tracking=TrackingConfig(log_every=10, wandb="off"),
)
