"""What metrics.jsonl says of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import losses, read_metrics, run_train

from model import Decoder, ModelConfig


def test_share_of_the_peak(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the peak of the device is known; then it is the FLOPs of a second's tokens over that peak."""
    run_train(project, "--budget.steps", "3")
    assert not any("mfu" in row for row in read_metrics(project / "runs" / "tiny"))
    monkeypatch.setattr("training.run.peak_flops", lambda device, precision: 1e8)
    run_train(project, "--budget.steps", "3", "--name", "known")
    config = ModelConfig(vocab_size=320, context_length=32, layers=2, width=32, heads=2)
    flops = Decoder(config).flops_per_token()
    assert flops == 6 * (2 * 12 * 32**2 + 320 * 32) + 6 * 2 * 32 * 32
    for row in read_metrics(project / "runs" / "known"):
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / 1e8, rel=1e-3) and row["mfu"] > 0.01


def test_share_of_the_peak_in_the_opening(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter sequences attend to less, which counts as less."""
    monkeypatch.setattr("training.run.peak_flops", lambda device, precision: 1e8)
    opening = ("--opening.fraction", "0.5", "--opening.context-length", "8")
    run_train(project, "--budget.steps", "4", *opening, "--schedule.warmup", "0")
    model = Decoder(ModelConfig(vocab_size=320, context_length=32, layers=2, width=32, heads=2))
    assert model.flops_per_token() - model.flops_per_token(8) == 6 * 2 * 32 * (32 - 8)
    rows = read_metrics(project / "runs" / "tiny")
    for row, sequence in zip(rows, (8, 8, 32, 32), strict=True):
        expected = row["tokens_per_second"] * model.flops_per_token(sequence) / 1e8
        assert row["mfu"] == pytest.approx(expected, rel=1e-3)


def test_equal_seeds_give_equal_runs_and_others_others(project: Path) -> None:
    for name, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        run_train(project, "--budget.steps", "6", "--seed", seed, "--name", name)
    one, two, other = (project / "runs" / name for name in ("one", "two", "other"))
    assert losses(one) == losses(two) and losses(one)[0] != losses(other)[0]
    weights = [next(run.glob("checkpoints/step_00000006/model.safetensors")).read_bytes() for run in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]
