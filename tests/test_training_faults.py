"""Damaged checkpoints, full disks and wrong input: a clear message, exit status 2, nothing lost."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import run_forks
from safetensors.torch import load_file
from tiny import PROJECT, environment, make_dataset, read_metrics, run_train

from common.files import atomic_directory, only_process_in, read_json, remove_temporaries, sha256_of, write_json
from common.runs import Checkpoint, CheckpointError, Run
from inference.generation import Completion
from training.checkpoints import prune
from training.job import Job
from training.loop import accumulate_gradients
from training.plan import BatchSplit


def newest(project: Path) -> Path:
    return Run(project / "runs" / "tiny").checkpoints()[-1].path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_text("{", encoding="utf-8")


DAMAGE = {
    "truncated weights": lambda c: truncate(c / "model.safetensors"),
    "flipped bit": lambda c: flip_a_bit(c / "optimizer.safetensors"),
    "missing file": lambda c: (c / "state.json").unlink(),
    "missing manifest": lambda c: (c / "manifest.json").unlink(),
    "unreadable manifest": lambda c: garble(c / "manifest.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_noticed(tmp_path: Path, kind: str) -> None:
    step = tmp_path / "step_00000001"
    step.mkdir()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        (step / name).write_bytes(bytes(range(200)))
    files = {file.name: {"bytes": 200, "sha256": sha256_of(file)} for file in step.iterdir()}
    write_json(step / "manifest.json", {"files": files})
    Checkpoint(step, 1).verify()
    DAMAGE[kind](step)
    with pytest.raises(CheckpointError, match="step_00000001"):
        Checkpoint(step, 1).verify()


def test_damaged_checkpoint_falls_back_to_the_one_before(project: Path) -> None:
    run_train(project)
    truncate(newest(project) / "model.safetensors")
    result = run_train(project)
    assert "model.safetensors has" in result.stderr and "falling back" in result.stderr
    assert "resuming runs/tiny at step 8" in result.stderr
    run = Run(project / "runs" / "tiny")
    assert [c.step for c in run.checkpoints()] == [8, 12]
    for checkpoint in run.checkpoints():
        checkpoint.verify()  # the damaged one stepped aside, and counts neither as newest nor as best
    assert [path.name for path in run.checkpoint_root.glob("damaged*")] == ["damaged_step_00000012"]


def test_damage_in_an_older_checkpoint_does_not_stop_the_run(project: Path) -> None:
    run_train(project)
    garble(Run(project / "runs" / "tiny").checkpoints()[0].path / "state.json")
    run_train(project, "--budget.steps", "16")


KILL_BETWEEN_RENAMES = """
import os, sys
from pathlib import Path
from common.files import atomic_directory
rename, count = os.rename, 0
def dying(*arguments):
    global count
    count += 1
    if count == 2:
        os._exit(9)
    rename(*arguments)
os.rename = dying
with atomic_directory(Path(sys.argv[1])) as directory:
    (directory / "new").write_text("")
"""


def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001"
    for leftover in (path, tmp_path / "step_00000001.replaced.tmp"):
        leftover.mkdir()
    (path / "old").write_text("")
    command = [sys.executable, "-c", KILL_BETWEEN_RENAMES, str(path)]
    assert subprocess.run(command, env=environment(PYTHONPATH=str(PROJECT))).returncode == 9
    assert not path.exists()
    remove_temporaries(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name] and (path / "old").is_file()


def test_what_a_killed_run_left_is_swept(project: Path) -> None:
    run_train(project, "--budget.steps", "4")
    leftover = project / "runs" / "tiny" / "config.json.0123.tmp"
    leftover.write_text("{")
    run_train(project, "--budget.steps", "5")
    assert not leftover.exists()


def test_a_checkpoint_that_cannot_be_read_is_passed_over(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a failing disk, or a file system that went away."""
    run_train(project)

    def failing(path: Path) -> str:
        if "step_00000012/" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256_of(path)

    monkeypatch.setattr("common.runs.sha256_of", failing)
    result = run_train(project, "--budget.steps", "13")
    assert "cannot be read ([Errno 5] Input/output error" in result.stderr and "at step 8" in result.stderr


