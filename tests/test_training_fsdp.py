"""Sharded or not, on one process or two: the same numbers, the same checkpoints, the same way to stop."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import rank_programs
import torch
import torch.distributed as dist
from forks import run_forks
from safetensors.torch import load_file
from tiny import PROJECT, environment, losses, read_metrics, run_train
from torch.distributed.device_mesh import init_device_mesh

from common.runs import Run
from model import Decoder, ModelConfig
from model.activations import Checkpointing
from model.device import Precision
from training.config import BatchConfig, DistributionConfig, OptimizerConfig, RunConfig
from training.distribution import shard, whole
from training.plan import estimate_memory, split_batch

STRATEGIES = ("ddp", "fsdp")
KINDS = get_args(Checkpointing)
# Three layers and 45 hidden units: rows that two processes cannot share evenly.
EXACT = ("--model.dropout", "0", "--model.layers", "3", "--model.mlp-width", "45")
EIGHT = ("--budget.steps", "8", "--validation.every", "4", "--checkpoint.every", "4", "--checkpoint.keep", "9")
ADAMW = ("--optimizer.matrices", "adamw", "--optimizer.lr", "1e-3", "--model.no-tied")


def spread(strategy: str) -> tuple[str, str]:
    return "--distribution.strategy", strategy


def run_program(project: Path, program: str, *arguments: str, processes: int = 2, expect: int = 0) -> str:
    """Run one of tests/rank_programs.py in `project`, as torchrun would; returns its standard error."""
    command = (str(PROJECT / "tests" / "rank_programs.py"), program, "tiny.py", *arguments)
    result = run_forks(command, project, environment(), processes)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stderr


def seen(project: Path, processes: int = 2) -> list[dict[str, Any]]:
    """What every process said at its end."""
    return [json.loads((project / f"rank_{rank}.json").read_text()) for rank in range(processes)]


def set_aside(project: Path, name: str) -> Path:
    return Path(shutil.move(project / "runs" / "tiny", project / name))


def newest(run: Path) -> Path:
    return Run(run).checkpoints()[-1].path


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the newest checkpoint."""
    return {
        f"{name}/{key}": value
        for name in ("model", "optimizer")
        for key, value in load_file(newest(run) / f"{name}.safetensors").items()
    }


def assert_close(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """The two runs agree in every logged number, every weight and all optimizer state."""
    for left, right in zip(losses(one), losses(other), strict=True):
        assert left == pytest.approx(right, abs=tolerance)
    mine, others = tensors(one), tensors(other)
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        assert (value - others[name]).abs().max() < tolerance, name


def assert_same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not value.equal(right[name])] == []


@pytest.mark.parametrize("optimizer", [(), ADAMW], ids=["muon-tied", "adamw-untied"])
def test_fsdp_equals_ddp_and_one_process(project: Path, optimizer: tuple[str, ...]) -> None:
    arguments = (*EXACT, *EIGHT, *optimizer)
    run_train(project, *arguments)
    one = project / "runs" / "tiny"
    samples = (one / "samples.jsonl").read_text()
    assert len(samples.splitlines()) == 2
    runs = [(*arguments, *spread(strategy), "--name", strategy) for strategy in STRATEGIES]
    run_program(project, "in_turn", *runs[0], "+", "tiny.py", *runs[1])
    for strategy in STRATEGIES:
        assert_close(one, project / "runs" / strategy)
        assert (project / "runs" / strategy / "samples.jsonl").read_text() == samples


def test_a_checkpoint_of_one_process_goes_on_sharded(project: Path) -> None:
    arguments = (*EXACT, *EIGHT)
    run_train(project, *arguments)
    straight = Path(shutil.copytree(project / "runs" / "tiny", project / "straight"))
    run_program(project, "load_and_gather", *arguments)
    main, other = seen(project)
    for strategy in STRATEGIES:
        assert main[strategy]["same"] == [True, True], "loading and gathering changed weights or optimizer state"
        assert not other[strategy]["kept"]
    assert 0.4 < main["fsdp"]["share"] < 0.6 and 0.4 < other["fsdp"]["share"] < 0.6, "half of the state is its own"
    shutil.rmtree(newest(project / "runs" / "tiny"))
    result = run_train(project, *arguments, *spread("fsdp"), processes=2)
    assert "resuming runs/tiny at step 4" in result.stderr and "ddp -> fsdp" in result.stderr
    assert_close(straight, project / "runs" / "tiny")


