"""Fine-tuning on examples: what a step sees, what is trained, what is left behind, and resuming."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import VOCAB_SIZE, has_logged, kill_when, losses, make_dataset, read_metrics, run_train
from tuning import write_questions

import evaluation.__main__
import sample
from common.errors import UserError
from common.files import read_json
from common.runs import Run
from data_pipeline.tokenizer import Tokenizer
from inference.loading import load_run
from model import Decoder, ModelConfig
from model.adapters.config import AdapterConfig
from model.device import Precision
from model.functions import IGNORE
from training.config import ExamplesConfig, OptimizerConfig, RunConfig
from training.config_checks import check
from training.examples import ExampleData
from training.neftune import add_noise
from training.optimizers import make_optimizers


def tune(directory: Path, *arguments: str, **options: Any) -> Any:
    return run_train(directory, *arguments, config="tune.py", **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_dataset(tmp_path_factory.mktemp("data")) / "tokenizer.model")


def data_of(tmp_path: Path, tokenizer: Tokenizer, **changes: Any) -> ExampleData:
    file = str(write_questions(tmp_path / "questions.txt"))
    return ExampleData(ExamplesConfig(files=(file,), **changes), tokenizer, sequence=128, seed=0)


def tiny_model() -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=VOCAB_SIZE, context_length=128, layers=2, width=32, heads=2)
    return Decoder(replace(config, zero_init_projections=False)).eval()


def loss_of(model: Decoder, data: ExampleData, windows: range) -> float:
    batch = data.micro_batch(windows, 128)
    with torch.no_grad():
        total = model(batch.inputs, batch.targets, documents=batch.documents, learned=batch.learned)
    return float(total)


def test_packed_examples_have_the_losses_that_each_has_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = tiny_model()
    alone, packed = data_of(tmp_path, tokenizer), data_of(tmp_path, tokenizer, packing=True)
    assert packed.windows_per_epoch < alone.windows_per_epoch / 2
    for window in range(3):
        numbers = packed.row(window)
        assert len(numbers) > 1
        places = [window_of(alone, number) for number in numbers]
        single = sum(loss_of(model, alone, range(place, place + 1)) for place in places)
        assert loss_of(model, packed, range(window, window + 1)) == pytest.approx(single, abs=1e-4)


def window_of(data: ExampleData, example: int) -> int:
    return next(window for window in range(data.windows_per_epoch) if data.row(window) == [example])


def test_a_batch_of_unequal_lengths_has_the_gradients_of_its_parts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, data = tiny_model(), data_of(tmp_path, tokenizer)
    batch = data.micro_batch(range(4), 128)
    assert len({int(row.sum()) for row in batch.targets != IGNORE}) > 1 or batch.inputs.shape[1] > 3
    model(batch.inputs, batch.targets, learned=batch.learned).backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for number in range(4):
        part = data.micro_batch(range(number, number + 1), 128)
        model(part.inputs, part.targets, learned=part.learned).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name], atol=1e-4, rtol=1e-4)


def test_every_example_comes_once_an_epoch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for changes in ({}, {"packing": True}, {"group_by_length": True}):
        data = data_of(tmp_path, tokenizer, **changes)
        epochs = [range(start, start + data.windows_per_epoch) for start in (0, data.windows_per_epoch)]
        orders = [[number for window in epoch for number in data.row(window)] for epoch in epochs]
        assert all(sorted(order) == list(range(len(data.train))) for order in orders) and orders[0] != orders[1]
    lengths = [len(data.train.ids(number)) for number in orders[0]]
    assert lengths[0] == max(lengths)


def test_rows_are_examples_with_only_answers_as_targets(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = data_of(tmp_path, tokenizer)
    batch = data.micro_batch(range(2), 128)
    for row in range(2):
        ids = data.train.ids(data.row(row)[0])
        assert batch.inputs[row, : len(ids) - 1].tolist() == ids[:-1].tolist()
        wanted = batch.targets[row][batch.targets[row] != IGNORE].tolist()
        assert wanted == ids[data.train.learned(data.row(row)[0])].tolist()
        answer = tokenizer.decode(wanted[:-1]).split()
        assert len(answer) == 2 and answer[0] == answer[1] and wanted[-1] == tokenizer.eos_id
    assert batch.losses == int((batch.targets != IGNORE).sum()) and batch.tokens < batch.inputs.numel() + 1


def test_lora_trains_the_adapter_alone_and_leaves_everything(tuning: Path) -> None:
    result = tune(tuning, "--budget.epochs", "10", figures=True)
    run = tuning / "runs" / "tuned"
    rows = read_metrics(run)
    assert rows[0]["step"] == 0 and "val/loss" in rows[0] and rows[-1]["epoch"] >= 10
    assert rows[-1]["val/loss"] < 0.97 * rows[0]["val/loss"]
    newest = sorted((run / "checkpoints").iterdir())[-1]
    stored = load_file(newest / "model.safetensors")
    assert stored and all(".slot.default.lora_" in name for name in stored)
    for name in (
        "training_metrics.json",
        "training_metrics.csv",
        "summary.md",
        "examples.json",
        "training_metrics.png",
    ):
        assert (run / name).is_file(), name
    for name in ("loss_by_step", "loss_by_epoch", "learning_rate", "loss_log_scale", "validation_loss"):
        assert (run / f"{name}.png").is_file(), name
    assert (run / "adapter" / "adapter_config.json").is_file()
    assert "best validation loss" in result.stderr and "How to load it" in (run / "summary.md").read_text()
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [samples[0]["step"], samples[-1]["step"]] == [0, rows[-1]["step"]]
    sizes = read_json(run / "adapter.json")
    assert 0 < sizes["trainable_parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert sizes["trainable_parameters"] < sizes["total_parameters"] / 2


def test_a_tuned_run_is_loaded_with_its_base_and_merged(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(tuning)
    monkeypatch.chdir(tuning)
    base, tuned = (load_run(Run(Path("runs") / name), device="cpu").model for name in ("base", "tuned"))
    ids = torch.arange(1, 9)[None]
    assert not torch.allclose(base(ids), tuned(ids), atol=1e-2)
    # Another run begins with what the first has learned, merged.
    tune(tuning, "--name", "again", "--start-from", "runs/tuned", "--optimizer.lr", "0", "--budget.steps", "1")
    again = load_run(Run(Path("runs/again")), device="cpu").model
    torch.testing.assert_close(again(ids), tuned(ids), atol=1e-4, rtol=1e-4)
    (tuning / "runs" / "base").rename(tuning / "runs" / "elsewhere")
    with pytest.raises(UserError, match="is an adapter of runs/base, which cannot be opened"):
        load_run(Run(Path("runs/tuned")), device="cpu")


def test_the_whole_model_is_trained_without_an_adapter(tuning: Path) -> None:
    tune(tuning, "--adapter.method", "none", "--adapter.rank", "16", "--adapter.alpha", "32", "--adapter.dropout", "0",
         "--optimizer.lr", "1e-3")  # fmt: skip
    run = tuning / "runs" / "tuned"
    rows = read_metrics(run)
    assert rows[-1]["val/loss"] < rows[0]["val/loss"] and not (run / "adapter").exists()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert "embedding.weight" in load_file(newest / "model.safetensors")


@pytest.mark.parametrize("flags", [(), ("--examples.packing", "--batch.examples-per-step", "4")])
def test_resumed_after_a_kill_is_as_uninterrupted(tuning: Path, flags: tuple[str, ...]) -> None:
    flags = (*flags, "--examples.neftune-alpha", "5")
    tune(tuning, *flags, "--name", "straight")
    kill_when(has_logged(7), tuning, *flags, config="tune.py", run="tuned")
    tune(tuning, *flags)
    assert losses(tuning / "runs" / "tuned") == losses(tuning / "runs" / "straight")
    ends = [sorted((tuning / "runs" / name / "checkpoints").iterdir())[-1] for name in ("tuned", "straight")]
    one, other = (load_file(end / "model.safetensors") for end in ends)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_train_as_one(tuning: Path) -> None:
    flags = ("--adapter.dropout", "0", "--budget.steps", "4", "--batch.micro-batch-size", "2")
    tune(tuning, *flags, "--name", "one")
    for strategy in ("ddp", "fsdp"):
        tune(tuning, *flags, "--name", strategy, "--distribution.strategy", strategy, processes=2)
        for alone, shared in zip(losses(tuning / "runs" / "one"), losses(tuning / "runs" / strategy), strict=True):
            assert alone[:2] == shared[:2]
            assert [value or 0 for value in alone] == pytest.approx([value or 0 for value in shared], rel=1e-3)
        assert (tuning / "runs" / strategy / "adapter" / "adapter_model.safetensors").is_file()


def test_a_run_stops_when_validations_get_no_better(tuning: Path) -> None:
    flags = ("--budget.epochs", "200", "--optimizer.lr", "0.3", "--validation.every", "2", "--validation.patience", "3")
    said = tune(tuning, *flags).stderr
    rows = [row for row in read_metrics(tuning / "runs" / "tuned") if row.get("val/loss") and row["step"]]
    best = int(np.argmin([row["val/loss"] for row in rows]))
    assert len(rows) == best + 4 and "validations have not been better" in said
    assert "stopped early at step" in tune(tuning, *flags).stderr


def test_nothing_need_be_held_out(tuning: Path) -> None:
    tune(tuning, "--examples.validation-fraction", "0", "--budget.steps", "5")
    rows = read_metrics(tuning / "runs" / "tuned")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5] and not any("val/loss" in row for row in rows)
    assert (tuning / "runs" / "tuned" / "adapter").is_dir()


def test_noise_is_for_training_alone() -> None:
    model, ids = tiny_model(), torch.arange(1, 9)[None]
    still = model(ids)
    add_noise(model, 5.0)
    assert torch.equal(model(ids), still)
    rows = model.embedding.plain(ids)
    model.train()
    difference = (model.embedding(ids) - rows).abs()
    assert 0 < difference.max() <= 5 / (8 * 32) ** 0.5


def test_stages_follow_each_other_and_are_not_done_twice(tuning: Path) -> None:
    write_questions(tuning / "second.txt", shift=2)
    flags = ("--examples.files", "--examples.stages", "questions.txt", "second.txt", "--budget.epochs", "1")
    tune(tuning, *flags)
    configs = [read_json(tuning / "runs" / f"tuned_stage_{number}" / "config.json") for number in (1, 2)]
    assert [config["start_from"] for config in configs] == ["runs/base", "runs/tuned_stage_1"]
    assert [config["examples"]["files"] for config in configs] == [["questions.txt"], ["second.txt"]]
    first = read_metrics(tuning / "runs" / "tuned_stage_2")[0]
    assert first["step"] == 0 and "val/loss" in first
    assert tune(tuning, *flags).stderr.count("nothing to do") == 2
    # A kill in the middle of the second stage changes no number.
    again = ("--name", "again", *flags)
    kill_when(has_logged(3), tuning, *again, config="tune.py", run="again_stage_2")
    tune(tuning, *again)
    for stage in ("stage_1", "stage_2"):
        assert losses(tuning / "runs" / f"again_{stage}") == losses(tuning / "runs" / f"tuned_{stage}")


def test_a_stage_is_not_trained_on_under_the_later_ones(tuning: Path) -> None:
    write_questions(tuning / "second.txt", shift=2)
    flags = ("--examples.files", "--examples.stages", "questions.txt", "second.txt", "--budget.steps")
    tune(tuning, *flags, "4")
    first, second = (tuning / "runs" / f"tuned_stage_{number}" for number in (1, 2))
    before = {path: path.read_bytes() for run in (first, second) for path in run.rglob("*.json*")}
    said = tune(tuning, *flags, "6", expect=2).stderr
    assert "runs/tuned_stage_1 would train on from step 4, but runs/tuned_stage_2 has begun" in said
    assert "with --name" in said and {path: path.read_bytes() for path in before} == before
    shutil.rmtree(second)
    tune(tuning, *flags, "6")
    assert [len(read_metrics(run)) for run in (first, second)] == [7, 7]


def test_a_comparison_that_cannot_be_written_does_not_end_training(tuning: Path) -> None:
    (tuning / "runs" / "tuned").write_text("in the way")
    write_questions(tuning / "second.txt", shift=2)
    stages = ("--examples.files", "--examples.stages", "questions.txt", "second.txt")
    folds = ("--examples.validation-fraction", "0", "--examples.folds", "2")
    for flags, last in ((stages, "stage_2"), (folds, "fold_1")):
        said = tune(tuning, *flags, "--budget.steps", "1").stderr
        assert "warning: the comparison could not be made: " in said and "runs/tuned" in said
        assert (tuning / "runs" / f"tuned_{last}" / "adapter").is_dir()


def test_a_lost_way_to_ask_is_written_again(tuning: Path) -> None:
    flags = ("--budget.steps", "1")
    tune(tuning, *flags)
    path = tuning / "runs" / "tuned" / "examples.json"
    whole = path.read_bytes()
    for harm in (lambda: path.write_text("{"), path.unlink):
        harm()
        (tuning / "runs" / "tuned" / "summary.md").unlink()
        assert "nothing to do" in tune(tuning, *flags).stderr
        assert path.read_bytes() == whole and (tuning / "runs" / "tuned" / "summary.md").is_file()


def test_folds_hold_out_every_question_once(tuning: Path) -> None:
    tune(tuning, "--examples.validation-fraction", "0", "--examples.folds", "2", "--budget.steps", "1")
    reports = [read_json(tuning / "runs" / f"tuned_fold_{fold}" / "examples.json") for fold in (0, 1)]
    assert [report["validation_examples"] for report in reports] == [20, 20]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": ExamplesConfig(files=("a",))}, "needs weights to begin with"),
        ({"adapter": AdapterConfig(method="lora")}, "needs weights to begin with"),
        ({"adapter": AdapterConfig(method="lora"), "start_from": "x"}, "trained by AdamW"),
        ({"examples": ExamplesConfig(packing=True)}, "examples.packing does nothing without examples.files"),
        ({"examples": ExamplesConfig(files=("a",), stages=("b",)), "start_from": "x"}, "exclude each other"),
        (
            {"examples": ExamplesConfig(files=("a",), packing=True, group_by_length=True), "start_from": "x"},
            "does nothing with examples.packing",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(replace(RunConfig(), **changes))


def test_what_is_wrong_is_said_before_any_step(tuning: Path) -> None:
    (tuning / "empty.txt").write_text("###\nPregunta: nada\n###\n")
    for flags, message in (
        (("--examples.files", "empty.txt"), "no example to train on is left of empty.txt (set aside: 1"),
        (("--examples.files", "absent.txt"), "absent.txt"),
        (("--adapter.targets", "no_such_layer"), "no layer is called 'no_such_layer'"),
        (("--batch.examples-per-step", "0"), "must be at least 1"),
    ):
        assert message in tune(tuning, *flags, expect=2).stderr
    assert not (tuning / "runs" / "tuned" / "metrics.jsonl").exists()


def test_a_fine_tune_is_not_scored_on_data_it_never_saw(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tune(tuning, "--budget.steps", "1")
    assert (
        "python sample.py --run runs/tuned --ask" in result.stderr and "python -m evaluation runs" not in result.stderr
    )
    monkeypatch.chdir(tuning)
    with pytest.raises(UserError, match="was fine-tuned on examples, of which"):
        evaluation.__main__.main(["runs/tuned"])
    evaluation.__main__.main(["runs/tuned", "--data", "data/tiny"])
    assert (Path("runs/tuned") / "summary.json").is_file()


def test_two_processes_go_through_all_folds(tuning: Path) -> None:
    flags = ("--examples.validation-fraction", "0", "--examples.folds", "2", "--budget.steps", "1")
    tune(tuning, *flags, processes=2)
    assert (tuning / "runs" / "tuned" / "folds.json").is_file()
    for fold in (0, 1):
        assert (tuning / "runs" / f"tuned_fold_{fold}" / "adapter").is_dir()


def test_the_command_line_asks_as_the_examples_do(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(tuning, "--budget.steps", "2")
    monkeypatch.chdir(tuning)
    shutil.copytree("runs/tuned/adapter", "elsewhere")
    flags = ["--temperature", "0", "--max-new-tokens", "4"]
    texts = []
    text = "Pregunta: the model\nRespuesta:"
    for more in (
        ["--run", "tuned", "--ask", "the model"],
        ["--run", "tuned", "--prompt", text],
        ["--run", "base", "--adapter", "runs/tuned/adapter", "--prompt", text],
        ["--run", "base", "--adapter", "elsewhere", "--ask", "the model"],
    ):
        with redirect_stdout(io.StringIO()) as shown, redirect_stderr(io.StringIO()):
            sample.main([*flags, *more])
        texts.append(shown.getvalue().removeprefix(text))
    assert texts[0].strip() and set(texts) == {texts[0]}


def test_rows_of_another_length_are_another_run(tuning: Path) -> None:
    """Packed into longer rows, the same examples stand in others: the place in the data would mean something else."""
    flags = ("--examples.packing", "--budget.steps")
    tune(tuning, *flags, "2", "--examples.max-length", "64")
    said = tune(tuning, *flags, "4", "--examples.max-length", "128", expect=2).stderr
    assert "examples.max_length: 64 -> 128" in said


def test_the_command_line_chooses_how_to_hold_out(tuning: Path) -> None:
    """What the config chose gives way; two ways on the command line are a mistake, which a dry run finds too."""
    said = tune(tuning, "--examples.folds", "3", "--dry-run").stderr
    assert "3 runs, of which this is the first: tuned_fold_0, tuned_fold_1, tuned_fold_2" in said
    both = ("--examples.folds", "3", "--examples.validation_fraction=0.1", "--dry-run")
    assert "validation_fraction and folds exclude each other" in tune(tuning, *both, expect=2).stderr


def test_without_an_adapter_all_is_trained_at_one_rate() -> None:
    """An embedding that knows something already would not survive the rate of a fresh one."""
    model = Decoder(ModelConfig(vocab_size=50, layers=1, width=16, heads=1, tied=False))
    config = RunConfig(optimizer=OptimizerConfig(matrices="adamw", lr=2e-4))
    (optimizer,) = make_optimizers(model, config, torch.device("cpu"), Precision("fp32", ""))
    assert {group["peak_lr"] for group in optimizer.param_groups} == {2e-4}


def test_other_examples_to_validate_on_are_another_run(tuning: Path) -> None:
    """Losses on them would not compare with the best so far."""
    write_questions(tuning / "held.txt", count=6, shift=2)
    flags = ("--examples.validation-files", "held.txt", "--budget.steps")
    tune(tuning, *flags, "4")
    write_questions(tuning / "held.txt", count=7, shift=2)
    assert "questions.txt, held.txt has changed since" in tune(tuning, *flags, "8", expect=2).stderr
