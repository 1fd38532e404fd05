"""Running stages: each is a set of tasks, each task a pure function that writes whole files and returns counts.

A stage is known by its fingerprint: a sha256 over its settings, its code and the content of its inputs.
Where the fingerprint on disk is the same, finished tasks are kept: a rerun does no work, and a killed run goes on at
the first unfinished shard. Where it differs, the stage begins anew.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_exit
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, remove_temporaries, sha256_of, write_json
from data_pipeline.documents import Counts

_COUNTED = ("documents_in", "documents_out", "dropped", "details", "bytes_in", "bytes_out")

# A task gets its own name, the stage's directory and its argument.
Task = Callable[[str, Path, Any], Counts]


@dataclass
class StageResult:
    """What a stage made. `digest` covers the content of its files, `counts` sums its tasks."""

    name: str
    directory: Path
    tasks: dict[str, Counts]  # by task name, in order
    files: list[str]  # relative to `directory`, in order; dropped documents are not among them
    digest: str
    seconds: float  # work of all tasks, whenever it was done
    counts: Counts = field(default_factory=Counts)

    def paths(self, suffix: str = "") -> list[Path]:
        return [self.directory / name for name in self.files if name.endswith(suffix)]


class StageRunner:
    """Runs stages in `directory`, with `workers` processes."""

    def __init__(self, directory: Path, executor: Executor | None, total: int, on_work: Callable[[], None]) -> None:
        """`executor` None runs tasks in this process. `on_work` is called before anything is recomputed."""
        self.directory = directory
        self.executor = executor
        self.total = total
        self.on_work = on_work
        self.results: list[StageResult] = []
        self.worked = False

    def run(
        self,
        name: str,
        function: Task,
        arguments: dict[str, Any],
        settings: Any,
        inputs: Iterable[StageResult] = (),
    ) -> StageResult:
        """Bring stage `name` up to date: one task a name in `arguments`, each with its argument.

        `settings` is everything beside the inputs that the result depends on, ready for JSON.
        """
        started = time.perf_counter()
        number = len(self.results)
        directory = self.directory / f"{number:02d}_{name}"
        # What Python can parse, and what its Unicode tables say, depends on its version.
        made_by = [code_of(function.__module__), sys.version_info[:2], settings]
        fingerprint = _digest([name, made_by, sorted(arguments), [stage.digest for stage in inputs]])
        _prepare(directory, fingerprint)
        finished = {task: _finished(directory, task) for task in arguments}
        missing = [task for task, marker in finished.items() if marker is None]
        if missing and not self.worked:
            self.worked = True
            self.on_work()
        if missing:
            self._run_tasks(name, function, directory, {task: arguments[task] for task in missing}, started)
            finished = {task: _finished(directory, task) for task in arguments}
        result = _collect(name, directory, {task: marker for task, marker in finished.items() if marker})
        self.results.append(result)
        _check_conservation(result)
        self._report(result, f"{time.perf_counter() - started:.1f} s" if missing else "up to date")
        return result

    def _run_tasks(self, name: str, function: Task, directory: Path, arguments: dict[str, Any], started: float) -> None:
        if self.executor is None or len(arguments) == 1:
            for task, argument in arguments.items():
                run_task(function, task, directory, argument)
            return
        waiting: set[Future[None]] = {
            self.executor.submit(run_task, function, task, directory, argument) for task, argument in arguments.items()
        }
        said = started
        while waiting:
            done, waiting = wait(waiting, timeout=10, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    future.result()
                except BrokenExecutor as error:
                    raise UserError(
                        f"a worker was killed in stage {name}, most likely for want of memory; run the command again "
                        "with fewer --workers, and it goes on where it stopped"
                    ) from error
            if time.perf_counter() - said > 10:
                said = time.perf_counter()
                print(f"        {name}: {len(arguments) - len(waiting)} of {len(arguments)} shards", flush=True)

    def _report(self, result: StageResult, state: str) -> None:
        counts = result.counts
        text = f"{counts.documents_out:>9,} documents" if counts.documents_in else ""
        if counts.dropped:
            text += f", {sum(counts.dropped.values()):,} set aside"
        print(f"[{len(self.results):>2}/{self.total}] {result.name:<12} {text:<42} {state}", flush=True)


def run_task(function: Task, task: str, directory: Path, argument: Any) -> None:
    """Run one task and leave its marker, last, so that a marker always stands for whole files."""
    started = time.perf_counter()
    counts = function(task, directory, argument)
    files = sorted(path for path in directory.glob(f"{task}[.-]*") if not path.name.endswith(".tmp"))
    marker = {
        **{key: getattr(counts, key) for key in _COUNTED},
        "dropped": dict(sorted(counts.dropped.items())),
        "seconds": round(time.perf_counter() - started, 3),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
    write_json(directory / "done" / f"{task}.json", marker)


@contextmanager
def process_pool(workers: int) -> Iterator[Executor | None]:
    """A pool of `workers` fresh processes, or None for one: then everything runs in this process."""
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def input_tasks(stage: StageResult) -> dict[str, Path]:
    """One task for every document shard of `stage`, named after it."""
    return {path.name.removesuffix(".jsonl"): path for path in stage.paths(".jsonl")}


def _begin_worker() -> None:
    """Leave quietly on Ctrl-C, and with the parent: workers whose parent was killed would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait_for_exit([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(directory: Path, fingerprint: str) -> None:
    """Leave in `directory` what was made under `fingerprint`, and nothing else."""
    path = directory / "fingerprint.json"
    try:
        current = read_json(path) == fingerprint
    except (OSError, ValueError):
        current = False
    if not current:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_json(path, fingerprint)
    for place in (directory, directory / "dropped", directory / "done"):
        remove_temporaries(place)


def _finished(directory: Path, task: str) -> dict[str, Any] | None:
    """The marker of a finished task whose files are all there, or None."""
    try:
        marker: dict[str, Any] = read_json(directory / "done" / f"{task}.json")
        whole = all((directory / name).stat().st_size == file["bytes"] for name, file in marker["files"].items())
    except (OSError, ValueError):
        return None
    return marker if whole else None


def _collect(name: str, directory: Path, markers: dict[str, dict[str, Any]]) -> StageResult:
    tasks: dict[str, Counts] = {}
    files: list[str] = []
    content: list[Any] = []
    total, seconds = Counts(), 0.0
    for task in sorted(markers):
        marker = markers[task]
        counts = Counts(**{key: marker[key] for key in _COUNTED})
        counts.dropped = Counter(counts.dropped)
        tasks[task] = counts
        total.documents_in += counts.documents_in
        total.documents_out += counts.documents_out
        total.bytes_in += counts.bytes_in
        total.bytes_out += counts.bytes_out
        total.dropped += counts.dropped
        files += sorted(marker["files"])
        seconds += marker["seconds"]
        content.append([task, {file: entry["sha256"] for file, entry in marker["files"].items()}, counts.details])
    return StageResult(name, directory, tasks, files, _digest(content), round(seconds, 3), total)


def _check_conservation(result: StageResult) -> None:
    for task, counts in result.tasks.items():
        lost = counts.documents_in - counts.documents_out - sum(counts.dropped.values())
        assert lost == 0, f"stage {result.name}, shard {task}: {lost} documents are unaccounted for"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_of(module: str) -> dict[str, str]:
    """sha256 of the source of a module and of all that it imports here: older results never pass for newer code's.

    Configs are left out, as their values are part of a stage's settings.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.endswith(".config"):
            continue
        path = Path(str(sys.modules[name].__file__))
        found[name] = sha256_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                waiting += [each for each in names if each.startswith(f"{__package__}.") and each in sys.modules]
    return dict(sorted(found.items()))


def default_workers() -> int:
    """One process a core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
