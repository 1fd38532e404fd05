"""Threads stay on their cores, and what is started beside them does not have to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_benchmarks import TINY
from tiny import PROJECT, environment

from benchmarks.process import Worker
from benchmarks.worker import Variant

# A bound process says where it may run, and where processes that it starts may.
PROGRAM = """
import os, subprocess, sys
from common.threads import bind_threads, unbound
bind_threads()
import torch
child = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)), flush=True)"]
print(len(os.sched_getaffinity(0)), flush=True)
subprocess.run(child)
with unbound():
    subprocess.run(child)
print(len(os.sched_getaffinity(0)), flush=True)
"""

# Work for a GPU is not bound, though the threads of parallel regions on the CPU are.
ON_A_GPU = """
import os
from common.threads import bind_threads
bind_threads()
import torch
from model.device import choose_device
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
choose_device("cpu")
print(len(os.sched_getaffinity(0)))
choose_device("auto")
torch.ones(300, 300) @ torch.ones(300, 300)
print(len(os.sched_getaffinity(0)))
"""

COMMANDS = ("train", "evaluation.questions")

several_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores, and Linux"
)


def affinities(program: str) -> list[int]:
    """The numbers of cores that a program prints, run in a process that binds its threads."""
    variables = environment(PYTHONPATH=str(PROJECT))
    variables.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@several_cores
def test_what_a_bound_process_starts_can_have_all_cores() -> None:
    assert affinities(PROGRAM) == [1, 1, len(os.sched_getaffinity(0)), 1]


@several_cores
def test_a_process_that_works_on_a_gpu_has_all_cores() -> None:
    assert affinities(ON_A_GPU) == [1, len(os.sched_getaffinity(0))]


@several_cores
def test_a_benchmark_worker_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the process that starts it was bound when it loaded PyTorch."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    given = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(given)})
    try:
        worker = Worker("benchmarks.worker", Variant(TINY).to_json())
    finally:
        os.sched_setaffinity(0, given)
    worker()
    threads = [int(task.name) for task in Path(f"/proc/{worker.process.pid}/task").iterdir()]
    cores = set().union(*(os.sched_getaffinity(thread) for thread in threads))
    worker.close()
    assert cores == given


@several_cores
@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_computes_on_all_cores(module: str) -> None:
    program = f"import {module}, os, torch; print(torch.get_num_threads(), {len(os.sched_getaffinity(0))})"
    threads, cores = affinities(program)
    assert threads == cores
