"""Python source files that are on every machine: the standard library and installed distributions."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from common.errors import UserError
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, stable_hash
from data_pipeline.sources import licences
from data_pipeline.sources.config import PythonCode
from data_pipeline.sources.source_tree import VENDORED, holds_licence, in_parts

OWN_DISTRIBUTION = "mini-gpt"
# Tests repeat themselves and hold broken code on purpose; vendored copies have licences of their own.
_TESTS = ("test", "tests", "idle_test", "lib2to3")
_SKIPPED = frozenset((*_TESTS, *VENDORED, "site-packages", "dist-packages", "__pycache__"))


@dataclass(frozen=True)
class SourceFile:
    """A file that was chosen. `relative` names it on every machine."""

    path: str
    relative: str
    package: str
    version: str
    licence: str


@dataclass(frozen=True)
class RefusedPackage:
    """A distribution that was set aside whole."""

    package: str
    reason: str


def plan(source: PythonCode, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """The chosen files in parts of about `shard_bytes`.

    The choice depends on the interpreter's version and on the installed distributions, and on nothing else.

    Raises:
        UserError: a distribution of `packages` is not installed, or there is no file to read.
    """
    files = list(_standard_library())
    refused: list[RefusedPackage] = []
    for name, distribution in _distributions(source).items():
        licence = licence_of(distribution)
        reason = licences.refusal(licence, (*source.refused_licences, licences.UNKNOWN))
        if reason:
            refused.append(RefusedPackage(name, reason))
        else:
            files += _distribution_files(name, licence, distribution)
    chosen = choose(files, source)
    if not chosen:
        raise UserError(f"source {source.name!r}: no Python files within its limits; raise max_bytes")
    parts: list[tuple[tuple[Any, ...], str]] = []
    for group in in_parts(chosen, config.shard_bytes):
        state = [(item.relative, item.version, size, os.access(item.path, os.R_OK)) for item, size in group]
        parts.append((tuple(item for item, _ in group), repr(state)))
    first, identity = parts[0]
    parts[0] = ((*refused, *first), identity + repr(refused))
    return parts


def read(
    source: PythonCode, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """One document a file; a file that is not UTF-8 is set aside, for a part of a program is not a program."""
    for item in items:
        if isinstance(item, RefusedPackage):
            yield Quarantined(number, item.package, "whole distribution", item.reason)
            continue
        try:
            text = Path(item.path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            yield Quarantined(number, item.relative, f"byte {error.start}", "invalid_utf8")
            continue
        except OSError:
            yield Quarantined(number, item.relative, "whole file", "unreadable_file")
            continue
        yield Document(
            id=f"{source.name}/{item.package}/{item.relative}",
            source=number,
            kind="code",
            origin=item.relative,
            licence=item.licence,
            revision=f"{item.package}=={item.version}",
            text=text,
            group=item.package,
        )


def choose(files: list[SourceFile], source: PythonCode) -> list[tuple[SourceFile, int]]:
    """A sample of about `max_bytes`, each file with its size in bytes.

    In the order of a stable hash, so that the sample is drawn evenly over all packages; sizes are asked for in that
    order too, because most files are never reached.
    """
    chosen: list[tuple[SourceFile, int]] = []
    total = 0
    by_package: Counter[str] = Counter()
    share = source.max_package_share * source.max_bytes
    for item in sorted(files, key=lambda item: (stable_hash(item.package, item.relative), item.package, item.relative)):
        if by_package[item.package] > 0.99 * share:
            continue
        try:
            size = Path(item.path).stat().st_size
        except OSError:
            continue  # listed by its distribution, but removed since
        if not 0 < size <= source.max_file_bytes or by_package[item.package] + size > share:
            continue
        if total + size > source.max_bytes:
            break
        chosen.append((item, size))
        total += size
        by_package[item.package] += size
    return chosen


def licence_of(distribution: metadata.Distribution) -> str:
    """What the metadata declare, or else what the licence files beside the metadata say; "unknown" when nothing."""
    declared = licences.declared(distribution.metadata)
    if declared != licences.UNKNOWN:
        return declared
    listed = [file for file in distribution.files or [] if ".dist-info" in file.parts[0] and holds_licence(str(file))]
    paths = [Path(str(file.locate())) for file in listed]
    return licences.recognise_all(path.read_text("utf-8", "replace") for path in paths if path.is_file())


def _standard_library() -> Iterator[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _SKIPPED.intersection(relative.parts):
            yield SourceFile(str(path), relative.as_posix(), "python", platform.python_version(), "PSF-2.0")


def _distributions(source: PythonCode) -> dict[str, metadata.Distribution]:
    installed: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        name = normalised(distribution.metadata["Name"] or "")
        if name and name != OWN_DISTRIBUTION:
            installed.setdefault(name, distribution)
    if not source.packages:
        return dict(sorted(installed.items()))
    wanted = [normalised(name) for name in source.packages]
    missing = [name for name in wanted if name not in installed]
    if missing:
        raise UserError(
            f"source {source.name!r}: not installed: {', '.join(missing)}; install them with pip or take them "
            "out of `packages`"
        )
    return {name: installed[name] for name in sorted(set(wanted))}


def _distribution_files(name: str, licence: str, distribution: metadata.Distribution) -> Iterator[SourceFile]:
    version = distribution.version  # reads the metadata anew each time
    for file in distribution.files or []:
        if file.suffix == ".py" and ".." not in file.parts and not _SKIPPED.intersection(file.parts):
            yield SourceFile(str(file.locate()), file.as_posix(), name, version, licence)


def normalised(name: str) -> str:
    """The name of a distribution as all its spellings have it."""
    return name.lower().replace("_", "-").replace(".", "-")
