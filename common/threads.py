"""How this process uses the CPU: threads that stay on their cores, and memory that stays in the process.

Both are arranged before the first `import torch`, because OpenMP reads its environment when it loads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

GIVEN = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()  # cores, before any binding

# Names of <malloc.h>, whose numbers are part of the ABI.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def bind_threads() -> None:
    """Keep each OpenMP thread on a core of its own.

    Unbound, both threads of a small virtual machine can land on one core, and then every parallel region waits for a
    whole scheduler slice. With several processes on one machine each would bind to the same first cores, so then
    placement is left to the operating system; so it is where OMP_NUM_THREADS shows that the user divides the cores.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1 and "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OMP_PROC_BIND", "true")
        os.environ.setdefault("OMP_PLACES", "cores")
    # The first OpenMP library to be loaded binds the main thread, and a second one, such as that in SentencePiece's
    # wheel, finds one core left. So PyTorch's is the first.
    import torch  # noqa: F401


def unbind() -> None:
    """Let this thread run on all cores that the process was given, and so all that it starts from now on.

    For work that is not done on the CPU: the bound thread would share its one core with those that feed the device.
    """
    if hasattr(os, "sched_setaffinity"):  # not in macOS and Windows, where nothing is bound
        os.sched_setaffinity(0, GIVEN)


@contextmanager
def unbound() -> Iterator[None]:
    """Within, what this thread starts may run on all cores that the process was given.

    A bound thread passes its one core on: to other threads, which then get in its way, and to processes, which then
    have no other.
    """
    if not hasattr(os, "sched_setaffinity"):  # not in macOS and Windows, where nothing is bound
        yield
        return
    bound = os.sched_getaffinity(0)
    unbind()
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next allocation instead of returning them to the system.

    A training step on the CPU allocates and frees the same large tensors again and again; by default each of them is
    mapped and zeroed page by page every time, and a step takes 1.6 times as long (`python -m benchmarks.training`).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not in musl
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
