"""Four collections of Spanish text one after the other: as lyrics_stages.py, on a base for a laptop.

`make story-stages` makes the base and the data first (docs/fine_tuning.md).
"""

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

PARTS = ("part_1_people", "part_2_places", "part_3_history", "part_4_arts")

config = RunConfig(
    name="lyrics_stages_small",
    start_from="runs/small_gpt2",
    examples=ExamplesConfig(
        stages=tuple(f"data/spanish_parts/{part}.txt" for part in PARTS),
        validation_files=tuple(f"data/spanish_parts/{part}_held_out.txt" for part in PARTS),
        max_length=256,
        packing=True,
    ),
    batch=BatchConfig(examples_per_step=16, micro_batch_size=16),
    optimizer=OptimizerConfig(matrices="adamw", lr=1e-3, weight_decay=0.01, beta2=0.999),
    schedule=ScheduleConfig(kind="cosine", warmup=0.05, final=0.0),
    budget=BudgetConfig(epochs=3),
    validation=ValidationConfig(
        every=50, at_start=True, prompts=("La ciudad de", "En el año", "Fue un"), sample_tokens=120
    ),
    checkpoint=CheckpointConfig(every=500, keep=2),
    tracking=TrackingConfig(log_every=10, wandb="off"),
)
