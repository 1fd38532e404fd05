"""The road that the README describes, on a tiny scale: train, evaluate, sample."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import tyro
from forks import run_forks
from tiny import PROJECT, environment, read_metrics, run_train

import data_pipeline.__main__
import evaluation.__main__
import model.convert.__main__
import sample
import serve
import train
import training.dashboard
from common.cli import parse_command, run_command
from common.runs import Run
from training.config import RunConfig


def run_module(project: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    result = run_forks(arguments, project, environment())
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
    assert set(summary["baselines"]) == {"unigram", "bigram", "trigram", "4-gram", "5-gram", "untrained"}
    assert run.report.is_file()

    sampled = run_module(project, str(PROJECT / "sample.py"), "--prompt", "the model", "--max-new-tokens", "5")
    assert sampled.stdout.startswith("the model") and "run runs/tiny" in sampled.stderr
    again = run_module(project, "-m", "evaluation", "runs/tiny")
    assert "up to date" in again.stdout


def test_commands_need_a_run(tmp_path: Path) -> None:
    before, stderr = Path.cwd(), io.StringIO()
    os.chdir(tmp_path)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            run_command(sample.main, ["--prompt", "x"])
    finally:
        os.chdir(before)
    assert ended.value.code == 2 and "make quickstart" in stderr.getvalue()


def test_a_full_disk_ends_a_command_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        with open("/dev/full", "w", encoding="utf-8") as file:
            file.write("x")

    with pytest.raises(SystemExit) as ended:
        run_command(main, [])
    assert ended.value.code == 1 and "error: [Errno 28] No space left on device" in capsys.readouterr().err


def readme_commands() -> list[list[str]]:
    """Every command in the README's code, split into words; those with placeholders in capitals are left out."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    fence = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    lines = [line for block in fence.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", fence.sub("", text))
    lines = [line.split(" #")[0] for line in lines if line.startswith(("python ", "torchrun ", "make "))]
    commands = [shlex.split(line) for line in lines]
    return [words for words in commands if not any(re.search(r"\b[A-Z]{3,}\b", word) for word in words)]


def test_readme_commands_can_be_typed() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    seen = set()
    before = Path.cwd()
    os.chdir(PROJECT)
    try:
        for words in readme_commands():
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile, words
            elif "train.py" in words:
                parse_command(train.TrainCommand, RunConfig, words[words.index("train.py") + 1 :], "train.py")
                seen.add("train")
            elif words[:2] == ["python", "sample.py"]:
                tyro.cli(sample.SampleCommand, args=words[2:])
                seen.add("sample")
            elif words[:2] == ["python", "serve.py"]:
                tyro.cli(serve.ServeCommand, args=words[2:])
                seen.add("serve")
            elif words[:3] == ["python", "-m", "data_pipeline"]:
                data_pipeline.__main__.parse(words[3:])
                seen.add("data_pipeline")
            elif words[:3] == ["python", "-m", "evaluation"]:
                tyro.cli(evaluation.__main__.EvaluationCommand, args=words[3:])
                seen.add("evaluation")
            elif words[:3] == ["python", "-m", "model.convert"]:
                tyro.cli(model.convert.__main__.Command, args=words[3:])
                seen.add("convert")
            elif words[:3] == ["python", "-m", "training.dashboard"]:
                tyro.cli(training.dashboard.DashboardCommand, args=words[3:])
                seen.add("dashboard")
            else:
                pytest.fail(f"no check for {words}")
    finally:
        os.chdir(before)
    assert seen == {"train", "sample", "serve", "data_pipeline", "evaluation", "convert", "dashboard"}
