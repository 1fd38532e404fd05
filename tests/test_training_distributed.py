"""Two processes do exactly what one does with twice the accumulation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import read_metrics, run_train

EXACT = ("--model.dropout", "0", "--budget.steps", "20", "--validation.every", "10")


def test_two_processes_equal_one(project: Path) -> None:
    run_train(project, *EXACT)
    one = shutil.move(project / "runs" / "tiny", project / "one")
    run_train(project, *EXACT, processes=2)
    two = project / "runs" / "tiny"
    for left, right in zip(read_metrics(Path(one)), read_metrics(two), strict=True):
        for key in ("train/loss", "grad_norm", "val/loss", "val/bits_per_byte"):
            assert left.get(key) == pytest.approx(right.get(key), abs=1e-5), (left["step"], key)
    weights = [load_file(run / "checkpoints" / "step_00000020" / "model.safetensors") for run in (Path(one), two)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-5, name


def test_a_run_of_two_processes_goes_on_with_one(project: Path) -> None:
    arguments = EXACT[:2]
    run_train(project, *arguments, "--budget.steps", "20")
    straight = shutil.move(project / "runs" / "tiny", project / "straight")
    run_train(project, *arguments, "--budget.steps", "10", processes=2)
    result = run_train(project, *arguments, "--budget.steps", "20", "--schedule.cooldown", "0.5")
    assert "resuming runs/tiny at step 10" in result.stderr
    # The rates of the first half differ (its budget was shorter), the data must not.
    left, right = read_metrics(Path(straight)), read_metrics(project / "runs" / "tiny")
    assert [row["tokens"] for row in left] == [row["tokens"] for row in right]
    assert right[-1]["train/loss"] == pytest.approx(left[-1]["train/loss"], abs=0.2)


def test_errors_are_said_once(project: Path) -> None:
    result = run_train(project, "--data.directory", "data/none", processes=2, expect=1)
    assert result.stderr.count("error: no curated data in data/none") == 1
