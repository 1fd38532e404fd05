"""Questions and answers about Pokémon, in Spanish: LoRA on GPT-2 XL (docs/fine_tuning/pokemon.md).

The data come from python -m data_pipeline configs/data/pokemon_qa.py. About 7 GB of GPU memory in bf16 with activations
computed again; pokemon_gpt2_xl_lora_small.py does the same with a base for a laptop.
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
    name="pokemon_gpt2_xl_lora",
    start_from="hf://openai-community/gpt2-xl",
    model=preset("gpt2-xl"),
    adapter=AdapterConfig(method="lora", rank=16, alpha=32, dropout=0.1, targets=("c_attn", "c_proj", "c_fc")),
    examples=ExamplesConfig(
        files=("data/pokemon_qa/pokemon_descriptions.txt",),
        validation_files=("data/pokemon_qa/held_out.txt",),
        max_length=256,
    ),
    batch=BatchConfig(examples_per_step=4, micro_batch_size=1),
    optimizer=OptimizerConfig(matrices="adamw", lr=5e-5, weight_decay=0.01, beta2=0.999),
    schedule=ScheduleConfig(kind="cosine", warmup=0.03, final=0.0),
    budget=BudgetConfig(epochs=5),
    validation=ValidationConfig(
        every=500,
        at_start=True,
        prompts=("¿De qué tipo es Pikachu?", "¿Qué es Charizard?", "¿Cuánto pesa Snorlax?", "¿Es Mewtwo legendario?"),
        sample_tokens=60,
        temperature=0.7,
    ),
    checkpoint=CheckpointConfig(every=500, keep=3),
    activation_checkpointing="full",
)