def test_a_file_that_cannot_be_read_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training as in its middle, and not as a write that failed."""
    run_train(project, "--budget.steps", "4")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "data/tiny/train_00000.bin")

    for place in ("training.run.load_checkpoint", "training.loop.accumulate_gradients"):
        with monkeypatch.context() as patch:
            patch.setattr(place, failing)
            said = run_train(project, "--budget.steps", "8", expect=2).stderr
        assert "Stale file handle: 'data/tiny/train_00000.bin'" in said and "run the same command again" in said
        assert "cannot write" not in said


def test_a_lost_connection_is_no_matter_of_the_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr("training.loop.accumulate_gradients", failing)
    said = run_train(project, expect=2).stderr
    assert "Connection reset by peer" in said and "the network" in said and "room on the disk" not in said


def test_memory_that_is_too_small_for_the_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("training.run.make_optimizers", failing)
    said = run_train(project, expect=2).stderr
    assert "out of memory on cpu" in said and "--batch.micro-batch-size" in said and "make it smaller" in said


def test_no_whole_checkpoint_is_an_error(project: Path) -> None:
    run_train(project)
    for checkpoint in Run(project / "runs" / "tiny").checkpoints():
        truncate(checkpoint.path / "model.safetensors")
    result = run_train(project, expect=2)
    assert "no checkpoint of this run is whole" in result.stderr and "delete runs/tiny to start over" in result.stderr


def test_full_disk_leaves_the_earlier_checkpoint(project: Path) -> None:
    """The file-size limit makes every write beyond it fail, as a full disk does."""
    run_train(project, "--budget.steps", "4")
    script = (
        f"import resource, sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "import train; from common.cli import run_command\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); run_command(train.main)"
    )
    result = run_forks(("-c", script, "tiny.py", "--budget.steps", "8"), project, environment())
    assert result.returncode == 2, result.stderr
    assert "could not be written" in result.stderr and "step_00000004 is whole" in result.stderr
    assert [c.step for c in Run(project / "runs" / "tiny").checkpoints()] == [4]
    assert "resuming runs/tiny at step 4" in run_train(project, "--budget.steps", "8").stderr


def test_keeps_newest_and_best(project: Path) -> None:
    run_train(project, "--checkpoint.every", "1", "--checkpoint.keep", "2")
    run = Run(project / "runs" / "tiny")
    assert [c.step for c in run.checkpoints()] == [11, 12]
    state = read_json(run.checkpoint_path(11) / "state.json")
    write_json(run.checkpoint_path(11) / "state.json", {**state, "val_loss": 0.1})
    prune(run, keep=1)
    assert [c.step for c in run.checkpoints()] == [11, 12]  # the best one, and the newest


def test_missing_data_names_the_command(project: Path) -> None:
    result = run_train(project, "--data.directory", "data/none", expect=2)
    assert "python -m data_pipeline CONFIG --out data/none" in result.stderr
    result = run_train(project, "--data.directory", "data/quickstart", expect=2)
    assert "python -m data_pipeline configs/data/quickstart.py --out data/quickstart" in result.stderr


def test_data_of_another_vocabulary(project: Path) -> None:
    result = run_train(project, "--model.vocab-size", "1000", expect=2)
    assert "--model.vocab-size 320" in result.stderr


def test_data_made_with_another_tokenizer(project: Path) -> None:
    manifest = read_json(project / "data" / "tiny" / "manifest.json")
    manifest["tokenizer"]["sha256"] = "0" * 64
    write_json(project / "data" / "tiny" / "manifest.json", manifest)
    result = run_train(project, expect=2)
    assert "is not the tokenizer" in result.stderr and "python -m data_pipeline" in result.stderr


def test_changed_data_is_refused_on_resume(project: Path) -> None:
    run_train(project)
    make_dataset(project / "data" / "tiny", seed=1)
    tokenizer = (project / "runs" / "tiny" / "tokenizer.model").read_bytes()
    assert tokenizer != (project / "data" / "tiny" / "tokenizer.model").read_bytes()
    for arguments in ((), ("--budget.steps", "20")):
        result = run_train(project, *arguments, expect=2)
        assert "has changed since" in result.stderr and "--name" in result.stderr
        assert (project / "runs" / "tiny" / "tokenizer.model").read_bytes() == tokenizer


def test_data_may_move_but_not_change(project: Path) -> None:
    run_train(project, "--budget.steps", "4")
    (project / "data" / "tiny").rename(project / "data" / "moved")
    moved = ("--budget.steps", "6", "--data.directory", str(project / "data" / "moved"))
    result = run_train(project, *moved)
    assert "resuming runs/tiny at step 4" in result.stderr and "data.directory: data/tiny -> " in result.stderr
    make_dataset(project / "data" / "other", seed=1)
    result = run_train(project, "--budget.steps", "8", "--data.directory", "data/other", expect=2)
    assert "or holds other data" in result.stderr


def test_truncated_shard(project: Path) -> None:
    truncate(project / "data" / "tiny" / "train_00000.bin")
    assert "train_00000.bin has" in run_train(project, expect=2).stderr


def test_changed_architecture_is_refused_on_resume(project: Path) -> None:
    run_train(project)
    result = run_train(project, "--model.layers", "3", expect=2)
    assert "model.layers: 2 -> 3" in result.stderr and "--name" in result.stderr


def test_changed_optimizer_is_refused_on_resume(project: Path) -> None:
    run_train(project)
    result = run_train(project, "--optimizer.matrices", "adamw", expect=2)
    assert "optimizer.matrices: muon -> adamw" in result.stderr


def test_other_rows_to_validate_on_are_refused_on_resume(project: Path) -> None:
    """Losses on them would not compare with the best so far, which also says when to stop."""
    run_train(project, "--budget.steps", "4")
    result = run_train(project, "--validation.tokens", "100", expect=2)
    assert "validation.tokens: None -> 100" in result.stderr and "--name" in result.stderr


def test_two_runs_in_one_place_are_refused(project: Path) -> None:
    with only_process_in(project / "runs" / "tiny"):
        assert "another process is working" in run_train(project, expect=2).stderr
    run_train(project)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Nobody else is working there as far as anybody knows, and the work can be done."""

    def failing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", failing)
    with only_process_in(tmp_path / "run") as nothing:
        assert nothing is None
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and f"{tmp_path / 'run'} cannot be locked (No locks available)" in said


