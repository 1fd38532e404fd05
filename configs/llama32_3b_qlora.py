"""A chat model for one subject: QLoRA on Llama 3.2 3B Instruct in 8 GB (docs/fine_tuning/chat.md).

The weights are behind a licence: accept it on the hub and log in with `hf auth login`. The data are one conversation a
line of JSON; python -m data_pipeline configs/data/pokemon_chat.py makes such a file. llama32_3b_qlora_small.py does the
same with a base for a laptop.
"""

from dataclasses import replace

from model.adapters.config import AdapterConfig
from model.presets import preset
from model.weights import Storage
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

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

config = RunConfig(
    name="llama32_3b_qlora",
    start_from="hf://meta-llama/Llama-3.2-3B-Instruct",
    model=replace(preset("llama-3.2-3b"), context_length=8192),
    storage=Storage(quantization="nf4", dtype="bf16"),
    adapter=AdapterConfig(method="lora", rank=32, alpha=64, dropout=0.05, targets=PROJECTIONS),
    examples=ExamplesConfig(
        files=("data/pokemon_chat/train_messages.jsonl",),
        validation_files=("data/pokemon_chat/held_out_messages.jsonl",),
        max_length=512,
        group_by_length=True,
        # Llama's own template writes the date of the day into every conversation.
        template_variables={"date_string": "26 Jul 2024"},
    ),
    batch=BatchConfig(examples_per_step=2, micro_batch_size=1),
    optimizer=OptimizerConfig(
        matrices="adamw", adamw="paged-8bit", lr=1e-4, weight_decay=0.01, beta2=0.999, grad_clip=0.5
    ),
    schedule=ScheduleConfig(kind="cosine", warmup=100 / 2000, final=0.0),
    budget=BudgetConfig(steps=2000),
    validation=ValidationConfig(
        every=200, at_start=True, prompts=("¿De qué tipo es Pikachu?", "¿Qué es Charizard?"), sample_tokens=80
    ),
    checkpoint=CheckpointConfig(every=200, keep=3),
    activation_checkpointing="full",
)
