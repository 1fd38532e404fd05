"""The road that the README describes, on a tiny scale: train, evaluate, sample."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tiny import PROJECT, environment, read_metrics, run_train

from common.runs import Run


def run_module(project: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment(PYTHONPATH=str(PROJECT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def test_train_evaluate_sample(project: Path) -> None:
    run_train(project, "--validation.every", "4")
    run = Run(project / "runs" / "tiny")
    run_module(project, "-m", "evaluation", "runs/tiny")
    summary = json.loads(run.summary.read_text(encoding="utf-8"))

    # Training and evaluation count separately, and must agree.
    best = min((row for row in read_metrics(run.path) if "val/loss" in row), key=lambda row: row["val/loss"])
    assert summary["checkpoint_step"] == best["step"]
    assert summary["val_loss"] == pytest.approx(best["val/loss"], rel=1e-5)
    assert summary["val_bits_per_byte"] == pytest.approx(best["val/bits_per_byte"], rel=1e-5)
    assert summary["tokens_trained"] == best["tokens"]
    assert set(summary["per_source"]) == {"first", "second"}
    assert set(summary["baselines"]) == {"unigram", "trigram"}
    assert run.report.is_file()

    sampled = run_module(project, str(PROJECT / "sample.py"), "--prompt", "the model", "--max-new-tokens", "5")
    assert sampled.stdout.startswith("the model") and "run runs/tiny" in sampled.stderr
    again = run_module(project, "-m", "evaluation", "runs/tiny")
    assert "up to date" in again.stdout


def test_commands_need_a_run(tmp_path: Path) -> None:
    import sample
    from common.cli import run_command

    before, stderr = Path.cwd(), io.StringIO()
    os.chdir(tmp_path)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            run_command(sample.main, ["--prompt", "x"])
    finally:
        os.chdir(before)
    assert ended.value.code == 2 and "make quickstart" in stderr.getvalue()


def test_readme_commands_exist() -> None:
    """Every command of the README's tables names a file, module or make target that is there."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    words = text.replace("`", " ").split()
    for word, following in itertools.pairwise(words):
        if word == "make" and following.rstrip(",;:").replace("-", "").isalpha():
            assert f"\n{following.rstrip(',;:')}:" in makefile or following in ("keeps", "and"), following
        if word == "-m" and following not in ("pip", "venv"):
            assert (PROJECT / following / "__main__.py").is_file() or (PROJECT / f"{following}.py").is_file(), following
        if word.startswith("configs/") and word.endswith(".py"):
            assert (PROJECT / word).is_file(), word
