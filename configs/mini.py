"""The ~50M-parameter model: 10 layers, width 512, 32k vocabulary, 1,024 tokens of context, on 100M tokens."""

from model.config import ModelConfig
from training.config import BatchConfig, BudgetConfig, DataConfig, RunConfig

config = RunConfig(
    name="mini",
    model=ModelConfig(),
    data=DataConfig(directory="data/mini"),
    batch=BatchConfig(tokens_per_step=65_536, micro_batch_size=4),
    budget=BudgetConfig(tokens=400_000_000),  # four epochs of about 100M tokens
)
