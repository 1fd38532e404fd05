"""Small instructions and their answers: as alpaca_sft.py, on a base for a laptop.

`make story-alpaca` makes the base and the data first, `make story-methods` compares eight methods on them
(docs/fine_tuning.md).
"""

from model.adapters.config import AdapterConfig
from training.config import (
    BatchConfig,
    BudgetConfig,
    CheckpointConfig,
    ExamplesConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
    ValidationConfig,
)

config = RunConfig(
    name="alpaca_sft_small",
    start_from="runs/small_llama",
    adapter=AdapterConfig(method="lora", rank=16, alpha=32, dropout=0.05),
    examples=ExamplesConfig(
        files=("data/alpaca_tasks/train.json",),
        validation_files=("data/alpaca_tasks/held_out.json",),
        max_length=256,
        group_by_length=True,
    ),
    batch=BatchConfig(examples_per_step=32, micro_batch_size=16),
    optimizer=OptimizerConfig(matrices="adamw", lr=3e-3, beta2=0.999, weight_decay=0.0),
    schedule=ScheduleConfig(kind="cosine", warmup=0.05, final=0.0),
    budget=BudgetConfig(epochs=2),
    validation=ValidationConfig(
        every=50, at_start=True, prompts=("Count to five.", "Write a greeting."), sample_tokens=32, temperature=0.0
    ),
    checkpoint=CheckpointConfig(every=100, keep=2),
    tracking=TrackingConfig(log_every=10, wandb="off"),
)
