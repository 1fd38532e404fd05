"""A Spanish GPT-2 fine-tuned on four collections one after the other (docs/fine_tuning/stages.md).

Each stage is a run of its own, from the last one's weights, with a fresh schedule. The texts here are four parts of
the Spanish encyclopedia, from python -m data_pipeline configs/data/spanish_parts.py; put your own, lyrics for example,
in their place: plain text, with lines of --- between two songs. lyrics_stages_small.py does the same with a base for a
laptop.
"""

from dataclasses import replace

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

PARTS = ("part_1_people", "part_2_places", "part_3_history", "part_4_arts")

config = RunConfig(
    name="lyrics_stages",
    start_from="hf://datificate/gpt2-small-spanish",
    model=replace(preset("gpt2"), dropout=0.1),
    examples=ExamplesConfig(
        stages=tuple(f"data/spanish_parts/{part}.txt" for part in PARTS),
        validation_files=tuple(f"data/spanish_parts/{part}_held_out.txt" for part in PARTS),
        max_length=512,
        packing=True,
    ),
    batch=BatchConfig(examples_per_step=8, micro_batch_size=4),
    optimizer=OptimizerConfig(matrices="adamw", lr=5e-5, weight_decay=0.01, beta2=0.999),
    schedule=ScheduleConfig(kind="cosine", warmup=0.05, final=0.0),
    budget=BudgetConfig(epochs=3),
    validation=ValidationConfig(
        every=100, at_start=True, prompts=("La ciudad de", "En el año", "Fue un"), sample_tokens=120
    ),
    checkpoint=CheckpointConfig(every=500, keep=2),
)
