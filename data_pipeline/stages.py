"""Running stages: each is a set of tasks, each task a pure function that writes whole files and returns counts.

A stage is known by its fingerprint: a sha256 over its settings, its code and the content of its inputs.
Where the fingerprint on disk is the same, finished tasks are kept: a rerun does no work, and a killed run goes on at
the first unfinished shard. Where it differs, the stage begins anew.

Every attempt at a task writes into a directory of its own, and its files move into the stage's when it has succeeded.
So a task may be tried twice, even at the same time on two machines of a cluster.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import (
    TEMPORARY_SUFFIX,
    read_json,
    remove_temporaries,
    sha256_of,
    sync_directory,
    write_json,
)
from data_pipeline.documents import Counts
from data_pipeline.executors import Run, worker_was_lost
from data_pipeline.progress import stage_progress

_COUNTED = ("documents_in", "documents_out", "dropped", "details", "bytes_in", "bytes_out")

# What no later stage reads: it tells people what was taken out, and why.
_FOR_PEOPLE = ("dropped/", "removed/")

# A task gets its own name, a directory for what it makes and its argument.
Task = Callable[[str, Path, Any], Counts]


@dataclass
class StageResult:
    """What a stage made. `digest` covers the content of its files, `counts` sums its tasks."""

    name: str
    directory: Path
    tasks: dict[str, Counts]  # by task name, in order
    hashes: dict[str, str]  # sha256 of its files by their name, in order; dropped documents are not among them
    digest: str
    seconds: float  # work of all tasks, whenever it was done
    counts: Counts = field(default_factory=Counts)

    def paths(self, suffix: str = "") -> list[Path]:
        return [self.directory / name for name in self.hashes if name.endswith(suffix)]


class StageRunner:
    """Runs stages in `directory`, each a set of tasks."""

    def __init__(
        self, directory: Path, executor: Executor | None, run: Run, total: int, on_work: Callable[[], None]
    ) -> None:
        """`executor` None runs tasks in this process. `on_work` is called before anything is recomputed."""
        self.directory = directory
        self.executor = executor
        self.current = run
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
        markers = {task: marker for task in arguments if (marker := _finished(directory, task))}
        missing = {task: argument for task, argument in arguments.items() if task not in markers}
        if missing and not self.worked:
            self.worked = True
            self.on_work()
        if missing:
            with stage_progress(name, len(arguments), len(markers)) as advance:
                for task, marker in self._outcomes(name, function, directory, missing):
                    markers[task] = marker
                    advance(marker["documents_out"])
        result = _collect(name, directory, markers)
        self.results.append(result)
        _check_conservation(result)
        self._report(result, f"{time.perf_counter() - started:.1f} s" if missing else "up to date")
        return result

    def _outcomes(
        self, name: str, function: Task, directory: Path, arguments: dict[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each task with its marker, as soon as it is done."""
        if self.executor is None:
            for task, argument in arguments.items():
                yield task, _marker(run_task(function, task, directory, argument, self.current))
            return
        futures = {
            self.executor.submit(run_task, function, task, directory, argument, self.current): task
            for task, argument in arguments.items()
        }
        for future in as_completed(futures):
            try:
                marker = _marker(future.result())
            except Exception as error:
                if not worker_was_lost(error):
                    raise
                raise UserError(
                    f"a worker was killed in stage {name}, most likely for want of memory, or its cluster is gone; run "
                    "the command again with fewer --workers, and it goes on where it stopped"
                ) from error
            yield futures.pop(future), marker

    def _report(self, result: StageResult, state: str) -> None:
        counts = result.counts
        text = f"{counts.documents_out:>9,} documents" if counts.documents_in else ""
        if counts.dropped:
            text += f", {sum(counts.dropped.values()):,} set aside"
        print(f"[{len(self.results):>2}/{self.total}] {result.name:<12} {text:<42} {state}", flush=True)


def run_task(function: Task, task: str, directory: Path, argument: Any, run: Run) -> dict[str, Any] | UserError:
    """Run one task, move its files into `directory` and leave its marker, last: it always stands for whole files.

    Returns the marker, or what only the user can mend: raised, that would make a cluster try the task again.
    """
    started = time.perf_counter()
    attempt = directory / f"{task}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        run.check()
        attempt.mkdir()
        counts = function(task, attempt, argument)
        names = sorted(path.relative_to(attempt).as_posix() for path in attempt.rglob("*") if path.is_file())
        hashes = {name: sha256_of(attempt / name) for name in names}
        run.check()
        for place in sorted({(directory / name).parent for name in names}):
            place.mkdir(exist_ok=True)
        for name in names:
            os.replace(attempt / name, directory / name)
        for place in sorted({(directory / name).parent for name in names}):
            sync_directory(place)
    except UserError as error:
        return error
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    marker = {
        **{key: getattr(counts, key) for key in _COUNTED},
        "dropped": dict(sorted(counts.dropped.items())),
        "seconds": round(time.perf_counter() - started, 3),
        "files": {name: {**_state(directory / name), "sha256": value} for name, value in hashes.items()},
    }
    write_json(directory / "done" / f"{task}.json", marker)
    return marker


def _marker(outcome: dict[str, Any] | UserError) -> dict[str, Any]:
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def input_tasks(stage: StageResult) -> dict[str, Path]:
    """One task for every document shard of `stage`, named after it."""
    return {path.name.removesuffix(".jsonl"): path for path in stage.paths(".jsonl")}


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
        whole = all(_unchanged(directory / name, file) for name, file in marker["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return marker if whole else None


def _unchanged(path: Path, expected: dict[str, Any]) -> bool:
    """Whether a file still holds what its task wrote. It is read only where its time says that it was touched."""
    state = _state(path)
    if state["bytes"] != expected["bytes"]:
        return False
    return bool(state["modified"] == expected["modified"] or sha256_of(path) == expected["sha256"])


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def _collect(name: str, directory: Path, markers: dict[str, dict[str, Any]]) -> StageResult:
    tasks: dict[str, Counts] = {}
    hashes: dict[str, str] = {}
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
        files = sorted(marker["files"].items())
        made = {name: file["sha256"] for name, file in files if not name.startswith(_FOR_PEOPLE)}
        hashes |= made
        seconds += marker["seconds"]
        content.append([task, made, counts.details])
    return StageResult(name, directory, tasks, hashes, _digest(content), round(seconds, 3), total)


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
