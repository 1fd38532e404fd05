"""Compiling: decided once and kept, never needed, without a trace in numbers or files."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training_fsdp import run_program
from tiny import losses, read_metrics, run_train
from torch import nn
from torch.profiler import ProfilerActivity, profile

import training.run
from common.runs import Run
from model import Decoder, ModelConfig
from model.activations import Checkpointing
from model.layers import Block
from training.compilation import compile_blocks, set_up_compilation, time_pass
from training.job import Job
from training.plan import BatchSplit

COMPILE = nn.Module.compile


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Blocks are traced, but run as they were written, with the same bits; each run leaves whether gradients are on."""
    calls: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        def run(*arguments: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return graph(*arguments)

        return run

    torch._dynamo.reset()
    monkeypatch.setattr(Block, "compile", lambda block, **options: COMPILE(block, backend=backend, **options))
    yield calls
    torch._dynamo.reset()


def replace_blocks(monkeypatch: pytest.MonkeyPatch, compiled: Any) -> None:
    """Have `compiled(block, ...)` be what a compiled block runs."""

    def compile_block(block: Block, **options: Any) -> None:
        block._compiled_call_impl = lambda *arguments, **named: compiled(block, *arguments, **named)

    monkeypatch.setattr(Block, "compile", compile_block)


def newest(project: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint but NumPy's random state, which nothing seeds and nothing draws from."""
    files = sorted(Run(project / "runs" / name).checkpoints()[-1].path.glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items() if key != "numpy"}


def decision(project: Path, name: str = "tiny") -> bool:
    return bool(Run(project / "runs" / name).checkpoints()[-1].state["compiled"])


def assert_equal_runs(project: Path, one: str, other: str) -> None:
    assert losses(project / "runs" / one) == losses(project / "runs" / other)
    left, right = newest(project, one), newest(project, other)
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not value.equal(right[name])] == []


def test_a_short_run_is_not_compiled(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "compile", lambda *_, **__: pytest.fail("compiled a run of seconds"))
    assert "compile:" not in run_train(project, "--compile", "auto").stderr
    assert not decision(project)


@pytest.mark.parametrize("fails", ["at once", "in the first pass"])
def test_compiling_that_fails_is_said_in_a_line(project: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such compiler\nand much more")

    run_train(project, "--compile", "off", "--name", "off")
    if fails == "at once":
        monkeypatch.setattr(Block, "compile", fail)
    else:
        replace_blocks(monkeypatch, fail)
    result = run_train(project, "--compile", "on")
    assert "compile: off, it failed (RuntimeError: no such compiler)\n" in result.stderr
    assert "much more" not in result.stderr and not decision(project)
    assert_equal_runs(project, "off", "tiny")


def test_compiling_that_fails_on_one_process_stays_undone_on_all(project: Path) -> None:
    arguments = ("--budget.steps", "4", "--validation.every", "4")
    run_program(project, "in_turn", *arguments, "--compile", "off", "--name", "off")
    stderr = run_program(project, "failing_compilation", *arguments, "--compile", "on")
    assert stderr.count("compile: off, it failed (RuntimeError: no such compiler)\n") == 1
    assert_equal_runs(project, "off", "tiny")


def test_measuring_leaves_no_trace(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled blocks that are slower are measured and given up; dropout is on, so random states count."""
    measured: list[str] = []

    def slow(block: Block, *arguments: Any, **named: Any) -> torch.Tensor:
        time.sleep(0.1)
        return block._call_impl(*arguments, **named)

    def watched(job: Job, *arguments: Any) -> bool:
        weights = {name: value.detach().clone() for name, value in job.model.named_parameters()}
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        decided = set_up_compilation(job, *arguments)
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        for name, value in job.model.named_parameters():
            assert value.equal(weights[name]) and value.grad is None
        measured.append(f"decided {decided}")
        return decided

    run_train(project, "--compile", "off", "--name", "off")
    monkeypatch.setattr("training.compilation.SHORTEST_RUN", 0.0)
    monkeypatch.setattr(training.run, "set_up_compilation", watched)
    replace_blocks(monkeypatch, slow)
    assert "compile: off, a pass is 0." in run_train(project, "--compile", "auto").stderr
    assert measured == ["decided False"] and not decision(project)
    assert_equal_runs(project, "off", "tiny")


def test_a_decision_is_kept_until_another_is_asked_for(
    project: Path, passes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.compilation.SHORTEST_RUN", 0.0)
    monkeypatch.setattr("training.compilation.SMALLEST_GAIN", 0.0)
    four, eight, twelve = (("--checkpoint.every", "4", "--budget.tokens", str(512 * steps)) for steps in (4, 8, 12))
    constant = ("--schedule.warmup", "0.001", "--schedule.final", "1", "--validation.every", "4")
    run_train(project, *twelve, *constant, "--compile", "off", "--name", "off")
    assert not passes

    assert "compile: on, a pass is" in run_train(project, *four, *constant, "--compile", "auto").stderr
    assert passes and decision(project)
    monkeypatch.setattr("training.compilation.SMALLEST_GAIN", 1e9)
    monkeypatch.setattr("training.compilation.SHORTEST_RUN", 1e9)  # would both be decided otherwise by now
    passes.clear()
    shutil.copytree(project / "runs" / "tiny", project / "runs" / "other")
    run_train(project, *eight, *constant, "--compile", "auto")
    assert passes and decision(project)
    passes.clear()
    run_train(project, *twelve, *constant, "--compile", "off")
    assert not passes and not decision(project)

    run_train(project, *eight, *constant, "--compile", "off", "--name", "other")
    assert not passes and not decision(project, "other")
    run_train(project, *twelve, *constant, "--compile", "on", "--name", "other")
    assert passes and decision(project, "other")
    for name in ("tiny", "other"):
        assert_equal_runs(project, "off", name)


def test_a_compiled_run_goes_on_where_it_cannot_be_compiled(
    project: Path, passes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train(project, "--budget.steps", "4", "--compile", "on")
    assert decision(project)
    monkeypatch.setenv("CXX", str(project / "no-such-compiler"))
    passes.clear()
    result = run_train(project, "--budget.steps", "8", "--compile", "auto")
    assert "compile: off, there is no C++ compiler" in result.stderr
    assert not passes and not decision(project)


def test_all_shapes_of_a_run_are_compiled_before_it_starts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the opening and those after it: in the middle of the loop a failure would end the run."""
    traced: list[str] = []
    stage = ["set-up"]

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        traced.append(stage[-1])
        return graph

    def watched(job: Job, *arguments: Any) -> bool:
        decided = set_up_compilation(job, *arguments)
        stage.append("loop")
        return decided

    monkeypatch.setattr(Block, "compile", lambda block, **options: COMPILE(block, backend=backend, **options))
    monkeypatch.setattr(training.run, "set_up_compilation", watched)
    opening = ("--opening.fraction", "0.5", "--opening.tokens-per-step", "256", "--opening.context-length", "16")
    torch._dynamo.reset()
    run_train(project, "--budget.steps", "4", *opening, "--compile", "on")
    torch._dynamo.reset()
    assert set(traced) == {"set-up"}


def test_the_decision_is_measured_on_the_passes_that_most_of_the_run_takes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def shapes(job: Job, split: BatchSplit) -> float:
        measured.append(split.sequence)
        return time_pass(job, split)

    monkeypatch.setattr("training.compilation.time_pass", shapes)
    replace_blocks(monkeypatch, Block._call_impl)
    opening = ("--opening.fraction", "0.5", "--opening.context-length", "16")
    run_train(project, "--budget.steps", "2", *opening, "--compile", "on")
    assert measured == [32, 32, 16]


def test_compiling_is_part_of_the_wall_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it takes all the rest of the budget there is one more step, validated and saved."""

    def slow(*_: Any) -> bool:
        time.sleep(0.7)
        return False

    monkeypatch.setattr(training.run, "set_up_compilation", slow)
    run_train(project, "--budget.minutes", "0.01")
    (row,) = read_metrics(project / "runs" / "tiny")
    assert row["seconds"] >= 0.7 and "val/loss" in row
    assert Run(project / "runs" / "tiny").checkpoints()[-1].state["seconds"] >= 0.7


def test_validation_and_samples_run_as_written(project: Path, passes: list[bool]) -> None:
    run_train(project, "--budget.steps", "4", "--validation.every", "1", "--compile", "on")
    assert len(passes) > 8 and all(passes), "a pass without gradients was compiled"
    assert len((project / "runs" / "tiny" / "samples.jsonl").read_text().splitlines()) == 4
    config = ModelConfig(vocab_size=320, context_length=32, layers=2, width=32, heads=2)
    checkpoint = Run(project / "runs" / "tiny").checkpoints()[-1]
    assert load_file(checkpoint.path / "model.safetensors").keys() == Decoder(config).state_dict().keys()
    assert not [name for name in newest(project, "tiny") if "_orig_mod" in name or "module." in name]


def test_compiled_blocks_compute_again_what_checkpointing_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler sees what "selective" keeps: the outputs of matrix products are not computed twice."""
    config = ModelConfig(vocab_size=64, context_length=16, layers=1, width=32, heads=2, zero_init_projections=False)
    model = Decoder(config)
    torch._dynamo.reset()
    monkeypatch.setattr(Block, "compile", lambda block, **options: COMPILE(block, backend="aot_eager", **options))
    compile_blocks(model)
    ids = torch.randint(0, 64, (2, 17))
    products = {}
    for checkpointing in get_args(Checkpointing):
        model.activation_checkpointing = checkpointing
        model(ids[:, :-1], ids[:, 1:]).backward()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            model(ids[:, :-1], ids[:, 1:]).backward()
        products[checkpointing] = sum(event.count for event in profiled.key_averages() if event.key == "aten::mm")
    assert products["none"] == products["selective"] < products["full"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_give_the_same_gradients(checkpointing: Any) -> None:
    config = ModelConfig(vocab_size=97, context_length=48, layers=2, width=64, heads=2, zero_init_projections=False)
    torch.manual_seed(0)
    model = Decoder(config)
    model.activation_checkpointing = checkpointing
    ids = torch.randint(0, 97, (4, 49))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = model(ids[:, :-1], ids[:, 1:]) / (4 * 48)
        loss.backward()
        found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return {"loss": loss.detach(), **found}

    eager = gradients()
    compile_blocks(model)
    compiled = gradients()
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-4)
