"""A killed run that is started again ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import rank_programs
import torch
from forks import fork, run_forks
from safetensors.torch import load_file
from tiny import PROJECT, environment, losses, read_metrics, run_train, train_arguments

from common.runs import Run
from training.job import Job
from training.loop import accumulate_gradients
from training.plan import BatchSplit

STEPS = "40"  # 640 windows of an epoch of 261: the run crosses two epoch borders
LONG = ("--budget.steps", STEPS, "--checkpoint.every", "3", "--validation.every", "10")


def final_weights(run: Path) -> dict[str, object]:
    checkpoint = run / "checkpoints" / f"step_{int(STEPS):08d}"
    return {
        f"{name}/{key}": value
        for name in ("model", "optimizer")
        for key, value in load_file(checkpoint / f"{name}.safetensors").items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    left, right = final_weights(one), final_weights(other)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.equal(right[key]), key  # type: ignore[attr-defined]


def kill_after(project: Path, arguments: tuple[str, ...], lines: int, delay: float, threads: str) -> None:
    """Start train.py and SIGKILL it once metrics.jsonl has `lines` lines and `delay` seconds have passed."""
    process = fork(train_arguments(*arguments), project, environment(OMP_NUM_THREADS=threads))
    metrics = project / "runs" / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines:
            time.sleep(delay)
            break
        time.sleep(0.002)
    process.kill()
    process.join()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_run_equals_uninterrupted_run(project: Path, precision: str) -> None:
    threads = "2"
    arguments = (*LONG, "--precision", precision)
    run_train(project, *arguments, OMP_NUM_THREADS=threads)
    straight = project / "runs" / "tiny"
    expected = shutil.move(straight, project / "straight")
    rng = random.Random(precision)
    survived = []
    for lines in (1, rng.randint(5, 12), rng.randint(14, 24), rng.randint(26, 36)):
        kill_after(project, arguments, lines, rng.uniform(0, 0.05), threads)
        survived.append(len(read_metrics(straight)) if (straight / "metrics.jsonl").exists() else 0)
    assert survived[0] < survived[-1] < int(STEPS), "the kills came too late to mean anything"
    run_train(project, *arguments, OMP_NUM_THREADS=threads)
    assert_same_run(Path(expected), straight)


OPENING = ("--opening.fraction", "0.5", "--opening.tokens-per-step", "256", "--opening.context-length", "16")
SIXTEEN = ("--budget.steps", "16", "--checkpoint.every", "4", "--validation.every", "6")
PARTS = {
    "muon": (
        *(*OPENING, "--optimizer.ema", "0.9", "--optimizer.skip-spikes", "6", "--optimizer.momentum-warmup", "0.8"),
        *("--optimizer.cautious-decay", "--model.value-embeddings", "1", "--activation-checkpointing", "selective"),
    ),
    "adamw": (
        *("--precision", "fp16", "--optimizer.matrices", "adamw", "--optimizer.lr", "1e-3", "--model.no-tied"),
        *("--optimizer.ema", "0.9", "--activation-checkpointing", "full"),
    ),
    "compiled": ("--compile", "on", *OPENING),
}


@pytest.mark.parametrize("part", ["muon", "adamw", pytest.param("compiled", marks=pytest.mark.slow)])
def test_every_part_of_the_state_survives_a_kill(project: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 6, in the opening, and resumed at step 4; the opening ends with step 8.

    In every step something is drawn from every random generator, and in fp16 a gradient overflows in the third.
    """
    arguments = (*SIXTEEN, *PARTS[part])
    monkeypatch.setattr("training.loop.accumulate_gradients", rank_programs.eventful)
    run_train(project, *arguments)
    run, straight = project / "runs" / "tiny", project / "straight"
    shutil.move(run, straight)
    program = (str(PROJECT / "tests" / "rank_programs.py"), "sigkill_eventful", "tiny.py", *arguments)
    killed = run_forks(program, project, environment(KILL_IN_STEP="6"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_metrics(run)) == 5
    assert "resuming runs/tiny at step 4" in run_train(project, *arguments).stderr
    rows = read_metrics(run)
    assert rows[0]["tokens"] == (256 if "--opening.fraction" in arguments else 512)
    assert [row["step"] for row in rows if row["grad_norm"] is None] == ([3] if part == "adamw" else [])
    assert losses(straight) == losses(run)
    assert_same_checkpoint(straight, run)


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """The newest checkpoints are equal file by file, the time and the run's identity aside."""
    mine, others = (Run(path).checkpoints()[-1] for path in (one, other))
    names = sorted(path.name for path in mine.path.glob("*.safetensors"))
    assert names == sorted(path.name for path in others.path.glob("*.safetensors"))
    assert {path.suffix for path in mine.path.iterdir()} == {".safetensors", ".json"}, "nothing has to be unpickled"
    for name in names:
        left, right = load_file(mine.path / name), load_file(others.path / name)
        assert left.keys() == right.keys()
        assert [key for key, value in left.items() if not value.equal(right[key])] == [], name
    passing = ("seconds", "wandb_id")
    states = [{key: value for key, value in c.state.items() if key not in passing} for c in (mine, others)]
    assert states[0] == states[1]


KILL_INSIDE_SAVE = """
import os, signal, sys
sys.path.insert(0, {project!r})
import training.checkpoints as checkpoints
import common.files as files, common.runs as runs

original = {target}
count = 0
def dying(*arguments, **keywords):
    global count
    count += 1
    if count == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **keywords)
{target} = dying
import train
train.main(["tiny.py", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("checkpoints.save_file", 5),  # the optimizer file of the second checkpoint
        ("runs.write_json", 2),  # its manifest, all other files being there
        ("files.os.rename", 2),  # the rename of a complete one
    ],
)
def test_kill_inside_a_save(project: Path, target: str, count: int) -> None:
    script = KILL_INSIDE_SAVE.format(project=str(PROJECT), target=target, count=count)
    result = run_forks(("-c", script, *LONG), project, environment())
    assert result.returncode == -signal.SIGKILL, result.stderr
    root = project / "runs" / "tiny" / "checkpoints"
    assert (root / "step_00000003").is_dir()
    assert (root / "step_00000006.tmp").is_dir() and not (root / "step_00000006").exists()
    resumed = run_train(project, *LONG)
    assert "resuming runs/tiny at step 3" in resumed.stderr
    assert not list(root.glob("*.tmp"))
    shutil.move(project / "runs" / "tiny", project / "killed")
    run_train(project, *LONG)
    assert_same_run(project / "runs" / "tiny", project / "killed")


def test_sigterm_saves_and_a_resumed_run_goes_on_exactly(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*LONG, "--checkpoint.every", "1000")
    run_train(project, *arguments)
    shutil.move(project / "runs" / "tiny", project / "straight")

    def interrupted(job: Job, split: BatchSplit) -> tuple[torch.Tensor, int]:
        if job.progress.step == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate_gradients(job, split)

    with monkeypatch.context() as patch:
        patch.setattr("training.loop.accumulate_gradients", interrupted)
        result = run_train(project, *arguments)
    assert "stopped as asked after step 17" in result.stderr
    assert (project / "runs" / "tiny" / "checkpoints" / "step_00000017").is_dir()
    run_train(project, *arguments)
    assert_same_run(project / "straight", project / "runs" / "tiny")


def test_a_finished_run_does_no_work(project: Path) -> None:
    run_train(project)
    before = (project / "runs" / "tiny" / "metrics.jsonl").read_bytes()
    assert "nothing to do" in run_train(project).stderr
    assert (project / "runs" / "tiny" / "metrics.jsonl").read_bytes() == before


def test_a_torn_last_line_is_dropped(project: Path) -> None:
    run_train(project, "--budget.steps", "8")
    metrics = project / "runs" / "tiny" / "metrics.jsonl"
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 9, "train/lo')
    run_train(project, "--budget.steps", "12")
    assert [row["step"] for row in read_metrics(project / "runs" / "tiny")] == list(range(1, 13))


def test_batch_split_may_change_on_resume(project: Path) -> None:
    run_train(project, "--budget.steps", "8", "--model.dropout", "0")
    half = ("--budget.tokens", "8192", "--batch.tokens-per-step", "1024", "--model.dropout", "0")
    run_train(project, *half)
    rows = read_metrics(project / "runs" / "tiny")
    assert [row["tokens"] for row in rows[-5:]] == [4096, 5120, 6144, 7168, 8192]
