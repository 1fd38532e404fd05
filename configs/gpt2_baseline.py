"""GPT-2 as it was: LayerNorm, learned positions, GELU, biases, AdamW, cosine. What the project's recipe is measured by.

48.8M parameters, where configs/mini.py has 48.6M; data, steps and budget are the same.
"""

from dataclasses import replace

from model.presets import preset
from training.config import BatchConfig, BudgetConfig, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig

config = RunConfig(
    name="gpt2_baseline",
    model=replace(preset("gpt2"), vocab_size=32_768, layers=10, width=512, heads=8),
    data=DataConfig(directory="data/mini"),
    batch=BatchConfig(tokens_per_step=65_536, micro_batch_size=4),
    optimizer=OptimizerConfig(matrices="adamw", lr=1e-3),
    schedule=ScheduleConfig(kind="cosine", warmup=0.02, final=0.1),
    budget=BudgetConfig(tokens=400_000_000),
)
