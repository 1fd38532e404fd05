"""The benchmarks run: workers answer, ablations change what they name, finished runs are not repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import run_train

import train as train_program
from benchmarks import ablation
from benchmarks.peer import load_nanogpt
from benchmarks.runs import Results, spread, train
from benchmarks.training import Worker
from benchmarks.worker import Variant
from common.cli import parse_command
from common.errors import UserError
from model.config import ModelConfig
from training.config import BatchConfig, RunConfig

PROJECT = Path(__file__).resolve().parent.parent
TINY = RunConfig(
    model=ModelConfig(vocab_size=320, context_length=32, layers=2, width=32, heads=2),
    batch=BatchConfig(tokens_per_step=512, micro_batch_size=4),
    precision="fp32",
    device="cpu",
)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_takes_a_step_when_asked(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    worker = Worker(Variant(replace(TINY, activation_checkpointing="full"), processes=processes))
    first, second = worker(), worker()
    worker.close()
    assert worker.process.returncode == 0
    for figures in (first, second):
        assert figures["tokens/s"] > 0 and figures["peak memory GiB"] > 0
        assert sum(figures[f"{phase} %"] for phase in ("load", "forward", "backward", "update")) == pytest.approx(100)


def test_a_worker_that_died_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    worker = Worker(Variant(TINY, peer="nowhere"))
    with pytest.raises(UserError, match="ended with status"):
        worker()


def test_what_is_no_nanogpt_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.py"):
        load_nanogpt(str(tmp_path))


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_every_ablation_changes_the_quickstart(variant: str) -> None:
    config = str(PROJECT / "configs" / "quickstart.py")
    arguments = [config, *ablation.VARIANTS[variant]]
    varied = parse_command(train_program.TrainCommand, RunConfig, arguments, "train.py").config
    varied.check()
    plain = parse_command(train_program.TrainCommand, RunConfig, [config], "train.py").config
    assert (varied == plain) == (variant == "default")


def test_finished_runs_are_kept(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.add({"who": "ours", "seed": 1, "val/loss": 3.0})
    again = Results(tmp_path / "results.jsonl")
    assert again.find(who="ours", seed=1) == {"who": "ours", "seed": 1, "val/loss": 3.0}
    assert again.find(who="ours", seed=2) is None
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"


def test_a_run_as_a_measurement(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of the run's last validation, and a run that fails is an error."""
    run_train(project, "--budget.steps", "6")
    monkeypatch.chdir(project)
    result = train("tiny.py", "measured", ("--budget.steps", "6"))
    assert result["step"] == 6 and result["tokens"] == 6 * 512 and result["val/loss"] > 0
    with pytest.raises(UserError, match="this run failed"):
        train("tiny.py", "broken", ("--batch.tokens-per-step", "200"))
