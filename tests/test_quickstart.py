"""The quickstart's promises at its real size, on its real data. Takes about ten minutes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import PROJECT, environment, losses, read_metrics

from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the quickstart's data, made by its command."""
    place = tmp_path_factory.mktemp("quickstart")
    call(place, "-m", "data_pipeline", str(PROJECT / "configs/data/quickstart.py"), "--out", "data/quickstart")
    return place


def real_environment() -> dict[str, str]:
    """Both threads of a real run, unlike the rest of the suite."""
    values = environment(PYTHONPATH=str(PROJECT), WANDB_MODE="disabled")
    values.pop("OMP_NUM_THREADS", None)
    return values


def call(place: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=real_environment(), capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def train_arguments(name: str, *more: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, str(PROJECT / "train.py"), str(PROJECT / "configs/quickstart.py"), "--name", name, *more]


def final(place: Path, name: str, step: int) -> dict[str, object]:
    checkpoint = place / "runs" / name / "checkpoints" / f"step_{step:08d}"
    return dict(load_file(checkpoint / "model.safetensors"))


def test_two_processes_equal_one_with_twice_the_accumulation(workplace: Path) -> None:
    exact = ("--budget.steps", "20", "--precision", "fp32", "--tracking.log-every", "1", "--validation.every", "10")
    for name, processes in (("one", 1), ("two", 2)):
        call(workplace, *train_arguments(name, *exact, processes=processes))
    one, two = (read_metrics(workplace / "runs" / name) for name in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        for key in ("train/loss", "val/loss"):
            assert left.get(key) == pytest.approx(right.get(key), abs=1e-5), (left["step"], key)
    weights = final(workplace, "two", 20)
    for name, value in final(workplace, "one", 20).items():
        assert (value - weights[name]).abs().max() < 1e-5, name  # type: ignore[operator]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_run_equals_uninterrupted_run(workplace: Path, precision: str) -> None:
    arguments = ("--budget.steps", "12", "--precision", precision, "--tracking.log-every", "1")
    arguments += ("--checkpoint.every", "3", "--validation.every", "6")
    call(workplace, *train_arguments("straight" + precision, *arguments))
    rng, name = random.Random(precision), "killed" + precision
    metrics = workplace / "runs" / name / "metrics.jsonl"
    for lines in (2, 5, 8):
        # Without torchrun, so that the signal goes to the process that trains.
        command = [sys.executable, *train_arguments(name, *arguments)[5:]]
        process = subprocess.Popen(command, cwd=workplace, env=real_environment(), stderr=subprocess.DEVNULL)
        while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.wait()
    call(workplace, *train_arguments(name, *arguments))
    assert losses(workplace / "runs" / name) == losses(workplace / "runs" / ("straight" + precision))
    weights = final(workplace, name, 12)
    for key, value in final(workplace, "straight" + precision, 12).items():
        assert value.equal(weights[key]), key  # type: ignore[attr-defined]


def test_tokenizer_is_lossless_on_the_whole_validation_split(workplace: Path) -> None:
    dataset = Dataset(workplace / "data" / "quickstart")
    tokenizer, stream = Tokenizer(dataset.tokenizer_path), dataset.split("val")
    total = 0
    for document in stream.documents():
        ids = stream.read(int(document["start"]), int(document["tokens"]))
        text = tokenizer.decode(ids[:-1].tolist())
        assert ids[-1] == dataset.eos_id and len(text.encode()) == document["bytes"]
        total += len(text.encode())
    assert total == dataset.manifest["splits"]["val"]["bytes"]


def test_nothing_is_done_twice(workplace: Path) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in (workplace / "data").rglob("*") if path.name != ".lock"}
    call(workplace, "-m", "data_pipeline", str(PROJECT / "configs/data/quickstart.py"), "--out", "data/quickstart")
    after = {path: os.stat(path).st_mtime_ns for path in (workplace / "data").rglob("*") if path.name != ".lock"}
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert not {name for name in changed if name.endswith((".bin", ".npy", ".model"))}
    shutil.rmtree(workplace / "runs", ignore_errors=True)
