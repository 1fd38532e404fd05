"""The running average of the weights: what a run that keeps one is judged by, everywhere."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import read_metrics, run_train

import evaluation.__main__
from common.cli import run_command
from common.files import read_json, read_json_lines
from common.runs import Checkpoint, Run
from data_pipeline.shards import Dataset
from inference import SamplingOptions, generate, load_run
from model.device import Precision
from training.batches import CuratedData
from training.distribution import World
from training.validation import validate

CPU, FP32 = torch.device("cpu"), Precision("fp32", "exact")
AVERAGING = ("--optimizer.ema", "0.9", "--model.dropout", "0", "--checkpoint.every", "1", "--checkpoint.keep", "20")


def both(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and their average."""
    return load_file(checkpoint.path / "model.safetensors"), load_file(checkpoint.path / "average.safetensors")


def assert_one_step_on(
    before: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], after: dict[str, torch.Tensor], step: int
) -> None:
    decay = min(0.9, (1 + step) / (10 + step))
    assert before.keys() == weights.keys() == after.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, decay * before[name] + (1 - decay) * weights[name])


def test_validation_samples_and_evaluation_use_the_average(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_train(project, *AVERAGING)
    monkeypatch.chdir(project)
    run = Run(Path("runs/tiny"))
    earlier, last = run.checkpoints()[-2:]
    weights, average = both(last)
    assert_one_step_on(both(earlier)[1], weights, average, step=12)
    assert last.weights.name == "average.safetensors"

    loaded = load_run(run, "last", "cpu")
    held_out = CuratedData(Dataset("data/tiny"), loaded.model.config.context_length, seed=0).validation
    state = loaded.model.state_dict()
    assert state.keys() == average.keys() and all(value.equal(average[name]) for name, value in state.items())
    options = SamplingOptions(max_new_tokens=8, temperature=0.8, top_k=50, seed=0)
    found = []
    for values in (average, weights):
        loaded.model.load_state_dict(values)
        result = validate(loaded.model, held_out, World(), CPU, FP32, batch=4)
        assert result is not None
        found.append((result.loss, generate(loaded.model, loaded.tokenizer, "the ", options)[0].text))
    (loss, text), (loss_of_weights, text_of_weights) = found
    assert abs(loss - loss_of_weights) > 1e-3 and text != text_of_weights, "this test shows nothing"
    assert read_metrics(run.path)[-1]["val/loss"] == pytest.approx(loss, abs=1e-6)
    assert read_json_lines(run.samples)[-1]["text"] == text

    with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        run_command(evaluation.__main__.main, ["runs/tiny", "--checkpoint", "last"])
    assert ended.value.code == 0
    assert read_json(run.summary)["val_loss"] == pytest.approx(loss, abs=1e-5)


def test_an_average_that_is_asked_for_late_begins_as_the_weights(project: Path) -> None:
    run_train(project, *AVERAGING, "--budget.steps", "4", "--optimizer.ema", "None")
    run_train(project, *AVERAGING, "--budget.steps", "5")
    before, after = (Run(project / "runs" / "tiny").checkpoint_path(step) for step in (4, 5))
    assert not (before / "average.safetensors").exists()
    weights, average = both(Checkpoint(after, 5))
    assert_one_step_on(load_file(before / "model.safetensors"), weights, average, step=5)