def test_a_sharded_checkpoint_goes_on_anywhere(project: Path) -> None:
    arguments = (*EXACT, *EIGHT)
    run_train(project, *arguments, *spread("fsdp"), processes=2)
    run = project / "runs" / "tiny"
    config = ModelConfig(vocab_size=320, context_length=32, layers=3, width=32, heads=2, mlp_width=45)
    assert load_file(newest(run) / "model.safetensors").keys() == Decoder(config).state_dict().keys()
    assert all(value.dtype == torch.float32 for value in tensors(run).values())
    straight = Path(shutil.copytree(run, project / "straight"))
    shutil.rmtree(newest(run))
    halfway = Path(shutil.copytree(run, project / "halfway"))
    assert "resuming runs/tiny at step 4" in run_train(project, *arguments).stderr
    assert_close(straight, run)
    shutil.rmtree(run)
    shutil.move(halfway, run)
    run_train(project, *arguments, *spread("ddp"), processes=2)
    assert_close(straight, run)


def test_killed_and_resumed_is_bitwise(project: Path) -> None:
    """Killed in the middle of a step, then in the middle of a save; dropout is on, so every random state counts."""
    arguments = ("--budget.steps", "12", "--checkpoint.every", "3", *spread("fsdp"))
    run, root = project / "runs" / "tiny", project / "runs" / "tiny" / "checkpoints"
    run_program(project, "sigkill_in_step", *arguments, expect=1)
    assert newest(run).name == "step_00000003"
    run_program(project, "sigkill_in_save", *arguments, expect=1)
    assert newest(run).name == "step_00000006" and (root / "step_00000009.tmp").is_dir()
    run_program(project, "in_turn", *arguments, "+", "tiny.py", *arguments, "--name", "straight")
    assert_same(project / "runs" / "straight", run)
    states = [load_file(newest(run) / f"random_{rank:05d}.safetensors")["torch"] for rank in range(2)]
    assert not states[0].equal(states[1]), "both processes drop out the same"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sigterm_to_one_process_stops_all(project: Path, strategy: str) -> None:
    """In a step, and then in a validation, which is not waited for but made up when the run is resumed."""
    one_window = ("--batch.micro-batch-size", "1", "--batch.tokens-per-step", "64")
    arguments = ("--budget.steps", "12", "--validation.every", "9", *one_window, *spread(strategy))
    arguments = (*arguments, "--checkpoint.every", "100")
    stderr = run_program(project, "sigterm", *arguments)
    assert "stopped as asked after step 6" in stderr and "stopped as asked after step 9" in stderr
    for said in seen(project):
        assert said == {"stopped_after": [6, 9], "batches": 2}, "the validation was not left at once by all"
    run, straight = project / "runs" / "tiny", project / "runs" / "straight"
    assert [checkpoint.step for checkpoint in Run(run).checkpoints()] == [6, 9]
    run_program(project, "in_turn", *arguments, "+", "tiny.py", *arguments, "--name", "straight")
    for said in seen(project):
        assert (len(said["outlived"]) > 0) is (strategy == "ddp") and not any(said["outlived"])
    assert_same(straight, run)
    assert (run / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()


def test_sigterm_to_one_process_before_the_first_samples(project: Path) -> None:
    """Samples of a sharded model need all processes: none may take them alone."""
    stderr = run_program(project, "sigterm_before_samples", "--validation.at-start", *spread("fsdp"))
    assert "stopped as asked after step 1" in stderr
    assert [row["step"] for row in read_metrics(project / "runs" / "tiny")] == [1]


def test_checkpointing_changes_nothing(project: Path) -> None:
    """With dropout on: the second time has to draw the masks of the first."""
    runs = [
        ("--budget.steps", "2", *spread("fsdp"), "--activation-checkpointing", kind, "--name", kind) for kind in KINDS
    ]
    run_program(project, "in_turn", *runs[0], "+", "tiny.py", *runs[1], "+", "tiny.py", *runs[2])
    for kind in KINDS[1:]:
        assert_close(project / "runs" / KINDS[0], project / "runs" / kind)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_on_a_mesh_of_one_process(precision: Literal["fp32", "bf16"]) -> None:
    """There FSDP itself is strictest: what the backward pass asks for first must be inside what it gathers again."""
    config = ModelConfig(vocab_size=97, context_length=32, layers=2, width=32, heads=2, dropout=0.2)
    ids, gradients = torch.randint(0, 97, (2, 33)), []
    rank_programs.join("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for kind in KINDS:
            torch.manual_seed(0)
            model = Decoder(replace(config, zero_init_projections=False)).train()
            model.activation_checkpointing = kind
            shard(model, init_device_mesh("cpu", (1,)), Precision(precision, "test"))
            with Precision(precision, "test").autocast(torch.device("cpu")):
                loss = model(ids[:, :-1], ids[:, 1:])
            loss.backward()
            gradients.append([whole(parameter.grad) for parameter in model.parameters()])
    finally:
        dist.destroy_process_group()
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], atol=1e-6, rtol=1e-6)


