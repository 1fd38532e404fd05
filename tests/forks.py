"""Processes that begin as copies of one that has imported PyTorch and this project: real ones, but there at once.

They have everything of `python ARGUMENTS` but the start of the interpreter. Tests whose subject that is, or torchrun,
or what a library reads from the environment while it is imported, start one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

PROJECT = Path(__file__).resolve().parent.parent
IMPORTED = ["train", "sample", "torch._dynamo", "evaluation.report", "evaluation.fine_tuning", "evaluation.stages"]
GRACE = 30  # seconds that the processes left have to end after one has failed, as with torchrun


@cache
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        ensure_running()
    return context


def fork(
    arguments: Sequence[str], cwd: Path, variables: dict[str, str], output: Path | None = None
) -> ForkServerProcess:
    """Begin `python ARGUMENTS` with all `variables` as its environment.

    What it writes goes to `stdout` and `stderr` in the directory `output`, or nowhere.
    """
    process = server().Process(target=_become, args=(list(arguments), str(cwd.absolute()), variables, output))
    process.start()
    return process


def run_forks(
    arguments: Sequence[str], cwd: Path, variables: dict[str, str], processes: int = 1, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS`, by so many processes as torchrun would start it; the status is 1 if one of them fails."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if processes > 1 else None
    with tempfile.TemporaryDirectory() as output:
        started = [
            fork(arguments, cwd, variables | (_place(rank, processes, store.port) if store else {}), Path(output))
            for rank in range(processes)
        ]
        try:
            _wait(started, timeout)
        finally:
            for process in started:
                process.kill()
                process.join()
        texts = [(Path(output) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    statuses = [process.exitcode or 0 for process in started]
    return subprocess.CompletedProcess(list(arguments), statuses[0] if processes == 1 else int(any(statuses)), *texts)


def _wait(processes: list[ForkServerProcess], timeout: float) -> None:
    """Until all have ended, or one has failed and those left have had their time to end."""
    deadline, failed = time.monotonic() + timeout, False
    left = {process.sentinel: process for process in processes}
    while left and (ended := wait(left, deadline - time.monotonic())):
        statuses = [left.pop(sentinel).exitcode for sentinel in ended]
        failed |= any(statuses)
        if failed:
            for process in left.values():
                process.terminate()
            deadline = min(deadline, time.monotonic() + GRACE)
    assert failed or not left, f"still running after {timeout} seconds"


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _become(arguments: list[str], cwd: str, variables: dict[str, str], output: Path | None) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(output / name if output else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    # What Python and PyTorch read when they begin.
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = list(arguments)
    try:
        if arguments[0] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        elif arguments[0] == "-m":
            runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
