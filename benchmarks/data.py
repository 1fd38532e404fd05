"""Filters, signatures and deduplication against datatrove and datasketch: python -m benchmarks.data --peer-python PATH.

PATH is the interpreter of a virtual environment with `pip install 'datatrove[processing]==0.10.0' 'datasketch>=2'
spacy`. The documents are real: Wikipedia's lead sections in two languages and installed Python code. Every measurement
is a process of its own on one core, ours and theirs in turn; reading the documents and loading a language are not
counted. Without PATH only ours are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from benchmarks.data_worker import RULES
from benchmarks.table import Measurement, alternate, report
from common.cli import run_command
from common.errors import UserError
from data_pipeline import collect
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import read_documents, write_row
from data_pipeline.sources.config import PackagedWikipedia, PythonCode

T = TypeVar("T")
ALL = "+".join(RULES)
# Each task of ours, and the tasks of others that do the same.
TASKS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*RULES, ALL)},
    "signatures": ("datasketch_signatures", "datatrove_signatures"),
    "deduplication": ("datatrove_deduplication",),
}


@dataclass(frozen=True)
class DataCommand:
    """Compare speed and decisions with datatrove and datasketch."""

    peer_python: str | None = None
    """Python interpreter that has datatrove and datasketch installed."""
    only: tuple[str, ...] = ()
    """Tasks to measure; by default all."""
    rounds: int = 3
    """Measurements of each."""
    documents: int | None = None
    """Use only so many documents, spread over all."""
    downloads: str = "data/downloads"
    """Where the Wikipedia package is, or is downloaded to."""
    json: str | None = None
    """Also write the figures to FILE_gopher_quality.json and so on, this being FILE."""

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents < 1:
            raise UserError(f"--documents {self.documents} is too small: it must be at least 1")


def spread_over(documents: Iterable[T], total: int, wanted: int) -> Iterator[T]:
    """`wanted` of all `total` documents, or all where there are no more, at distances that differ by one at most."""
    wanted = min(wanted, total)
    return (document for place, document in enumerate(documents) if place * wanted % total < wanted)


def write_documents(command: DataCommand, path: Path) -> tuple[int, float]:
    """All documents into one file; returns their number and megabytes."""
    sources = (PackagedWikipedia(), PackagedWikipedia(language="es", name="spanish"), PythonCode(max_bytes=50_000_000))
    with tempfile.TemporaryDirectory() as folder:
        for task, part in collect.tasks_of(collect.plan(sources, CollectionConfig(), Path(command.downloads))).items():
            collect.collect_part(task, Path(folder), part)
        shards = sorted(Path(folder).glob("*.jsonl"))
        total = sum(1 for shard in shards for _ in read_documents(shard))
        documents = (document for shard in shards for document in read_documents(shard))
        count = size = 0
        with path.open("w", encoding="utf-8") as file:
            for document in spread_over(documents, total, command.documents or total):
                write_row(file, document)
                count, size = count + 1, size + document.byte_count
    return count, size / 1e6


def run(command: Sequence[str], task: str, documents: Path) -> dict[str, Any]:
    """One measurement, in a process of one thread."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*command, task, str(documents), folder]
        result = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    if result.returncode:
        raise UserError(f"{' '.join(arguments[:3])} failed: {result.stderr.strip().rpartition(chr(10))[2]}")
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Print the share of equal decisions of every filter, and what the others were."""
    for name, reasons in theirs["reasons"].items():
        pairs = list(zip(ours["reasons"][name], reasons, strict=True))
        different = Counter(pair for pair in pairs if (pair[0] is None) != (pair[1] is None))
        share = 1 - sum(different.values()) / len(pairs)
        print(f"{name}: {100 * share:.2f} % of {len(pairs):,} decisions equal; datatrove keeps", end=" ")
        print(f"{sum(theirs is None for _, theirs in pairs):,}")
        for (mine, other), count in different.most_common():
            print(f"    {count} where ours is {mine or 'kept'} and datatrove's {other or 'kept'}")


def measure(command: DataCommand, task: str, documents: Path, count: int, megabytes: float) -> None:
    last: dict[str, dict[str, Any]] = {}

    def figures(name: str, program: Sequence[str], peer_task: str) -> Measurement:
        last[name] = run(program, peer_task, documents)
        seconds = last[name]["seconds"]
        return {"seconds": seconds, "documents/s": count / seconds, "MB/s": megabytes / seconds}

    variants = {"ours": lambda: figures("ours", [sys.executable, "-m", "benchmarks.data_worker"], task)}
    if command.peer_python:
        peer = [command.peer_python, str(Path(__file__).with_name("data_peer.py"))]
        for other in TASKS[task]:
            name = other.partition("_")[0] if other not in TASKS else "datatrove"
            variants[name] = lambda name=name, other=other: figures(name, peer, other)  # type: ignore[misc]
    file = f"{command.json}_{task.replace('+', '_')}.json" if command.json else None
    report(f"{task}, one core", alternate(variants, command.rounds, warm_up=False), "documents/s", file)
    if "datatrove" in last and "reasons" in last["ours"]:
        compare(last["ours"], last["datatrove"])
    if "datatrove" in last and "kept" in last["ours"]:
        print(f"kept: {len(last['ours']['kept']):,} by ours, {len(last['datatrove']['kept']):,} by datatrove")


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(DataCommand, args=argv, prog="python -m benchmarks.data")
    unknown = [task for task in command.only if task not in TASKS]
    if unknown:
        raise UserError(f"no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents.jsonl"
        count, megabytes = write_documents(command, documents)
        Console().print(f"{count:,} documents, {megabytes:.1f} MB")
        for task in command.only or TASKS:
            measure(command, task, documents, count, megabytes)


if __name__ == "__main__":
    run_command(main)
