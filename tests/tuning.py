"""A small base model and files of questions and answers; what the tests of fine-tuning stand on."""

from __future__ import annotations

from pathlib import Path

from tiny import WORDS, make_project, run_train

TUNE = """
from model.adapters.config import AdapterConfig
from training.config import *

config = RunConfig(
    name="tuned",
    start_from="runs/base",
    adapter=AdapterConfig(method="lora", rank=4, alpha=8, dropout=0.1),
    examples=ExamplesConfig(files=("questions.txt",), validation_fraction=0.2),
    batch=BatchConfig(examples_per_step=8, micro_batch_size=4),
    optimizer=OptimizerConfig(matrices="adamw", lr=2e-2),
    schedule=ScheduleConfig(kind="cosine", warmup=0.1, final=0.0),
    budget=BudgetConfig(epochs=3),
    validation=ValidationConfig(every=5, at_start=True, prompts=("the model",), sample_tokens=4),
    checkpoint=CheckpointConfig(every=4),
    tracking=TrackingConfig(log_every=1, wandb="off"),
    precision="fp32",
    device="cpu",
)
"""


def write_questions(path: Path, count: int = 40, shift: int = 1) -> Path:
    """`count` questions, whose answer is the word `shift` places after the last one of the question."""
    blocks = []
    for number in range(count):
        words = [WORDS[(number + place) % len(WORDS)] for place in range(2 + number % 7)]
        answer = WORDS[(number + len(words) - 1 + shift) % len(WORDS)]
        blocks.append(f"###\nPregunta: {' '.join(words)} {number}\nRespuesta: {answer} {answer}\n###\n")
    path.write_text("".join(blocks), encoding="utf-8")
    return path


def make_base(directory: Path) -> Path:
    """A project with a trained run `base`, a file `questions.txt` and a config `tune.py`."""
    make_project(directory)
    run_train(
        directory, "--name", "base", "--model.context-length", "128", "--model.dropout", "0", "--budget.steps", "40"
    )
    write_questions(directory / "questions.txt")
    (directory / "tune.py").write_text(TUNE, encoding="utf-8")
    return directory


def make_gpt2_base(directory: Path) -> Path:
    """The same with a base in the layout of GPT-2, which PEFT and transformers know."""
    make_project(directory)
    text = (directory / "tiny.py").read_text(encoding="utf-8")
    text = text.replace("model=ModelConfig(", 'model=replace(preset("gpt2"), ')
    imports = "from dataclasses import replace\nfrom model.presets import preset\n"
    (directory / "gpt2.py").write_text(imports + text, encoding="utf-8")
    flags = ("--name", "base", "--model.context-length", "128", "--model.dropout", "0", "--budget.steps", "40")
    run_train(directory, *flags, config="gpt2.py")
    write_questions(directory / "questions.txt")
    (directory / "tune.py").write_text(TUNE, encoding="utf-8")
    return directory
