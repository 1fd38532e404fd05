"""Source trees, in a repository or an archive: which of their files are read, and what becomes of one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from data_pipeline.documents import Document, Quarantined
from data_pipeline.sources import licences
from data_pipeline.sources.config import GitRepositories, PyPIPackages

T = TypeVar("T")

CODE = frozenset(
    ".bash .c .cc .clj .cpp .cs .css .cu .cxx .dart .ex .exs .f90 .go .h .hh .hpp .hs .java .jl .js .jsx .kt .lua .m "
    ".ml .mjs .php .pl .pm .py .pyi .pyx .r .rb .rs .scala .sh .sql .swift .ts .tsx .vue .zig".split()
)
DOCUMENTATION = frozenset((".md", ".rst", ".txt"))
# Copies of other projects, which have licences of their own.
VENDORED = ("_vendor", "_vendored", "vendor", "vendored", "third_party", "thirdparty", "externals", "extern")
_INSTALLED = ("node_modules", "bower_components", "site-packages", "dist-packages")
_TEST_DATA = ("testdata", "test_data", "test-data", "fixtures", "__snapshots__", "cassettes")
_PASSED_OVER = frozenset((*VENDORED, *_INSTALLED, *_TEST_DATA))
_MADE_BY_PROGRAMS = re.compile(r"[.-]min\.\w+$|\.bundle\.m?js$|_pb2(_grpc)?\.pyi?$|\.pb\.(go|h|cc)$|\.g\.dart$")
_LARGE_FILE_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Tree:
    """What all files of a tree have in common."""

    group: str
    revision: str
    origin: str  # stands before the path of a file


def kind_of(path: str, suffixes: Collection[str]) -> str | None:
    """What a file is, "code" or "prose"; None for one to pass over: of another kind, vendored, test data or generated.

    `suffixes`, where there are any, are the only ones that count.
    """
    parts = PurePosixPath(path.lower())
    suffix = parts.suffix
    known = suffix in suffixes if suffixes else suffix in CODE or suffix in DOCUMENTATION
    if not known or _PASSED_OVER.intersection(parts.parts[:-1]) or _MADE_BY_PROGRAMS.search(parts.name):
        return None
    if suffix in DOCUMENTATION and licences.is_licence_file(parts.name):
        return None
    return "prose" if suffix in DOCUMENTATION else "code"


def holds_licence(path: str) -> bool:
    """Whether a file's text is the licence of the directory that it is in."""
    name = PurePosixPath(path.lower())
    return licences.is_licence_file(name.name) and name.suffix not in CODE


def record(
    source: GitRepositories | PyPIPackages, number: int, tree: Tree, path: str, content: bytes, licence: str
) -> Document | Quarantined:
    """The document of one file, or why it is set aside. `licence` holds where the file itself names none."""
    origin = f"{tree.origin}/{path}"
    if b"\0" in content:
        return Quarantined(number, origin, f"byte {content.index(0)}", "binary")
    if content.startswith(_LARGE_FILE_POINTER):
        return Quarantined(number, origin, "whole file", "large_file_pointer")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Quarantined(number, origin, f"byte {error.start}", "invalid_encoding")
    own = licences.recognise_header(text)
    licence = licence if own == licences.UNKNOWN else own
    reason = licences.refusal(licence, source.refused_licences)
    if reason:
        return Quarantined(number, origin, f"whole file, {licence}", reason)
    return Document(
        id=f"{source.name}/{origin}",
        source=number,
        kind="prose" if PurePosixPath(path.lower()).suffix in DOCUMENTATION else "code",
        origin=origin,
        licence=licence,
        revision=tree.revision,
        text=text,
        group=tree.group,
    )


def in_parts(files: Iterable[tuple[T, int]], limit: int) -> Iterator[list[tuple[T, int]]]:
    """Files with their sizes in lists of at most `limit` bytes, or of one file; at least one list."""
    part: list[tuple[T, int]] = []
    total = 0
    for file, size in files:
        if part and total + size > limit:
            yield part
            part, total = [], 0
        part.append((file, size))
        total += size
    yield part
