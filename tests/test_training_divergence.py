"""What is not finite, or far too large: named in a file that anyone can read, skipped where asked, fatal otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training_fsdp import EXACT, STRATEGIES, run_program, seen
from tiny import read_metrics, run_train

from common.files import write_json
from common.runs import Run
from data_pipeline.shards import Dataset
from training.job import Job
from training.loop import accumulate_gradients
from training.plan import BatchSplit
from training.validation import validate

SKIPPING = ("--optimizer.skip-spikes", "6")


def strict_json(text: str) -> Any:
    """Python writes and reads NaN and Infinity, which no other reader takes."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def strict_rows(run: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights_of(job: Job) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in job.model.named_parameters()}


def spoil(monkeypatch: pytest.MonkeyPatch, event: Callable[[Job, torch.Tensor], None]) -> None:
    """Have `event` see the job and the losses of every step after its gradients are computed."""

    def spoiled(job: Job, split: BatchSplit) -> tuple[Any, ...]:
        losses, *counted = accumulate_gradients(job, split)
        event(job, losses)
        return losses, *counted

    monkeypatch.setattr("training.loop.accumulate_gradients", spoiled)


def overlapping(dataset: Dataset, start: int, stop: int) -> set[int]:
    """Documents of the training split that have a token in [start, stop), looked at one by one."""
    index = dataset.split("train").documents()
    bounds = [(int(row["start"]), int(row["start"] + row["tokens"])) for row in index]
    return {number for number, (first, end) in enumerate(bounds) if first < stop and end > start}


