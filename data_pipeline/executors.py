"""Where tasks run: in this process, in processes of this machine, or on the workers of a Dask cluster.

Each is an executor of `concurrent.futures`. A task is a module-level function that finds its input in files and leaves
its result in files, so workers anywhere need three things, which `Run.check` makes sure of: the same code, the same
current directory, and the same files.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

from common.errors import UserError
from common.files import atomic_write

_REMOTE = "dask://"
_PATIENCE = 10  # seconds for a scheduler and its first worker to answer
_RETRIES = 2  # of a task on a cluster that failed by no mistake of the user's


@dataclass(frozen=True)
class Run:
    """One run of the pipeline, as its tasks see it wherever they are.

    A cluster cannot stop a task that has begun. One that outlives its run must not put what it made into the place of
    what a later run makes, perhaps under other settings: it finds another token in the file and gives up.
    """

    file: Path  # holds the token of the latest run in its directory
    token: str
    code: str  # `code_digest` of the main process
    directory: str  # current one, which relative paths start from

    @classmethod
    def begin(cls, file: Path) -> Run:
        """Become the latest run of those that write `file`."""
        run = cls(file, uuid.uuid4().hex, code_digest(), os.getcwd())
        with atomic_write(file) as written:
            written.write(run.token)
        return run

    def check(self, inputs: Iterable[str] = ()) -> None:
        """Called where a task is about to run, or to leave its files.

        Raises:
            UserError: this process has other code, another current directory or other files than the main process, or
                a later run has begun.
        """
        here = f"the worker on {platform.node()} (process {os.getpid()})"
        if code_digest() != self.code:
            raise UserError(
                f"{here} has another version of this project or of Python: install the same there, then restart it"
            )
        if os.getcwd() != self.directory:
            raise UserError(f"{here} works in {os.getcwd()}: start it in {self.directory}, where relative paths begin")
        try:
            current = self.file.read_text(encoding="utf-8")
        except OSError:
            current = ""
        if current != self.token:
            raise UserError(
                f"{here} does not see this run's {self.file}: workers must share its file system, and one run at a "
                "time can write there"
            )
        for path in inputs:
            if not os.path.exists(path):
                raise UserError(f"{here} does not see {path}: workers must share the file system of the sources")


@cache
def code_digest() -> str:
    """sha256 of this package, of what it imports of ours, and of Python's version.

    Remembered, and first asked for before any task: so it stands for the code that a long-lived worker has loaded, even
    when the files are changed afterwards.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for path in sorted(path for room in ("common", "data_pipeline") for path in (root / room).rglob("*.py")):
        digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def check_executor(kind: str) -> None:
    """Raises UserError for an executor that there is not, or whose package is missing."""
    if kind not in {"processes", "serial", "dask"} and not (kind.startswith(_REMOTE) and ":" in kind[len(_REMOTE) :]):
        raise UserError(f"--executor is {kind!r}; it is one of processes, serial, dask and dask://HOST:PORT")
    if kind.startswith("dask") and importlib.util.find_spec("distributed") is None:
        raise UserError(f"--executor {kind} needs the distributed package: pip install -e '.[cluster]'")


def open_executor(
    kind: str, workers: int, run: Run, inputs: Iterable[str] = ()
) -> AbstractContextManager[Executor | None]:
    """What runs tasks, for as long as a `with` block lasts; None stands for this process.

    Args:
        kind: "processes", "serial", "dask" (workers of its own on this machine) or "dask://HOST:PORT" (a scheduler).
        workers: processes of this machine; a scheduler has workers of its own.
        run: what the workers of a scheduler are checked against.
        inputs: paths that they must see.

    Raises:
        UserError: on entering, where a scheduler or its workers cannot be used.
    """
    if kind == "serial" or (kind == "processes" and workers == 1):
        return nullcontext()
    if kind == "processes":
        return _processes(workers)
    if kind == "dask":
        return _own_cluster(workers)
    return _cluster(kind.removeprefix(_REMOTE), run, tuple(inputs))


def worker_was_lost(error: BaseException) -> bool:
    """Whether a task failed because its worker, or the whole cluster, is gone."""
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__module__.startswith("distributed.")


def worker_count(wanted: int | None) -> int:
    """The processes that are wanted; where no number is given, one a core. Raises UserError for none or fewer."""
    if wanted is None:
        return _cores()
    if wanted < 1:
        raise UserError(f"--workers is {wanted}; it must be at least 1")
    return wanted


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    """A pool of fresh processes, which end at once with the block when that fails, and with this process."""
    context = multiprocessing.get_context("spawn")
    alive, holder = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(alive,))
    try:
        yield pool
    except BaseException:
        holder.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(alive: Connection) -> None:
    """Leave when the main process closes its end of the pipe, which the system does for it when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        alive.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _own_cluster(workers: int) -> Iterator[Executor]:
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        # A task may start processes, as it may in our own pool.
        stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=":0",  # any port: None takes a fixed one too, and complains where that is in use
            silence_logs=logging.CRITICAL,
        )
        stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        client.run(_ignore_interrupts)
        yield client.get_executor(pure=False, retries=_RETRIES)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; here the main one ends the others, which need not say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _cluster(address: str, run: Run, inputs: tuple[str, ...]) -> Iterator[Executor]:
    from distributed import Client

    try:
        client = Client(f"tcp://{address}", timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise UserError(f"no Dask scheduler answers at {address}; start one with: dask scheduler") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except asyncio.TimeoutError as error:
            raise UserError(
                f"the Dask scheduler at {address} has no workers; start some with: dask worker {address}"
            ) from error
        try:
            client.run(run.check, inputs)
        except UserError:
            raise
        except Exception as error:  # Dask keeps the text of what it could not import, not its type
            raise UserError(
                f"a worker of {address} cannot import this project ({error}): install it there, then restart it"
            ) from error
        yield client.get_executor(pure=False, retries=_RETRIES)
