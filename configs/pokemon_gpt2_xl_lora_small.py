"""Questions and answers about Pokémon, in Spanish: as pokemon_gpt2_xl_lora.py, on a base for a laptop.

`make story-pokemon` makes the base and the data first. A base this small knows nothing of the subject, so it learns for
longer, at a higher rate, about 25 creatures (docs/fine_tuning/pokemon.md).
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
    name="pokemon_gpt2_xl_lora_small",
    start_from="runs/small_gpt2",
    adapter=AdapterConfig(method="lora", rank=16, alpha=32, dropout=0.1, targets=("c_attn", "c_proj", "c_fc")),
    examples=ExamplesConfig(
        files=("data/pokemon_qa_small/pokemon_descriptions.txt",),
        validation_files=("data/pokemon_qa_small/held_out.txt",),
        max_length=256,
    ),
    batch=BatchConfig(examples_per_step=16, micro_batch_size=16),
    optimizer=OptimizerConfig(matrices="adamw", lr=1e-2, weight_decay=0.01, beta2=0.999),
    schedule=ScheduleConfig(kind="cosine", warmup=0.03, final=0.0),
    budget=BudgetConfig(epochs=40),
    validation=ValidationConfig(
        every=200,
        at_start=True,
        prompts=("¿De qué tipo es Ninetales?", "¿Qué es Ninetales?", "¿Cuánto pesa Ninetales?"),
        sample_tokens=60,
        temperature=0.0,
    ),
    checkpoint=CheckpointConfig(every=500, keep=2),
    tracking=TrackingConfig(log_every=10, wandb="off"),
)