def test_the_file_names_the_windows_and_documents(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of four micro-batches of the third step is NaN."""
    records = project / "data" / "tiny" / "train_00000.documents.jsonl"
    records.write_text("".join(json.dumps({"id": f"text {n}"}) + "\n" for n in range(180)), encoding="utf-8")
    inputs: list[np.ndarray] = []
    weights: list[dict[str, torch.Tensor]] = []
    jobs: list[Job] = []

    def nan_in_the_second(job: Job, split: BatchSplit) -> tuple[torch.Tensor, int, int]:
        if job.progress.step == 2:
            jobs.append(job)
            weights.append(weights_of(job))
            job.model.register_forward_pre_hook(lambda module, given: inputs.append(given[0].numpy()))
            job.model.blocks[-1].register_forward_hook(lambda *out: out[-1] * torch.nan if len(inputs) == 2 else None)
        return accumulate_gradients(job, split)

    monkeypatch.setattr("training.loop.accumulate_gradients", nan_in_the_second)
    result = run_train(project, expect=2)
    run, path = project / "runs" / "tiny", project / "runs" / "tiny" / "diverged_step_00000003.json"
    assert "has diverged" in result.stderr and "runs/tiny/diverged_step_00000003.json" in result.stderr
    after = weights_of(jobs[0])
    assert all(value.equal(after[name]) for name, value in weights[0].items())
    assert len(read_metrics(run)) == 2

    about = strict_json(path.read_text(encoding="utf-8"))
    ((process,), dataset) = about["processes"], Dataset(project / "data" / "tiny")
    assert about["step"] == 3 and "nan" in about["symptom"]
    assert set(process["gradients_not_finite"]) >= {"embedding.weight", "blocks.0.attention.query.weight"}
    stream = dataset.split("train").read(0, len(dataset.split("train")))
    assert len(process["micro_batches"]) == len(inputs) == 4
    for number, row in enumerate(process["micro_batches"]):
        assert row["windows"] == [32 + 4 * number, 36 + 4 * number]
        assert [stream[at : at + 32].tolist() for at in row["positions"]] == inputs[number].tolist()
        if number != 1:
            assert 0 < row["loss"] < 2 * math.log(320), "a mean in nats per token"
            assert "documents" not in row
    bad = process["micro_batches"][1]
    assert bad["loss"] == "nan"
    expected = set().union(*(overlapping(dataset, at, at + 33) for at in bad["positions"]))
    assert {document["document"] for document in bad["documents"]} == expected
    assert all(document["id"] == f"text {document['document']}" for document in bad["documents"])


def test_nan_on_one_process_stops_all(project: Path) -> None:
    """Each process says what it saw, and the main process writes it down."""
    run_program(project, "nan_on_one_rank", *EXACT, expect=1)
    for said in seen(project):
        for strategy in STRATEGIES:
            assert "has diverged" in said[strategy]["error"] and said[strategy]["step"] == 2
            assert said[strategy]["untouched"], "an optimizer stepped with NaN gradients"
    for strategy in STRATEGIES:
        text = (project / "runs" / strategy / "diverged_step_00000003.json").read_text(encoding="utf-8")
        good, bad = strict_json(text)["processes"]
        assert (good["rank"], bad["rank"]) == (0, 1)
        for rank, process in enumerate((good, bad)):
            first = [32 + (2 * number + rank) * 4 for number in range(2)]
            assert [row["windows"] for row in process["micro_batches"]] == [[at, at + 4] for at in first]
        assert all(isinstance(row["loss"], float) and "documents" not in row for row in good["micro_batches"])
        assert all(row["loss"] == "nan" and row["documents"] for row in bad["micro_batches"])
        assert bad["gradients_not_finite"]


def test_spikes_on_one_process_are_skipped_by_all(project: Path) -> None:
    """The last process alone has a loss far too large in step 8, NaN in step 10 and a norm far too large in step 11."""
    run_program(project, "spikes_on_one_rank", "--tracking.log-every", "1", *SKIPPING)
    for said in seen(project):
        assert said == {strategy: [8, 10, 11] for strategy in STRATEGIES}, "other steps left the weights as they were"
    for strategy in STRATEGIES:
        rows = strict_rows(project / "runs" / strategy)
        assert [row["skipped_steps"] for row in rows] == [0] * 7 + [1, 1, 2, 3, 3]
        assert [row["step"] for row in rows if row["train/loss"] is None] == [10]


def test_patience_with_what_is_not_finite_ends(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_from_the_third_step_on(job: Job, losses: torch.Tensor) -> None:
        if job.progress.step >= 2:
            losses.fill_(math.nan)

    monkeypatch.setattr("training.spikes.PATIENCE", 3)
    spoil(monkeypatch, nan_from_the_third_step_on)
    result = run_train(project, *SKIPPING, expect=2)
    assert "has diverged" in result.stderr
    run = project / "runs" / "tiny"
    assert [row["skipped_steps"] for row in strict_rows(run)] == [0, 0, 1, 2, 3]
    assert (run / "diverged_step_00000006.json").is_file()


def test_a_skipped_step_is_counted_once_though_its_validation_was_cut_short(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient norm is infinite, which `state.json` has to remember until the validation is made up for."""

    def overflow(job: Job, losses: torch.Tensor) -> None:
        if job.progress.step == 5:
            assert job.model.embedding.weight.grad is not None
            job.model.embedding.weight.grad[0, 0] = math.inf

    with monkeypatch.context() as patch:
        spoil(patch, overflow)
        patch.setattr("training.journal.validate", lambda *_: None)
        run_train(project, *SKIPPING)
    run = Run(project / "runs" / "tiny")
    state = strict_json((run.checkpoint_path(6) / "state.json").read_text(encoding="utf-8"))
    assert state["cut_short"]["grad_norm"] is None and state["cut_short"]["skipped"]
    monkeypatch.setattr("training.journal.validate", validate)
    assert "resuming runs/tiny at step 6" in run_train(project, *SKIPPING).stderr
    rows = strict_rows(run.path)
    assert [row["step"] for row in rows] == list(range(1, 13)) and "val/loss" in rows[5]
    assert [row["skipped_steps"] for row in rows] == [0] * 5 + [1] * 7


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "a.json", {"a": [value]})
    assert not list(tmp_path.iterdir())
