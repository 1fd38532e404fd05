"""Measurements in processes of their own, each of which takes a step whenever it is asked, and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Measurement
from common.errors import UserError
from common.threads import unbound


class Worker:
    """A running module that answers every line on its standard input with a JSON object."""

    def __init__(self, module: str, argument: str, processes: int = 1) -> None:
        command = [sys.executable, "-m", module, argument]
        environment = dict(os.environ)
        if processes > 1:
            command[1:2] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
            # Share the cores, as one process has them.
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
        with unbound():
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )

    def __call__(self) -> Measurement:
        """The figures of a step. Raises UserError when the worker has died."""
        return self.ask("step")

    def ask(self, asked: str) -> dict[str, Any]:
        """The answer to the line `asked`. Raises UserError when the worker has died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{asked}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its output ends, which is said below
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise UserError(f"a benchmark process ended with status {self.process.wait()}; its error is above")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peak_held(device: torch.device) -> float:
    """The most that this process ever had in memory, in bytes: on a GPU in tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform.startswith("linux"):  # where ru_maxrss begins with that of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
