"""Training on from the weights of another model: python train.py configs/continued.py --start-from RUN_OR_DIRECTORY.

The architecture is that of the weights; the data must have been made with their tokenizer.
"""

from training.config import BatchConfig, BudgetConfig, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig

config = RunConfig(
    name="continued",
    data=DataConfig(directory="data/mini"),
    batch=BatchConfig(tokens_per_step=32_768, micro_batch_size=4),
    # All weights have long found their place: one small rate for every group, warmed up, down to nothing.
    optimizer=OptimizerConfig(matrices="adamw", lr=5e-5),
    schedule=ScheduleConfig(kind="cosine", warmup=0.05, final=0.0),
    budget=BudgetConfig(tokens=10_000_000),
)
