"""Where tasks run: the same bytes from every executor, workers that cannot be used, attempts that are given up."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_data_helpers import ROOT, command, files_of

from common.errors import UserError
from common.files import read_json
from data_pipeline import executors
from data_pipeline.config import DataConfig
from data_pipeline.documents import Counts
from data_pipeline.executors import Run, check_executor
from data_pipeline.pipeline import STAGE_COUNT, curate
from data_pipeline.stages import run_task

pytest.importorskip("distributed")
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


@contextmanager
def dask_program(*arguments: str, cwd: Path = ROOT, path: str = PATH) -> Iterator[subprocess.Popen[bytes]]:
    program = [sys.executable, str(Path(sys.executable).with_name("dask")), *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(program, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a Dask scheduler without workers."""
    file = tmp_path_factory.mktemp("scheduler") / "scheduler.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    with dask_program("scheduler", *arguments):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not file.exists():
            time.sleep(0.02)
        yield str(read_json(file)["address"]).removeprefix("tcp://")


def worker(scheduler: str, folder: Path, **options: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
    arguments = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder))
    return dask_program("worker", scheduler, *arguments, **options)


def without_seconds(path: Path) -> dict[str, object]:
    manifest = read_json(path / "manifest.json")
    stages = [{key: value for key, value in stage.items() if key != "seconds"} for stage in manifest["stages"]]
    return {**manifest, "stages": stages}


@pytest.mark.parametrize("executor", ["processes", "dask"])
def test_executors_do_not_change_a_byte(built: tuple[DataConfig, Path], tmp_path: Path, executor: str) -> None:
    config, out = built
    curate(config, tmp_path / "data", workers=2, executor=executor)
    assert files_of(tmp_path / "data") == files_of(out)
    assert without_seconds(tmp_path / "data") == without_seconds(out)


def test_a_dask_worker_killed_in_the_middle_is_replaced_by_another(
    config_file: Path, built: tuple[DataConfig, Path], tmp_path: Path, scheduler: str
) -> None:
    out = tmp_path / "data"
    with worker(scheduler, tmp_path / "a") as doomed, worker(scheduler, tmp_path / "b"):
        process = command(config_file, out, "--executor", f"dask://{scheduler}")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not list(out.glob("stages/*_measure/*.tmp")):
            time.sleep(0.001)
        doomed.send_signal(signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert files_of(out) == files_of(built[1])


def test_a_cluster_that_cannot_be_used_is_explained(
    built: tuple[DataConfig, Path], tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(executor: str) -> str:
        with pytest.raises(UserError) as error:
            curate(built[0], tmp_path / "data", workers=2, executor=executor)
        return str(error.value)

    monkeypatch.setattr(executors, "_PATIENCE", 1)
    assert "no Dask scheduler answers at 127.0.0.1:9" in refused("dask://127.0.0.1:9")
    assert "has no workers" in refused(f"dask://{scheduler}")
    monkeypatch.setattr(executors, "_PATIENCE", 30)
    other = tmp_path / "other"
    for room in ("common", "data_pipeline"):
        shutil.copytree(ROOT / room, other / room)
    (other / "common" / "files.py").open("a").write("# changed\n")
    with worker(scheduler, tmp_path / "a", path=str(other)):
        assert "has another version of this project" in refused(f"dask://{scheduler}")
    with worker(scheduler, tmp_path / "b", cwd=tmp_path):
        assert f"works in {tmp_path}: start it in {os.getcwd()}" in refused(f"dask://{scheduler}")
    (tmp_path / "broken" / "data_pipeline").mkdir(parents=True)
    (tmp_path / "broken" / "data_pipeline" / "__init__.py").touch()
    (tmp_path / "broken" / "data_pipeline" / "executors.py").write_text("import a_package_that_is_missing_here")
    with worker(scheduler, tmp_path / "c", path=str(tmp_path / "broken")):
        assert "cannot import this project" in refused(f"dask://{scheduler}")


def test_executors_that_there_are_not_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("threads", "dask://", "dask://host"):
        with pytest.raises(UserError, match="it is one of processes, serial, dask and dask://HOST:PORT"):
            check_executor(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[cluster\]'"):
        check_executor("dask")
    check_executor("processes")


def test_workers_must_see_the_same_files(tmp_path: Path) -> None:
    run = Run.begin(tmp_path / "run")
    run.check([str(tmp_path)])
    with pytest.raises(UserError, match=r"does not see missing\.txt"):
        run.check(["missing.txt"])
    (tmp_path / "run").unlink()
    with pytest.raises(UserError, match="must share its file system"):
        run.check()


def write_slowly(task: str, directory: Path, argument: threading.Barrier) -> Counts:
    (directory / "dropped").mkdir()
    for name in (f"{task}.txt", f"{task}.more.txt", f"dropped/{task}.txt"):
        (directory / name).write_text("whole")
        argument.wait(10)
    return Counts()


def test_two_attempts_at_once_leave_one_result(tmp_path: Path) -> None:
    run, stage, barrier = Run.begin(tmp_path / "run"), tmp_path / "stage", threading.Barrier(2)
    stage.mkdir()
    outcomes: list[Any] = []
    attempts = [
        threading.Thread(target=lambda: outcomes.append(run_task(write_slowly, "a", "key", stage, barrier, run)))
        for _ in range(2)
    ]
    for attempt in attempts:
        attempt.start()
    for attempt in attempts:
        attempt.join()
    files = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert files == {"a.txt", "a.more.txt", "dropped/a.txt", "done/a.json"}
    assert [sorted(outcome["files"]) for outcome in outcomes] == [["a.more.txt", "a.txt", "dropped/a.txt"]] * 2


def test_an_attempt_that_outlives_its_run_leaves_nothing(tmp_path: Path) -> None:
    """Its main process was killed, and a later run has begun in the meantime."""
    run, stage = Run.begin(tmp_path / "run"), tmp_path / "stage"
    stage.mkdir()

    def overtaken(task: str, directory: Path, argument: object) -> Counts:
        (directory / f"{task}.txt").write_text("old")
        Run.begin(tmp_path / "run")
        return Counts()

    assert "one run at a time" in str(run_task(overtaken, "a", "key", stage, None, run))
    assert not list(stage.iterdir())


def test_a_terminal_shows_bars_and_the_lines_of_every_stage(config_file: Path, tmp_path: Path) -> None:
    main, side = pty.openpty()
    process = command(config_file, tmp_path / "data", "--workers", "1", stdout=side)
    os.close(side)
    shown = b""
    while True:
        try:
            shown += os.read(main, 4096)
        except OSError:  # the other end is closed
            break
    process.communicate(timeout=60)
    os.close(main)
    text = shown.decode()
    assert process.returncode == 0
    assert "shards" in text and "elapsed" in text and "\x1b[" in text
    lines = [line.rpartition("\x1b[2K")[2] for line in text.replace("\r", "").split("\n")]
    assert len([line for line in lines if line.startswith("[") and line.endswith(" s")]) == STAGE_COUNT - 1


def test_two_clusters_on_one_machine_are_not_in_each_others_way() -> None:
    """Each has a port for what it says of itself; where that is in use it would warn."""
    with socket.socket() as taken, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with contextlib.suppress(OSError):  # in use already is as good
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        with executors._own_cluster(1) as executor:
            assert executor.submit(abs, -1).result() == 1
    assert not [warning for warning in said if "already in use" in str(warning.message)]
