"""Progress of a stage: a bar on a terminal, a line every ten seconds anywhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_INTERVAL = 10.0  # seconds between lines

# Called with the number of documents of each shard that is done.
Advance = Callable[[int], None]


@contextmanager
def stage_progress(label: str, total: int, done: int) -> Iterator[Advance]:
    """Show how far a stage is for as long as the block runs; nothing of the bar stays.

    Args:
        label: what to call the stage.
        total: its shards.
        done: those that an earlier run has finished.
    """
    console = Console()
    if sys.stdout.isatty() and console.is_interactive:
        with _bar(console, label, total, done) as advance:
            yield advance
    else:
        with _lines(label, total, done) as advance:
            yield advance


@contextmanager
def _bar(console: Console, label: str, total: int, done: int) -> Iterator[Advance]:
    shards = (BarColumn(), MofNCompleteColumn(), TextColumn("shards {task.fields[documents]:>11,} documents"))
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *(shards if total > 1 else ()),
        TimeElapsedColumn(),
        *((TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left")) if total > 1 else ()),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task(label, total=total, completed=done, documents=0)
        documents = 0

        def advance(count: int) -> None:
            nonlocal documents
            documents += count
            progress.update(task, advance=1, documents=documents)

        yield advance


@contextmanager
def _lines(label: str, total: int, done: int) -> Iterator[Advance]:
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_INTERVAL):
            print(f"        {label}: {done} of {total} shards", flush=True)

    def advance(count: int) -> None:
        nonlocal done
        done += 1

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        over.set()
        thread.join()
