"""TensorBoard files, read back by TensorBoard itself."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import kill_when, read_metrics, run_train, shadow

from training.job import Job
from training.plan import BatchSplit
from training.validation import ValidationResult

TENSORBOARD = "--tracking.tensorboard"


def load(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    return events


def assert_holds(events: EventAccumulator, run: Path) -> None:
    """Every number of metrics.jsonl is there, and no step twice."""
    metrics = read_metrics(run)
    keys = {key for row in metrics for key in row} - {"step"}
    assert set(events.Tags()["scalars"]) == keys
    for key in keys:
        expected = [(row["step"], row[key]) for row in metrics if key in row]
        found = events.Scalars(key)
        assert [event.step for event in found] == [step for step, _ in expected], key
        assert [event.value for event in found] == pytest.approx([value for _, value in expected], rel=1e-6), key


def test_scalars_and_samples_over_a_resumed_run(project: Path) -> None:
    run_train(project, TENSORBOARD, "--budget.steps", "8")
    result = run_train(project, TENSORBOARD, "--budget.steps", "12")
    assert "tensorboard --logdir runs/tiny/tensorboard" in result.stderr
    run = project / "runs" / "tiny"
    events = load(run)
    assert_holds(events, run)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    shown = events.Tensors("samples/1/text_summary")
    assert [event.step for event in shown] == [sample["step"] for sample in samples] == [6, 8, 12]
    for event, sample in zip(shown, samples, strict=True):
        text = event.tensor_proto.string_val[0].decode()
        assert text.startswith("    the "), "indented, so that Markdown leaves it as it is"
        lines = (sample["prompt"] + sample["text"]).splitlines()
        assert [line.removeprefix("    ") for line in text.split("\n")] == lines


def test_killed_and_resumed_run_has_no_step_twice(project: Path) -> None:
    """What was logged before a checkpoint was flushed with it; what was logged after it comes again."""
    arguments = (TENSORBOARD, "--budget.steps", "24", "--checkpoint.every", "10", "--validation.every", "24")
    kill_when(lambda run: (run / "checkpoints" / "step_00000010").is_dir(), project, *arguments)
    time.sleep(1)  # TensorBoard reads its files in the order of the seconds in their names
    run_train(project, *arguments)
    assert_holds(load(project / "runs" / "tiny"), project / "runs" / "tiny")


def test_run_that_falls_back_has_no_step_twice(project: Path) -> None:
    """The newest checkpoint is lost, so steps that were written in full are taken once more."""
    run_train(project, TENSORBOARD, "--budget.steps", "12")
    shutil.rmtree(project / "runs" / "tiny" / "checkpoints" / "step_00000012")
    run_train(project, TENSORBOARD, "--budget.steps", "14")
    assert_holds(load(project / "runs" / "tiny"), project / "runs" / "tiny")


def test_a_step_whose_validation_was_cut_short_is_logged_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is logged when the run is resumed, and again when that is killed before its next checkpoint."""
    arguments = (TENSORBOARD, "--budget.steps", "14", "--checkpoint.every", "100")
    worse = ValidationResult(loss=2.0, bits_per_byte=1.0)  # than the first, so that nothing is saved
    results = iter([ValidationResult(loss=1.0, bits_per_byte=1.0), None, worse, worse, worse])
    monkeypatch.setattr("training.journal.validate", lambda *_: next(results))

    def killed(job: Job, split: BatchSplit) -> None:
        raise KeyboardInterrupt

    assert "stopped as asked after step 12" in run_train(project, *arguments).stderr
    time.sleep(1)
    with monkeypatch.context() as patch:
        patch.setattr("training.loop.accumulate_gradients", killed)
        run_train(project, *arguments, expect=130)
    time.sleep(1)
    run_train(project, *arguments)
    run = project / "runs" / "tiny"
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 15))
    samples = [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert samples == [6, 12, 14]
    assert_holds(load(run), run)


def test_training_goes_on_without_the_package(project: Path) -> None:
    result = run_train(
        project, TENSORBOARD, PYTHONPATH=shadow(project, "tensorboard", "raise ImportError('no tensorboard here')")
    )
    (line,) = [line for line in result.stderr.splitlines() if "TensorBoard" in line]
    assert "no tensorboard here" in line and "pip install" in line
    assert len(read_metrics(project / "runs" / "tiny")) == 12


def test_trouble_in_the_middle_is_said_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", refuse)
    result = run_train(project, TENSORBOARD)
    assert result.stderr.count("TensorBoard failed to log (no space left on device)") == 1
    assert len(read_metrics(project / "runs" / "tiny")) == 12


def test_nothing_is_written_unasked(project: Path) -> None:
    run_train(project)
    assert not (project / "runs" / "tiny" / "tensorboard").exists()
