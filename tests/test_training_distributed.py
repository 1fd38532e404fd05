"""Two processes do exactly what one does with twice the accumulation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import read_metrics, run_train, torchrun

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
    """Checkpoints do not depend on the number of processes: neither the weights nor the place in the data."""
    run_train(project, *EXACT)
    straight = shutil.move(project / "runs" / "tiny", project / "straight")
    constant_rate = (*EXACT, "--schedule.warmup", "0.001", "--schedule.final", "1.0")  # the same rate at any budget
    run_train(project, *constant_rate)
    constant = shutil.move(project / "runs" / "tiny", project / "constant")
    run_train(project, *constant_rate, "--budget.steps", "10", processes=2)
    assert "resuming runs/tiny at step 10" in run_train(project, *constant_rate).stderr
    assert losses_of(project / "runs" / "tiny") == pytest.approx(losses_of(constant), abs=1e-3)
    assert losses_of(straight) != pytest.approx(losses_of(constant), abs=1e-3)


def losses_of(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(Path(run))]


def test_errors_are_said_once(project: Path) -> None:
    result = torchrun(project, "--data.directory", "data/none", expect=1)
    assert result.stderr.count("error: no curated data in data/none") == 1
