"""Runs in stages and in folds: what ends one, what begins the next, and which configs stand for none."""

from __future__ import annotations

import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import run_train
from tuning import write_questions

import training.journal
from common.runs import Run
from training.job import Job

STAGES = ("--examples.files", "--examples.stages", "questions.txt", "second.txt")
TWO_STEPS = (*STAGES, "--budget.steps", "2", "--validation.no-at-start")


def tune(directory: Path, *arguments: str, **options: Any) -> Any:
    return run_train(directory, *arguments, config="tune.py", **options)


def stopped_by(function: Callable[..., Any], is_due: Callable[..., bool]) -> Callable[..., Any]:
    """`function`, called by a process that is asked to stop just before, where that is due."""

    def with_signal(*arguments: Any, **keywords: Any) -> Any:
        if is_due(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **keywords)

    return with_signal


def always(*_: Any) -> bool:
    return True


def in_last_step(job: Job, *_: Any) -> bool:
    return job.progress.step == 1


@pytest.mark.parametrize(
    ("place", "is_due"),
    [
        ("training.loop.accumulate_gradients", in_last_step),
        ("training.journal.validate", always),
        ("training.journal.save_checkpoint", always),
    ],
    ids=["step", "validation", "save"],
)
def test_a_stop_at_the_end_of_a_stage_begins_no_other(
    tuning: Path, place: str, is_due: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything made of it: whoever asked may not wait."""
    write_questions(tuning / "second.txt", shift=2)
    monkeypatch.setattr(place, stopped_by(pkgutil.resolve_name(place), is_due))
    tune(tuning, *TWO_STEPS)
    assert [path.name for path in (tuning / "runs").glob("tuned*")] == ["tuned_stage_1"]
    run = Run(tuning / "runs" / "tuned_stage_1")
    assert run.checkpoints()[-1].step == 2 and not (run.path / "adapter").exists() and not run.report.exists()


def test_a_stage_begins_with_what_the_last_one_ended_with(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation that was cut short may make another checkpoint the best, so it is made up first."""
    write_questions(tuning / "second.txt", shift=2)
    with monkeypatch.context() as patch:
        patch.setattr("training.journal.validate", stopped_by(training.journal.validate, always))
        tune(tuning, *TWO_STEPS)
    tune(tuning, *TWO_STEPS)
    runs = tuning / "runs"
    for number in (1, 2):
        (last,) = Run(runs / f"tuned_stage_{number}").checkpoints()
        assert last.step == 2 and last.state["val_loss"] is not None
        assert (runs / f"tuned_stage_{number}" / "adapter").is_dir()
    assert (runs / "tuned" / "stages.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--examples.stages", "questions.txt", "second.txt"), "examples.files and examples.stages exclude each other"),
        ((*STAGES, "--examples.folds", "2"), "examples.stages and examples.folds exclude each other"),
        (("--examples.folds", "-1"), "folds must be 2 or more (or 0)"),
        (("--examples.folds", "1"), "folds must be 2 or more (or 0)"),
    ],
)
def test_series_that_cannot_be(tuning: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in tune(tuning, *flags, expect=2).stderr
    assert {path.name for path in (tuning / "runs").iterdir()} == {"base"}
