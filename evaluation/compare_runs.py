"""The runs of a comparison of methods: trained and asked in processes of their own, and what each shows."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.cli import to_dict
from common.errors import UserError
from common.files import read_json, read_json_lines, sha256_of, write_json
from common.runs import RUNS_ROOT, Run, choose_checkpoint
from data_pipeline.tokenizer import Tokenizer
from evaluation.example_loss import mean_loss
from evaluation.stage_parts import Part, load_held_out
from evaluation.tuned_and_base import NOT_ASKED, BothOptions
from inference import read_config
from inference.loading import load_base
from model.device import choose_device
from training.config import RunConfig

_PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One method in figures; None for what does not apply or was not measured."""

    method: str
    trainable_parameters: int | None = None
    peak_memory_mb: float | None = None
    file_bytes: int | None = None
    """Of the file to hand on: the adapter, or the whole model."""
    tokens_per_second: float | None = None
    """Median of the logged steps."""
    validation_loss: float | None = None
    """The lowest, in nats a target; None where training diverged with every rate."""
    score: float | None = None
    """Share of the held-out questions that are answered with the right fact."""
    asked: int | None = None
    """How many questions that were."""
    lr: float | None = None
    tried: dict[str, float | None] = field(default_factory=dict)
    """The lowest validation loss with every learning rate that was tried; None where training diverged."""


def train(config: RunConfig, directory: Path) -> float | None:
    """Train in a process of its own, whose peak memory is that of the method; a finished run is left as it is.

    Args:
        directory: where the config goes.

    Returns:
        The lowest validation loss after a step, None where training diverged.

    Raises:
        UserError: it failed in another way.
    """
    file = directory / f"{config.name}.json"
    write_json(file, to_dict(config))
    print(f"--- {config.name}", file=sys.stderr, flush=True)
    if not ended_well(str(_PROJECT / "train.py"), str(file)):
        return None
    rows = read_json_lines(RUNS_ROOT / config.name / "metrics.jsonl")
    return float(min(row["val/loss"] for row in rows if row["step"] and "val/loss" in row))


def measure(run: Run, row: Row) -> Row:
    """`row` with what the files of the run say of its size and speed."""
    logged = read_json_lines(run.metrics)
    adapter = run.path / "adapter" / "adapter_model.safetensors"
    file = adapter if adapter.is_file() else choose_checkpoint(run).weights
    return replace(
        row,
        trainable_parameters=int(read_json(run.path / "adapter.json")["trainable_parameters"]),
        peak_memory_mb=max(one["memory_mb"] for one in logged if "memory_mb" in one),
        file_bytes=file.stat().st_size,
        tokens_per_second=statistics.median(one["tokens_per_second"] for one in logged if "tokens_per_second" in one),
    )


def base_loss(run: Run, config: RunConfig) -> float:
    """The loss of the model that `run` began with on its held-out examples: some adapters change it from the start.

    Raises:
        UserError: the model or the examples are no longer there.
    """
    notes: list[str] = []
    held_out = load_held_out(Part.of(read_config(run)), Tokenizer(run.tokenizer), notes).examples
    if held_out is None:
        raise UserError("; ".join(notes))
    return mean_loss(load_base(run, config.device), held_out, choose_device(config.device))


def ask(run: Run, questions: Path, limit: int | None, config: RunConfig, with_base: bool) -> dict[str, Any]:
    """Right facts of the run, under "tuned", and if wanted of the model that it began with, under "base".

    Answers that were given to the same questions are not asked for again.

    Raises:
        UserError: the questions cannot be read, or asked.
    """
    wanted = {
        "file_sha256": sha256_of(questions),
        "limit": limit,
        "max_new_tokens": BothOptions.max_new_tokens,
        "checkpoint_step": choose_checkpoint(run).step,
    }
    path = run.path / "questions.json"
    result = read_json(path) if path.is_file() else {}
    others = any(result.get(key, "") != value for key, value in wanted.items())
    if others or (with_base and result["without_base"] == NOT_ASKED):
        flags = [*(["--limit", str(limit)] if limit else []), "--device", config.device]
        flags += [] if with_base else ["--no-base"]
        ended_well("-m", "evaluation.questions", str(run.path), str(questions), *flags)
        result = read_json(path)
    found: dict[str, Any] = result["overall"]["fact"]
    return found


def ended_well(*words: str) -> bool:
    """Run a command of ours and show what it says; False where training diverged. Raises UserError when it failed."""
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    command, last = [sys.executable, *words], ""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode and "training has diverged" not in last:
        raise UserError(f"{' '.join(words)} ended with status {process.returncode}: {last}")
    return process.returncode == 0
