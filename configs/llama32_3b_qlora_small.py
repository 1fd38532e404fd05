"""Conversations about Pokémon, in Spanish: as llama32_3b_qlora.py, on a base for a laptop.

`make story-chat` makes the base and the data first (docs/fine_tuning.md).
"""

from model.adapters.config import AdapterConfig
from model.weights import Storage
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

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

config = RunConfig(
    name="llama32_3b_qlora_small",
    start_from="runs/small_llama",
    storage=Storage(quantization="nf4", dtype="bf16"),
    adapter=AdapterConfig(method="lora", rank=32, alpha=64, dropout=0.05, targets=PROJECTIONS),
    examples=ExamplesConfig(
        files=("data/pokemon_chat_small/train_messages.jsonl",),
        validation_files=("data/pokemon_chat_small/held_out_messages.jsonl",),
        max_length=256,
        group_by_length=True,
    ),
    batch=BatchConfig(examples_per_step=16, micro_batch_size=16),
    optimizer=OptimizerConfig(
        matrices="adamw", adamw="paged-8bit", lr=4e-3, weight_decay=0.01, beta2=0.999, grad_clip=0.5
    ),
    schedule=ScheduleConfig(kind="cosine", warmup=0.03, final=0.0),
    budget=BudgetConfig(steps=1500),
    validation=ValidationConfig(
        every=200, at_start=True, prompts=("¿De qué tipo es Ninetales?", "¿Quién es Ninetales?"), temperature=0.0
    ),
    checkpoint=CheckpointConfig(every=200, keep=3),
    tracking=TrackingConfig(log_every=10, wandb="off"),
)
