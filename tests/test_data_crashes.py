"""Runs that are killed, find the disk full or their files damaged: in the end the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_data_helpers import command, files_of, stage_directory

from common.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.documents import Counts
from data_pipeline.executors import Run, open_executor
from data_pipeline.pipeline import STAGE_COUNT, curate
from data_pipeline.stages import StageRunner


def kill_in_stage(config: Path, out: Path, stage: str, delay: float, *flags: str) -> bool:
    """Begin a run and kill all its processes `delay` seconds after a stage has begun; whether it was still running."""
    process = command(config, out, *flags)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(out.glob(f"stages/{stage}")):
        time.sleep(0.001)
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def finish(config: Path, out: Path, *flags: str) -> str:
    process = command(config, out, *flags)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert not list(out.rglob("*.tmp"))
    return output


def test_a_run_that_is_killed_again_and_again_ends_the_same(
    config_file: Path, built: tuple[DataConfig, Path], tmp_path: Path
) -> None:
    out, generator = tmp_path / "data", random.Random(0)
    for stage in ("*_measure", "*_compare", "*_encode"):
        workers = generator.choice(["1", "2"])
        assert kill_in_stage(config_file, out, stage, generator.uniform(0, 0.05), "--workers", workers)
        assert not (out / "manifest.json").exists()
    assert "up to date" in finish(config_file, out, "--workers", "1")
    assert files_of(out) == files_of(built[1])


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_run_killed_at_any_moment_ends_the_same(
    config_file: Path, built: tuple[DataConfig, Path], tmp_path: Path, moment: int
) -> None:
    """Spread over all stages, and over the ways to run them; now and then the run that goes on is killed as well."""
    out, generator = tmp_path / "data", random.Random(moment)
    ways = [["--workers", "1"], ["--workers", "2"], ["--workers", "2", "--executor", "dask"]]
    stage = moment * STAGE_COUNT // 20
    while kill_in_stage(config_file, out, f"{stage:02d}_*", generator.uniform(0, 0.15), *generator.choice(ways)):
        stage = generator.randrange(stage, STAGE_COUNT)
        if generator.random() < 0.5:
            break
    finish(config_file, out, *generator.choice(ways))
    assert files_of(out) == files_of(built[1])


@pytest.mark.parametrize(
    ("executor", "number"),
    [
        ("processes", signal.SIGINT),
        ("processes", signal.SIGKILL),
        pytest.param("dask", signal.SIGINT, marks=pytest.mark.slow),
        ("dask", signal.SIGKILL),
    ],
)
def test_workers_leave_with_the_main_process(
    config_file: Path, tmp_path: Path, executor: str, number: signal.Signals
) -> None:
    if executor == "dask":
        pytest.importorskip("distributed")
    process = command(config_file, tmp_path / "data", "--workers", "2", "--executor", executor)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob("data/stages/*_measure")):
        time.sleep(0.001)
    children = psutil.Process(process.pid).children()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert number == signal.SIGKILL or errors == "interrupted\n"
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(child) for child in children):
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def alive(child: psutil.Process) -> bool:
    """Whether it is still there, as itself and not as what its parent has yet to bury."""
    try:
        return child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_full_disk_is_explained_and_the_run_goes_on_when_there_is_room(
    config_file: Path, built: tuple[DataConfig, Path], tmp_path: Path, workers: str
) -> None:
    """The file-size limit makes every write beyond it fail, as a full disk does."""
    resource = pytest.importorskip("resource")
    most = max(path.stat().st_size for path in built[1].glob("stages/0[0-3]_*/**/*") if path.is_file())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    out = tmp_path / "data"
    process = command(config_file, out, "--workers", workers, preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in errors
    assert f"cannot go on with {out}" in errors and "make room" in errors
    assert not (out / "manifest.json").exists()
    assert "up to date" in finish(config_file, out, "--workers", workers)
    assert files_of(out) == files_of(built[1])


def damage(path: Path, keep_time: bool) -> None:
    """Change a byte in the middle, as a program would, or as a failing disk does."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_missing_damaged_and_stray_files_are_put_right(built: tuple[DataConfig, Path], tmp_path: Path) -> None:
    config, out = built[0], shutil.copytree(built[1], tmp_path / "data")
    before = files_of(out)
    (out / "train_00000.bin").unlink()
    (out / "train_00099.bin").write_bytes(b"of an older run")
    shards = sorted(stage_directory(out, "filter").glob("*.jsonl"))
    shards[0].write_bytes(shards[0].read_bytes()[:-10])
    damage(shards[1], keep_time=False)
    damage(sorted(stage_directory(out, "pack").glob("*.bin"))[1], keep_time=False)
    expected = {path.name: path.read_bytes() for path in shards[2:]}
    os.utime(shards[2])  # touched, not changed
    touched = shards[2].stat().st_mtime_ns
    curate(config, out, workers=1)
    assert files_of(out) == before
    assert shards[2].stat().st_mtime_ns == touched and all(
        path.read_bytes() == expected[path.name] for path in shards[2:]
    )


def test_a_published_file_that_rotted_is_noticed(built: tuple[DataConfig, Path], tmp_path: Path) -> None:
    config, out = built[0], shutil.copytree(built[1], tmp_path / "data")
    before = files_of(out)
    damage(stage_directory(out, "pack") / "train_00001.bin", keep_time=True)
    with pytest.raises(UserError, match=r"train_00001\.bin: damaged on disk and therefore removed"):
        curate(config, out, workers=1)
    curate(config, out, workers=1)
    assert files_of(out) == before
    manifest = out / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-100])
    curate(config, out, workers=1)
    assert manifest.read_bytes() == whole


def die(task: str, directory: Path, argument: object) -> Counts:
    os._exit(9)


@pytest.mark.parametrize("executor", ["processes", pytest.param("dask", marks=pytest.mark.slow)])
def test_a_worker_that_dies_every_time_is_explained(tmp_path: Path, executor: str) -> None:
    if executor == "dask":
        pytest.importorskip("distributed")
    run = Run.begin(tmp_path / "run")
    with open_executor(executor, 2, run) as opened:
        runner = StageRunner(tmp_path, opened, run, total=1, on_work=lambda: None)
        with pytest.raises(UserError, match="fewer --workers"):
            runner.run("doomed", die, {"00000": None, "00001": None}, settings=[])