def test_sigterm_in_the_last_validation(project: Path) -> None:
    """The budget is used, but the resumed run still has that validation to do."""
    arguments = ("--budget.steps", "8", "--validation.every", "8", "--batch.micro-batch-size", "1")
    run, straight = project / "runs" / "tiny", project / "runs" / "straight"
    run_train(project, *arguments, "--name", "straight")
    run_program(project, "sigterm", *arguments, processes=1)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 8))
    assert newest(run).name == "step_00000008" and math.isinf(Run(run).checkpoints()[-1].validation_loss)
    run_train(project, *arguments)
    assert_same(straight, run)
    assert not math.isinf(Run(run).checkpoints()[-1].validation_loss)
    assert "nothing to do" in run_train(project, *arguments).stderr


def test_fp16_overflow_on_one_process_skips_the_step_on_all(project: Path) -> None:
    arguments = ("--precision", "fp16", "--budget.steps", "4", "--checkpoint.every", "1", "--checkpoint.keep", "9")
    run_program(project, "overflow_on_one_rank", *arguments, *spread("fsdp"))
    assert [said["scales"] for said in seen(project)] == [[65536.0, 65536.0, 65536.0, 32768.0]] * 2
    run = project / "runs" / "tiny"
    assert [row["grad_norm"] is None for row in read_metrics(run)] == [False, False, True, False]
    _, before, after, resumed = [load_file(checkpoint.weights) for checkpoint in Run(run).checkpoints()]
    assert all(value.equal(after[name]) for name, value in before.items())
    assert not all(value.equal(after[name]) for name, value in resumed.items())


def test_gradients_are_exchanged_once_a_step(project: Path) -> None:
    """Two steps of two micro-batches on each process."""
    run_program(project, "count_exchanges", "--budget.steps", "2")
    for said in seen(project):
        all_reduces, buckets, reduce_scatters = said["ddp"]
        assert buckets and all_reduces == 2 * buckets and not reduce_scatters
        groups = 2 + 1  # the blocks, and the rest of the model
        assert said["fsdp"] == [0, 0, 2 * groups]


