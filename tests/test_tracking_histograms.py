"""Histograms of weights and gradients: when they are taken, and of what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from forks import run_forks
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import environment, losses, read_metrics, run_train

from training.histograms import BINS, histogram


@pytest.mark.parametrize("shape", [(1,), (7,), (30, 40)])
def test_agrees_with_numpy(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    taken = histogram(values)
    assert taken is not None
    numbers = values.double().numpy()
    counts, edges = np.histogram(numbers, BINS, (taken.edges[0], taken.edges[-1]))
    assert np.abs(np.array(taken.counts) - counts).sum() <= 2, "a value on an edge may fall on either side"
    assert sum(taken.counts) == values.numel() and taken.edges == pytest.approx(edges)
    assert taken.edges[0] <= numbers.min() and numbers.max() <= taken.edges[-1]
    assert taken.total == pytest.approx(numbers.sum(), rel=1e-5)
    assert taken.squares == pytest.approx((numbers**2).sum(), rel=1e-5)


def test_odd_tensors() -> None:
    ones = histogram(torch.ones(3, 3, dtype=torch.bfloat16))
    assert ones is not None and sum(ones.counts) == 9 and ones.edges[0] < 1 < ones.edges[-1]
    some = histogram(torch.tensor([1.0, float("nan"), float("inf"), 2.0]))
    assert some is not None and sum(some.counts) == 2 and some.total == 3
    assert histogram(torch.tensor([float("nan")])) is None
    assert histogram(torch.zeros(0)) is None


def test_taken_when_due_and_logged_with_their_step(project: Path) -> None:
    """Steps 5 and 10, which the log interval would have left out; the training is the same as without."""
    run_train(project, "--name", "plain")
    asked = ("--tracking.histograms-every", "5", "--tracking.tensorboard", "--tracking.log-every", "6")
    run_train(project, *asked, "--validation.every", "12")
    run, plain = project / "runs" / "tiny", project / "runs" / "plain"
    assert [row["step"] for row in read_metrics(run)] == [1, 5, 6, 10, 12]
    every = {row[0]: row[:5] for row in losses(plain)}
    assert all(row[:5] == every[row[0]] for row in losses(run)), "hooks change nothing"

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    weights = load_file(run / "checkpoints" / "step_00000012" / "model.safetensors")
    names = {name.replace(".", "/"): value for name, value in weights.items()}
    tags = set(events.Tags()["histograms"])
    assert {tag.removeprefix("weights/") for tag in tags if tag.startswith("weights/")} == set(names)
    assert {tag.removeprefix("gradients/") for tag in tags if tag.startswith("gradients/")} == set(names)
    for tag in tags:
        taken = events.Histograms(tag)
        assert [event.step for event in taken] == [5, 10], tag
        assert all(event.histogram_value.num == names[tag.split("/", 1)[1]].numel() for event in taken), tag


def test_gradients_are_those_of_the_step(project: Path) -> None:
    """Their squares add up to the norm that the optimizer saw: the logged one, clipped."""
    run_train(project, "--tracking.histograms-every", "4", "--tracking.tensorboard", "--optimizer.grad-clip", "0.5")
    run = project / "runs" / "tiny"
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    logged = {row["step"]: row["grad_norm"] for row in read_metrics(run)}
    squares = dict.fromkeys((4, 8, 12), 0.0)
    for tag in events.Tags()["histograms"]:
        for event in events.Histograms(tag) if tag.startswith("gradients/") else []:
            squares[event.step] += event.histogram_value.sum_squares
    assert any(norm > 0.5 for norm in logged.values()), "otherwise nothing was clipped"
    for step, total in squares.items():
        assert total**0.5 == pytest.approx(min(logged[step], 0.5), rel=1e-3)


def test_two_processes_take_the_same_as_one(project: Path) -> None:
    arguments = ("--tracking.histograms-every", "6", "--tracking.tensorboard", "--model.dropout", "0")
    run_train(project, *arguments, "--name", "one")
    run_train(project, *arguments, "--name", "two", processes=2)
    taken = []
    for name in ("one", "two"):
        events = EventAccumulator(str(project / "runs" / name / "tensorboard"), size_guidance={"histograms": 0})
        events.Reload()
        tags = sorted(events.Tags()["histograms"])
        taken.append({tag: events.Histograms(tag)[0].histogram_value.sum_squares for tag in tags})
    assert taken[0] and taken[0].keys() == taken[1].keys()
    assert all(taken[1][tag] == pytest.approx(value, rel=1e-3, abs=1e-8) for tag, value in taken[0].items())


SHARDED = """
from types import SimpleNamespace

import torch
from forks import run_forks
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from training.histograms import HistogramRecorder, histogram

dist.init_process_group("gloo")
whole = torch.arange(24.0).view(8, 3)
model = torch.nn.Module()
model.weight = torch.nn.Parameter(distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)]))
assert model.weight.to_local().shape == (4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
world = SimpleNamespace(is_main=dist.get_rank() == 0)
job = SimpleNamespace(model=model, optimizers=[optimizer], progress=SimpleNamespace(step=0), world=world)
recorder = HistogramRecorder(job, 1)
(model.weight * model.weight).sum().backward()
optimizer.step()
expected = {"weights/weight": histogram(whole), "gradients/weight": histogram(2 * whole)}
assert recorder.take() == (expected if world.is_main else {})
dist.destroy_process_group()
"""


def test_sharded_tensors_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "sharded.py").write_text(SHARDED)
    result = run_forks(("sharded.py",), tmp_path, environment(), processes=2)
    assert result.returncode == 0, result.stderr
