"""Spanish into English, verse by verse: full fine-tuning of the base of translation_base.py.

`make translation` makes the data and the base first (docs/fine_tuning/translation.md).
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

config = RunConfig(
    name="translation_es_en",
    start_from="runs/translation_base",
    examples=ExamplesConfig(
        files=("data/translation_es_en/train.jsonl",),
        validation_files=("data/translation_es_en/validation.jsonl",),
        max_length=256,
        group_by_length=True,
    ),
    batch=BatchConfig(examples_per_step=32, micro_batch_size=32),
    optimizer=OptimizerConfig(
        lr=0.01, embedding_lr=0.005, head_lr=0.005, scalar_lr=0.005, beta1=0.8, eps=1e-6, momentum_warmup=0.1
    ),
    schedule=ScheduleConfig(kind="wsd", warmup=0.03, cooldown=0.6, final=0.02),
    budget=BudgetConfig(epochs=3),
    validation=ValidationConfig(
        every=250, prompts=("Y dijo Jonás: Tomadme, y echadme á la mar.\n<en>",), sample_tokens=48, temperature=0.0
    ),
    checkpoint=CheckpointConfig(every=500, keep=1),
    tracking=TrackingConfig(log_every=20, wandb="off"),
)
