"""Files that cannot be read now, and can later: behind a network that fails, or without leave to open them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_data_sources import GOOD, collected
from test_data_warc import pages, write
from test_data_wiki_dump import articles, dump

from common.errors import UserError
from data_pipeline.collect import collect_part, plan
from data_pipeline.config import CollectionConfig
from data_pipeline.sources import python_code, wiki_dump
from data_pipeline.sources.config import PythonCode, Source, TextFiles, WarcFiles, WikipediaDump

T = TypeVar("T")
NOBODY = 65534  # the user that has no rights, on every Unix
FAILURES = [ConnectionResetError("reset by peer"), RuntimeError("payload is not complete")]


class Unsteady(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory whose reading fails after `good_bytes` of one, as a network does."""

    protocol = "unsteady"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    good_bytes: int | None = None
    failure: Exception = FAILURES[0]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("unsteady://", "memory://")))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super().open(path, mode, **options)
        return file if self.good_bytes is None else _Failing(file.getvalue(), self.good_bytes, self.failure)


class _Failing:
    """A file of fsspec as its readers know it."""

    def __init__(self, content: bytes, good_bytes: int, failure: Exception) -> None:
        self.content, self.good_bytes, self.failure, self.place = content, good_bytes, failure, 0

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        end = len(self.content) if size < 0 else min(len(self.content), self.place + size)
        if self.place < end and end > self.good_bytes >= self.place:
            end = self.good_bytes
        if self.place >= self.good_bytes:
            raise self.failure
        data, self.place = self.content[self.place : end], end
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, len(self.content))[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def close(self) -> None:
        pass

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Unsteady]]:
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    monkeypatch.setattr(Unsteady, "store", {})
    yield Unsteady


def parquet(path: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    texts = [os.urandom(100).hex() for _ in range(1000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none")
    return path.read_bytes()


def contents(kind: str, folder: Path) -> tuple[bytes, Source]:
    if kind == "xml":
        return dump(articles(300)).ljust(100_000), WikipediaDump(patterns=("unsteady://a/b.xml",))
    if kind.startswith("warc"):
        write(folder / f"b.{kind}", pages(100))
        return (folder / f"b.{kind}").read_bytes(), WarcFiles(patterns=(f"unsteady://a/b.{kind}",))
    files = TextFiles(patterns=(f"unsteady://a/b.{kind}",))
    return (parquet(folder / "b") if kind == "parquet" else f"{GOOD}\n".encode() * 2000), files


@pytest.mark.parametrize("failure", FAILURES, ids=["OSError", "another"])
@pytest.mark.parametrize("kind", ["txt", "parquet", "warc", "warc.gz", "xml"])
def test_a_network_that_fails_ends_the_run_and_the_next_reads_the_file(
    tmp_path: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch, kind: str, failure: Exception
) -> None:
    content, source = contents(kind, tmp_path)
    unsteady().pipe(f"/a/b.{kind}", content)
    whole = collected(source, tmp_path / "whole")
    assert whole[0] and not whole[1]
    monkeypatch.setattr(Unsteady, "failure", failure)
    for share in (0.0, 0.3):
        monkeypatch.setattr(Unsteady, "good_bytes", int(share * len(content)))
        with pytest.raises(UserError, match=rf"cannot read unsteady://.*{type(failure).__name__}.*same command"):
            collected(source, tmp_path / "torn")
    monkeypatch.setattr(Unsteady, "good_bytes", None)
    assert collected(source, tmp_path / "torn") == whole


def test_a_remote_file_that_vanishes_ends_the_run(tmp_path: Path, unsteady: type[Unsteady]) -> None:
    unsteady().pipe("/a/b.txt", GOOD.encode())
    source = TextFiles(patterns=("unsteady://a/b.txt",))
    (part,) = plan([source], CollectionConfig(), tmp_path)
    unsteady().rm("/a/b.txt")
    (tmp_path / "dropped").mkdir()
    with pytest.raises(UserError, match="cannot read unsteady://"):
        collect_part("a", tmp_path, part)


def test_a_remote_file_system_that_cannot_be_asked_is_named(
    tmp_path: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise FAILURES[1]

    monkeypatch.setattr(Unsteady, "glob", fail)
    with pytest.raises(UserError, match=r"cannot look for unsteady://a/\*: RuntimeError: payload"):
        plan([TextFiles(patterns=("unsteady://a/*",))], CollectionConfig(), tmp_path)


def without_rights(function: Callable[[], T]) -> T:
    """What the function returns where the user may not open every file: to root none is closed."""
    if os.geteuid():
        return function()
    # Forked, so that it needs no module of a directory which may be root's own.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, fork, initializer=os.setuid, initargs=(NOBODY,)) as other:
        return other.submit(function).result()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory for everybody; those above `tmp_path` are for its user alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.mark.skipif(os.name == "nt", reason="permissions of files are those of Unix")
@pytest.mark.parametrize("kind", [TextFiles, WikipediaDump, WarcFiles, PythonCode])
def test_a_part_is_another_once_its_file_may_be_read(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Source]
) -> None:
    path = shared / "a.py"
    path.write_text(GOOD)
    # Packages may lie where only root looks; what was asked of them before is known there too.
    monkeypatch.setattr(wiki_dump, "version", functools.cache(wiki_dump.version))
    if kind is PythonCode:
        file = python_code.SourceFile(str(path), "a.py", "python", "3", "PSF-2.0")
        monkeypatch.setattr(python_code, "_standard_library", lambda: [file])
        monkeypatch.setattr(python_code, "_distributions", lambda source: {})
        source: Source = PythonCode()
    else:
        source = kind(patterns=(str(path),))  # type: ignore[call-arg]
    collected(source, tmp_path)  # imports what it needs
    planning = partial(plan, [source], CollectionConfig(), shared)
    (open_to_all,) = planning()
    path.chmod(0)
    (closed,) = without_rights(planning)
    assert [row["reason"] for row in without_rights(partial(collected, source, shared))[1]] == ["unreadable_file"]
    path.chmod(0o644)
    (again,) = without_rights(planning)
    assert again.state == open_to_all.state != closed.state
