"""The ~50M-parameter model: 8 layers, width 448, 32k vocabulary, 1,024 tokens of context, on 100M tokens; for a GPU.

A head of its own costs parameters and no time, so the blocks are narrower than those of a tied model of this size.
"""

from model.presets import preset
from training.config import BatchConfig, BudgetConfig, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig

config = RunConfig(
    name="mini",
    model=preset("mini"),
    data=DataConfig(directory="data/mini"),
    batch=BatchConfig(tokens_per_step=65_536, micro_batch_size=8),
    optimizer=OptimizerConfig(
        lr=0.02, embedding_lr=0.01, head_lr=0.01, scalar_lr=0.01, beta1=0.8, eps=1e-5, momentum_warmup=0.3
    ),
    schedule=ScheduleConfig(kind="wsd", warmup=0.02, cooldown=0.5, final=0.05),
    budget=BudgetConfig(tokens=400_000_000),  # four epochs of about 100M tokens
)
