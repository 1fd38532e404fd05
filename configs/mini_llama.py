"""52M parameters in the plain layout of Llama, tied: vLLM, llama.cpp and others read it without our code."""

from model.presets import preset
from training.config import BatchConfig, BudgetConfig, DataConfig, RunConfig

config = RunConfig(
    name="mini_llama",
    model=preset("mini-llama"),
    data=DataConfig(directory="data/mini"),
    batch=BatchConfig(tokens_per_step=65_536, micro_batch_size=4),
    budget=BudgetConfig(tokens=400_000_000),  # four epochs of about 100M tokens
)
