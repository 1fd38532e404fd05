"""Instructions and answers in Alpaca's form: LoRA on GPT-2 (docs/fine_tuning/alpaca.md).

The data come from python -m data_pipeline configs/data/alpaca_tasks.py, or are any file of Alpaca, messages or
ShareGPT. python -m evaluation.compare_methods with this file compares full fine-tuning, LoRA, QLoRA, DoRA, prefix,
prompt, adapters and IA3. alpaca_sft_small.py does the same with a base for a laptop.
"""

from model.adapters.config import AdapterConfig
from model.presets import preset
from training.config import (
    BatchConfig,
    BudgetConfig,
    CheckpointConfig,
    ExamplesConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    ValidationConfig,
)

config = RunConfig(
    name="alpaca_sft",
    start_from="hf://openai-community/gpt2",
    model=preset("gpt2"),
    adapter=AdapterConfig(method="lora", rank=16, alpha=32, dropout=0.05),
    examples=ExamplesConfig(
        files=("data/alpaca_tasks/train.json",),
        validation_files=("data/alpaca_tasks/held_out.json",),
        max_length=512,
        group_by_length=True,
    ),
    batch=BatchConfig(examples_per_step=16, micro_batch_size=4),
    optimizer=OptimizerConfig(matrices="adamw", lr=2e-4, weight_decay=0.0, beta2=0.999),
    schedule=ScheduleConfig(kind="cosine", warmup=0.03, final=0.0),
    budget=BudgetConfig(epochs=3),
    validation=ValidationConfig(
        every=100, at_start=True, prompts=("Name three colors.", "What is the capital of France?"), sample_tokens=60
    ),
    checkpoint=CheckpointConfig(every=200, keep=2),
)
