"""A small model in the layout of Llama 3, to be fine-tuned: English and Spanish, 2.4M parameters, four minutes.

Grouped-query attention, SwiGLU, one matrix for embedding and head. All but the layout is as in small_gpt2.py.
"""

from dataclasses import replace

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
    name="small_llama",
    model=replace(
        preset("mini-llama"),
        vocab_size=4096,
        context_length=256,
        layers=4,
        width=192,
        heads=4,
        kv_heads=2,
        mlp_width=512,
        init_std=None,
        zero_init_projections=True,
    ),
    data=DataConfig(directory="data/small_bases"),
    batch=BatchConfig(tokens_per_step=2048, micro_batch_size=8),
    optimizer=OptimizerConfig(
        lr=0.02, embedding_lr=0.01, head_lr=0.01, scalar_lr=0.01, beta1=0.8, eps=1e-6, momentum_warmup=0.3
    ),
    opening=OpeningConfig(fraction=0.4, context_length=128),
    schedule=ScheduleConfig(kind="wsd", warmup=0.03, cooldown=0.6, final=0.05),
    budget=BudgetConfig(tokens=2_200_000),
    validation=ValidationConfig(every=300, prompts=("La ciudad de", "The city of")),
    checkpoint=CheckpointConfig(every=300, keep=1),
    tracking=TrackingConfig(log_every=10, wandb="off"),
)
