"""Running stages: each is a set of tasks, each task a pure function that writes whole files and returns counts.

A finished task is known by its key: a sha256 over its stage's settings and code, and the content of what the task
reads. Where the key on disk is the same, the task is kept: a rerun does no work, a killed run goes on at the first
unfinished shard, and a new input adds its shards to those that are there. What belongs to no task is removed.

Every attempt at a task writes into a directory of its own, and its files move into the stage's when it has succeeded.
So a task may be tried twice, even at the same time on two machines of a cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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
    sha256_of,
    sync_directory,
    write_json,
)
from data_pipeline.code_identity import code_of
from data_pipeline.documents import Counts
from data_pipeline.executors import Run, worker_was_lost
from data_pipeline.progress import stage_progress

FINGERPRINT = "fingerprint.json"  # in a stage's directory: of all its tasks' keys
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

    def files_by_task(self) -> dict[str, dict[str, str]]:
        """The sha256 of files by what stands before the first dot of their names: a task of a later stage."""
        found: dict[str, dict[str, str]] = {}
        for name, digest in self.hashes.items():
            found.setdefault(name.partition(".")[0], {})[name] = digest
        return found


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
        *,
        own: Iterable[StageResult] = (),
        whole: Iterable[StageResult] = (),
        keys: dict[str, Any] | None = None,
    ) -> StageResult:
        """Bring stage `name` up to date.

        Args:
            name: of the stage.
            function: does one task.
            arguments: one task a name, each with its argument.
            settings: all that the results depend on beside what follows, ready for JSON.
            own: stages of which each task reads the files that have its name.
            whole: stages that every task reads as a whole.
            keys: what else a single task depends on, by its name.
        """
        started = time.perf_counter()
        number = len(self.results)
        directory = self.directory / f"{number:02d}_{name}"
        common = _digest([name, code_of(function.__module__), settings, [stage.digest for stage in whole]])
        parts = [stage.files_by_task() for stage in own]
        expected = {
            task: _digest([common, [part.get(task) for part in parts], (keys or {}).get(task)]) for task in arguments
        }
        markers = {task: marker for task, key in expected.items() if (marker := _finished(directory, task, key))}
        _remove_strays(directory, markers)
        missing = {task: argument for task, argument in arguments.items() if task not in markers}
        if missing and not self.worked:
            self.worked = True
            self.on_work()
        if missing:
            with stage_progress(name, len(arguments), len(markers)) as advance:
                for task, marker in self._outcomes(name, function, directory, missing, expected):
                    markers[task] = marker
                    advance(marker["documents_out"])
        _leave_fingerprint(directory, _digest(expected))
        result = _collect(name, directory, markers)
        self.results.append(result)
        _check_conservation(result)
        self._report(result, f"{time.perf_counter() - started:.1f} s" if missing else "up to date")
        return result

    def _outcomes(
        self, name: str, function: Task, directory: Path, arguments: dict[str, Any], keys: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each task with its marker, as soon as it is done."""
        if self.executor is None:
            for task, argument in arguments.items():
                yield task, _marker(run_task(function, task, keys[task], directory, argument, self.current))
            return
        futures = {
            self.executor.submit(run_task, function, task, keys[task], directory, argument, self.current): task
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


def run_task(
    function: Task, task: str, key: str, directory: Path, argument: Any, run: Run
) -> dict[str, Any] | UserError:
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
        "key": key,
        **{name: getattr(counts, name) for name in _COUNTED},
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


def _remove_strays(directory: Path, markers: dict[str, dict[str, Any]]) -> None:
    """Leave in `directory` what its finished tasks made, and nothing else."""
    wanted = {FINGERPRINT, *(f"done/{task}.json" for task in markers)}
    wanted |= {name for marker in markers.values() for name in marker["files"]}
    for place, _, names in os.walk(directory, topdown=False):
        for path in (Path(place, name) for name in names):
            if path.relative_to(directory).as_posix() not in wanted:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(place)
    directory.mkdir(parents=True, exist_ok=True)


def _leave_fingerprint(directory: Path, fingerprint: str) -> None:
    try:
        current = read_json(directory / FINGERPRINT)
    except (OSError, ValueError):
        current = None
    if current != fingerprint:
        write_json(directory / FINGERPRINT, fingerprint)


def _finished(directory: Path, task: str, key: str) -> dict[str, Any] | None:
    """The marker of a task that was finished under `key` and whose files are all there, or None."""
    try:
        marker: dict[str, Any] = read_json(directory / "done" / f"{task}.json")
        files = marker["files"].items()
        whole = marker["key"] == key and all(_unchanged(directory / name, file) for name, file in files)
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
