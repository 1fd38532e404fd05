"""A curated dataset and a config small enough to train in seconds; what the training tests stand on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from forks import PROJECT, fork, run_forks

import train
from common.cli import run_command
from common.files import sha256_of, write_json
from data_pipeline.shards import INDEX_DTYPE
from data_pipeline.tokenizer import Tokenizer

WORDS = "the model reads a small text and learns which word comes next in every short line of it".split()
VOCAB_SIZE = 320

CONFIG = """
from model.config import ModelConfig
from training.config import *

config = RunConfig(
    name="tiny",
    model=ModelConfig(vocab_size=320, context_length=32, layers=2, width=32, heads=2, dropout=0.1),
    data=DataConfig(directory="data/tiny"),
    batch=BatchConfig(tokens_per_step=512, micro_batch_size=4),
    budget=BudgetConfig(steps=12),
    validation=ValidationConfig(every=6, prompts=("the ",), sample_tokens=8),
    checkpoint=CheckpointConfig(every=4),
    tracking=TrackingConfig(log_every=1, wandb="off"),
    precision="fp32",
    device="cpu",
)
"""


def make_dataset(directory: Path, documents: int = 200, seed: int = 0) -> Path:
    """Write a whole dataset of made-up sentences, in two sources, in the contract's format."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) + ".\n" for _ in range(documents)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        pad_id=-1,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer(directory / "tokenizer.model")
    splits: dict[str, Any] = {}
    for split, chosen in (("train", texts[:-20]), ("val", texts[-20:])):
        ids, rows = [], []
        for number, text in enumerate(chosen):
            encoded = [*tokenizer.encode(text), tokenizer.eos_id]
            rows.append((len(ids), len(encoded), len(text.encode()), number % 2))
            ids += encoded
        file = directory / f"{split}_00000.bin"
        np.array(ids, "<u2").tofile(file)
        np.save(file.with_suffix(".index.npy"), np.array(rows, INDEX_DTYPE))
        text_bytes = sum(len(text.encode()) for text in chosen)
        splits[split] = {
            "tokens": len(ids),
            "bytes": text_bytes,
            "documents": len(chosen),
            "shards": [{"file": file.name, "tokens": len(ids), "sha256": sha256_of(file)}],
        }
    write_json(
        directory / "manifest.json",
        {
            "name": directory.name,
            "dtype": "<u2",
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "tokenizer": {"kind": "sentencepiece", "file": "tokenizer.model", "sha256": tokenizer.sha256},
            "sources": [{"name": "first", "licence": "none"}, {"name": "second", "licence": "none"}],
            "splits": splits,
            "fingerprint": hashlib.sha256(json.dumps(splits).encode()).hexdigest(),
        },
    )
    return directory


def make_project(directory: Path) -> Path:
    """A working directory with `data/tiny` and `tiny.py`, in which train.py can be run."""
    make_dataset(directory / "data" / "tiny")
    (directory / "tiny.py").write_text(CONFIG, encoding="utf-8")
    return directory


def train_arguments(*arguments: str, config: str = "tiny.py") -> list[str]:
    return [str(PROJECT / "train.py"), config, *arguments]


def train_command(*arguments: str) -> list[str]:
    return [sys.executable, *train_arguments(*arguments)]


def environment(**extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**inherited, **extra}


@dataclass
class Result:
    stdout: str
    stderr: str


def shadow(project: Path, package: str, code: str) -> str:
    """A PYTHONPATH with `code` in place of an installed package."""
    directory = project / "shadow" / package
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text(code + "\n")
    return str(directory.parent)


def run_train(
    directory: Path,
    *arguments: str,
    processes: int = 1,
    expect: int = 0,
    config: str = "tiny.py",
    figures: bool = False,
    **extra: str,
) -> Result:
    """Run `train.py` with `config` in `directory` and check its exit status.

    In this process, unless several processes or environment variables are asked for. A fine-tune then draws its
    `figures` only where they are asked for: they are two thirds of its time.
    """
    if processes == 1 and not extra:
        return run_here(directory, *arguments, expect=expect, config=config, figures=figures)
    result = run_forks(train_arguments(*arguments, config=config), directory, environment(**extra), processes)
    assert result.returncode == expect, result.stdout + result.stderr
    return Result(result.stdout, result.stderr)


def torchrun(directory: Path, *arguments: str, processes: int = 2, expect: int = 0, config: str = "tiny.py") -> Result:
    """The same with torchrun itself."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    result = subprocess.run(
        [*launcher, *train_arguments(*arguments, config=config)],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return Result(result.stdout, result.stderr)


def run_here(
    directory: Path, *arguments: str, expect: int = 0, config: str = "tiny.py", figures: bool = False
) -> Result:
    before, stdout, stderr = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(directory)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
            if not figures:
                patch.setattr("evaluation.fine_tuning.draw_figures", lambda rows: {})
            with pytest.raises(SystemExit) as ended:
                run_command(train.main, [config, *arguments])
    finally:
        os.chdir(before)
    assert ended.value.code == expect, stdout.getvalue() + stderr.getvalue()
    return Result(stdout.getvalue(), stderr.getvalue())


def kill_when(
    due: Callable[[Path], bool],
    project: Path,
    *arguments: str,
    pause: float = 0,
    config: str = "tiny.py",
    run: str = "tiny",
    **extra: str,
) -> None:
    """Train until `due` is true of the run's directory, then SIGKILL, after a `pause` of so many seconds if asked."""
    process = fork(train_arguments(*arguments, config=config), project, environment(**extra))
    while not due(project / "runs" / run):
        assert process.is_alive()
        time.sleep(0.005)
    if pause:
        os.kill(process.pid or 0, signal.SIGSTOP)
        time.sleep(pause)
    process.kill()
    process.join()


def has_logged(lines: int) -> Callable[[Path], bool]:
    """Whether metrics.jsonl of a run's directory has at least so many lines."""

    def due(run: Path) -> bool:
        return (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= lines

    return due


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[tuple[Any, ...]]:
    """Everything in metrics.jsonl that must not depend on when the run was interrupted."""
    return [
        tuple(row.get(key) for key in ("step", "tokens", "train/loss", "lr", "grad_norm", "val/loss"))
        for row in read_metrics(run)
    ]
