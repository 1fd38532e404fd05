"""LoRA on your own examples: python train.py configs/fine_tune.py --start-from RUN_OR_DIRECTORY --examples.files FILE.

Any file that docs/fine_tuning.md lists; a twentieth of the questions is held out.
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
    ValidationConfig,
)

config = RunConfig(
    name="fine_tune",
    start_from="runs/small_llama",
    adapter=AdapterConfig(method="lora", rank=16, alpha=32),
    examples=ExamplesConfig(files=("examples.txt",), validation_fraction=0.05, group_by_length=True),
    batch=BatchConfig(examples_per_step=16, micro_batch_size=4),
    # For a model of 100M parameters or more; the small bases want ten times as much.
    optimizer=OptimizerConfig(matrices="adamw", lr=2e-4, beta2=0.999, weight_decay=0.0),
    schedule=ScheduleConfig(kind="cosine", warmup=0.05, final=0.0),
    budget=BudgetConfig(epochs=3),
    validation=ValidationConfig(every=50, at_start=True, prompts=("How do you do?",), patience=5),
    checkpoint=CheckpointConfig(every=200, keep=2),
)
