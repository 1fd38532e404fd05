"""Python source files that are on every machine: the standard library and installed distributions."""

from __future__ import annotations

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
from data_pipeline.sources.config import PythonCode

OWN_DISTRIBUTION = "mini-gpt"
# Tests repeat themselves and hold broken code on purpose; vendored copies have licences of their own.
_TESTS = ("test", "tests", "idle_test", "lib2to3")
_VENDORED = ("_vendor", "_vendored", "vendor", "vendored", "third_party", "thirdparty", "externals", "extern")
_SKIPPED = frozenset((*_TESTS, *_VENDORED, "site-packages", "dist-packages", "__pycache__"))


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
        if not licence:
            refused.append(RefusedPackage(name, "unknown_licence"))
        elif any(word.lower() in licence.lower() for word in source.refused_licences):
            refused.append(RefusedPackage(name, "refused_licence"))
        else:
            files += _distribution_files(name, licence, distribution)
    chosen = choose(files, source)
    if not chosen:
        raise UserError(f"source {source.name!r}: no Python files within its limits; raise max_bytes")
    parts: list[tuple[tuple[Any, ...], str]] = []
    for group in _groups(chosen, config.shard_bytes):
        state = [(item.relative, item.version, size) for item, size in group]
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
            id=f"{item.package}/{item.relative}",
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
    """What the metadata declare: an SPDX expression, a short licence field, or classifiers; empty when nothing."""
    fields = distribution.metadata
    expression = _field(distribution, "License-Expression")
    if expression:
        return expression
    names = [value.rpartition(" :: ")[2] for value in fields.get_all("Classifier") or [] if "License ::" in value]
    if names:
        return " OR ".join(names)
    words = _field(distribution, "License")
    # Some put the whole licence text into the field: its first line is the title.
    first = words.splitlines()[0].strip() if words else ""
    return "" if first.upper() in {"", "UNKNOWN"} else first[:80]


def _field(distribution: metadata.Distribution, name: str) -> str:
    values = distribution.metadata.get_all(name) or [""]
    return str(values[0]).strip()


def _standard_library() -> Iterator[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _SKIPPED.intersection(relative.parts):
            yield SourceFile(str(path), relative.as_posix(), "python", platform.python_version(), "PSF-2.0")


def _distributions(source: PythonCode) -> dict[str, metadata.Distribution]:
    installed: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        name = _normalised(distribution.metadata["Name"] or "")
        if name and name != OWN_DISTRIBUTION:
            installed.setdefault(name, distribution)
    if not source.packages:
        return dict(sorted(installed.items()))
    wanted = [_normalised(name) for name in source.packages]
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


def _groups(files: list[tuple[SourceFile, int]], limit: int) -> Iterator[list[tuple[SourceFile, int]]]:
    group: list[tuple[SourceFile, int]] = []
    total = 0
    for item, size in files:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append((item, size))
        total += size
    yield group


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