def test_a_directory_is_synced_with_all_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename is durable only where the directory that holds the name is."""
    synced: list[str] = []
    monkeypatch.setattr("common.files.sync_directory", lambda path: synced.append(path.name))
    with atomic_directory(tmp_path / "whole") as directory:
        (directory / "one" / "two").mkdir(parents=True)
        (directory / "one" / "two" / "file").write_text("")
    assert set(synced) == {"two", "one", "whole.tmp", tmp_path.name} and synced[-1] == tmp_path.name


def test_samples_may_hold_anything(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are markup to the console, unless it is told otherwise."""
    strange = [Completion("[/bold] a[i] [/] \x1b[31m", [], "length")]
    monkeypatch.setattr("training.journal.generate", lambda *_: strange)
    assert "[/bold] a[i]" in run_train(project).stderr


def test_damaged_config_of_the_run(project: Path) -> None:
    run_train(project)
    garble(project / "runs" / "tiny" / "config.json")
    assert "config.json is damaged" in run_train(project, "--budget.steps", "20", expect=2).stderr


def test_fp16_that_never_recovers_stops(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Job, split: BatchSplit) -> tuple[torch.Tensor, int]:
        result = accumulate_gradients(job, split)
        assert job.model.embedding.weight.grad is not None
        job.model.embedding.weight.grad[0, 0] = math.inf
        return result

    monkeypatch.setattr("training.loop.accumulate_gradients", broken)
    result = run_train(project, "--precision", "fp16", "--budget.steps", "200", expect=2)
    assert "has diverged" in result.stderr


def test_impossible_batch_names_the_nearest(project: Path) -> None:
    result = run_train(project, "--batch.tokens-per-step", "200", expect=2)
    assert "--batch.tokens-per-step 192 or 224" in result.stderr


def test_mistyped_flag_suggests_the_nearest(project: Path) -> None:
    result = run_train(project, "--optimizer.lrr", "1", expect=2)
    assert "--optimizer.lr" in result.stderr


def test_mistyped_field_in_the_config_file(project: Path) -> None:
    text = (project / "tiny.py").read_text().replace("tokens_per_step=", "tokens_per_stepp=")
    (project / "tiny.py").write_text(text)
    assert "did you mean 'tokens_per_step'" in run_train(project, expect=2).stderr


def test_wrong_type_in_the_config_file(project: Path) -> None:
    text = (project / "tiny.py").read_text().replace("log_every=1", "log_every='often'")
    (project / "tiny.py").write_text(text)
    result = run_train(project, expect=2)
    assert "config.tracking.log_every = 'often'" in result.stderr and "integer" in result.stderr


def test_divergence_stops_before_the_weights_are_touched(project: Path) -> None:
    result = run_train(project, "--optimizer.lr", "1e30", "--optimizer.grad-clip", "0", expect=2)
    assert "has diverged" in result.stderr and "--optimizer.lr" in result.stderr


def test_no_budget(project: Path) -> None:
    assert "budget" in run_train(project, "--budget.steps", "None", expect=2).stderr


def test_dry_run_writes_nothing(project: Path) -> None:
    result = run_train(project, "--dry-run", "--data.directory", "data/none")
    assert "34,820" in result.stderr and "no curated data in" in result.stderr
    assert not (project / "runs").exists()


def test_fp16_overflow_skips_every_optimizer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One overflowed gradient makes the norm infinite, and clipping then makes zeros of all the others."""

    def overflowing(job: Job, split: BatchSplit) -> tuple[torch.Tensor, int]:
        result = accumulate_gradients(job, split)
        if job.progress.step == 2:
            assert job.model.embedding.weight.grad is not None
            job.model.embedding.weight.grad[0, 0] = math.inf
        return result

    monkeypatch.setattr("training.loop.accumulate_gradients", overflowing)
    keep_all = ("--checkpoint.every", "1", "--checkpoint.keep", "9")
    run_train(project, "--precision", "fp16", "--budget.steps", "4", *keep_all)
    assert [row["grad_norm"] is None for row in read_metrics(project / "runs" / "tiny")] == [False, False, True, False]
    _, before, after, resumed = [load_file(c.weights) for c in Run(project / "runs" / "tiny").checkpoints()]
    assert all(value.equal(after[name]) for name, value in before.items())
    assert not all(value.equal(after[name]) for name, value in resumed.items())