def test_uneven_batches_give_the_gradients_of_one_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window has another number of targets, so each process has another number of tokens."""
    arguments = (*EXACT, "--model.init-std", "0.1", "--model.no-zero-init-projections")
    monkeypatch.chdir(project)
    rank_programs.uneven_gradients(["tiny.py", *arguments])
    expected, (loss, tokens) = load_file("gradients_1_ddp.safetensors"), seen(project, 1)[0]["ddp"]
    assert tokens < 512 and tokens % 2, "an odd number cannot be shared evenly"
    run_program(project, "uneven_gradients", *arguments)
    for strategy in STRATEGIES:
        gradients = load_file(f"gradients_2_{strategy}.safetensors")
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            assert value.abs().max() > 0
            assert (gradients[name] - value).abs().max() < 1e-6, (strategy, name)
        assert [said[strategy] for said in seen(project)] == [[pytest.approx(loss), tokens]] * 2


def test_validation_of_an_odd_number_of_windows(project: Path) -> None:
    """The second process has a window less to score, and a sharded model must run there all the same."""
    arguments = (*EXACT, "--model.context-length", "16", "--budget.steps", "4")
    run_train(project, *arguments)
    expected = read_metrics(project / "runs" / "tiny")[-1]["val/loss"]
    run_program(project, "validate_spread", *arguments)
    for said in seen(project):
        assert said["windows"] % 2 == 1
        assert said["patience"] == 3600, "the main process may take long over a checkpoint"
        assert [said[strategy] for strategy in STRATEGIES] == pytest.approx([expected] * 2, abs=1e-6)


@pytest.mark.parametrize("recipe", ["mini", "gpt"])
def test_bf16_gradients_are_the_same_sharded(
    project: Path, monkeypatch: pytest.MonkeyPatch, recipe: Literal["mini", "gpt"]
) -> None:
    """Also of norm gains, offsets and biases; sums, embeddings and the residual stream are fp32 everywhere.

    A pass sees one window on one process as on two, so that all matrix products round alike.
    """
    mini = ("--model.value-embeddings", "1")
    gpt = ("--model.norm", "layer", "--model.norm-gain", "--model.bias", "--model.position", "learned")
    bf16 = ("--precision", "bf16", "--batch.micro-batch-size", "1", "--model.no-zero-init-projections")
    arguments = (*EXACT, *bf16, "--model.init-std", "0.1", *{"mini": mini, "gpt": gpt}[recipe])
    monkeypatch.chdir(project)
    rank_programs.uneven_gradients(["tiny.py", *arguments])
    expected = load_file("gradients_1_fsdp.safetensors")
    run_program(project, "uneven_gradients", *arguments)
    gradients = load_file("gradients_2_fsdp.safetensors")
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert gradients[name].dtype == torch.float32
        assert (gradients[name] - value).norm() < 1e-6 * value.norm(), name


def test_the_plan_says_what_a_share_takes() -> None:
    config = RunConfig(batch=BatchConfig(tokens_per_step=65_536), optimizer=OptimizerConfig(matrices="adamw"))
    sharded = replace(config, distribution=DistributionConfig(strategy="fsdp"))
    precision, parameters = Precision("bf16", "test"), 50_000_000

    def saved(processes: int) -> int:
        split = split_batch(config, processes)
        whole, share = (estimate_memory(c, parameters, parameters, split, precision) for c in (config, sharded))
        return whole - share

    assert saved(1) == 0
    assert saved(2) == parameters * (16 - 8 - 4)  # four micro-batches, whose gradients are kept whole
    assert saved(8) == parameters * (16 - 2)


def test_the_plan_counts_the_state_of_its_optimizer() -> None:
    model = ModelConfig(vocab_size=1000, width=64)
    parameters, outside = 10_000_000, 64_000

    def planned(**optimizer: Any) -> int:
        config = RunConfig(model=model, optimizer=OptimizerConfig(**optimizer))
        return estimate_memory(config, parameters, parameters, split_batch(config, 1), Precision("bf16", "test"))

    adamw = planned(matrices="adamw")
    assert planned(matrices="adamw", ema=0.9) - adamw == 4 * parameters
    assert adamw - planned(matrices="adamw", adamw="8bit") == 6 * parameters
    assert adamw - planned() == 4 * (parameters - outside)  # Muon has one state, not two


def test_the_slurm_script_parses() -> None:
    subprocess.run(["bash", "-n", str(PROJECT / "docs" / "train.slurm")], check=True)
