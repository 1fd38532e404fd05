"""Documentation from Debian packages: manuals, handbooks and help in HTML, Mallard, man macros and plain text.

apt-get downloads the packages, which needs no rights. They are read as data (`deb.py`): never installed, and nothing of
them is unpacked or run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.errors import UserError
from common.files import TEMPORARY_SUFFIX, sync_directory, sync_file
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import PART_MARK, Document, Quarantined, Skipped
from data_pipeline.sources import deb, manuals
from data_pipeline.sources.config import DebianPackages
from data_pipeline.sources.downloading import noted_sha256
from data_pipeline.sources.opening import ArchiveError, decompressed, require, shown
from data_pipeline.sources.source_tree import in_parts

_REQUEST = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?:=([0-9][A-Za-z0-9.+:~-]*))?")  # Debian policy 5.6.1 and 5.6.12
_LONGEST_DOWNLOAD = 1800  # seconds
_TEXT_A_BYTE = 2  # bytes of text in a byte of a package, on the average

_SOURCE = re.compile(r"^Source: *([a-z0-9][a-z0-9+.-]+)", re.MULTILINE)
_LICENCE = re.compile(r"^License:(.*)", re.MULTILINE)
_LONGEST_LICENCE = 200  # characters
_UNKNOWN_LICENCE = "see copyright file"
_PIECE_BYTES = 262_144  # of a long plain text: what one byte that is not UTF-8 costs
_MANY_PAGES = 10  # in HTML; a package that has them holds the same, or their sources, once more as plain text
_SMALL_FILE = 1_000_000  # bytes that are read of a control or copyright file


@dataclass(frozen=True)
class Package:
    """A package that lies in the downloads."""

    path: str
    name: str
    version: str


def plan(source: DebianPackages, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """The packages in parts of about `shard_bytes` of text, downloaded with apt-get where they are not there yet.

    Raises:
        UserError: a package is unknown, damaged or cannot be downloaded, or there is no apt-get to ask for it.
    """
    require("lxml", "documentation in HTML")
    packages = find(source, downloads / "debian")
    if not packages:
        raise UserError(f"source {source.name!r}: `packages` is empty")
    sizes = ((package, Path(package.path).stat().st_size * _TEXT_A_BYTE) for package in packages)
    parts = [tuple(package for package, _ in part) for part in in_parts(sizes, config.shard_bytes)]
    return [
        (part, repr([(package.name, package.version, noted_sha256(Path(package.path))) for package in part]))
        for part in parts
    ]


def read(
    source: DebianPackages, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined | Skipped]:
    """The documents of some packages. What is wrong with one file, or with the end of a package, costs only that."""
    for package in items:
        reader = _Reader(source, number, package, config)
        try:
            yield from reader.read()
        except ArchiveError as error:
            yield reader.set_aside("", f"after {reader.position or 'the beginning'}", error.reason)
        except OSError as error:
            yield reader.set_aside("", error.strerror or str(error), "unreadable_file")


def find(source: DebianPackages, directory: Path) -> list[Package]:
    """The packages of the config in its order, downloaded where they are not there yet."""
    wanted = {request: _parsed(request, source) for request in source.packages}
    twice = [name for name, count in Counter(name for name, _ in wanted.values()).items() if count > 1]
    if twice:
        raise UserError(f"source {source.name!r}: {', '.join(twice)} is named more than once in `packages`")
    found: dict[str, Package] = {}
    for request, (name, version) in wanted.items():
        there = sorted(directory.glob(f"{name}_{version.replace(':', '%3a')}_*.deb")) if version else []
        if there:
            found[request] = Package(str(there[0]), name, version)
    files = _files_of([request for request in wanted if request not in found])
    for request, (name, version) in wanted.items():
        if request in found:
            continue
        if name not in files:
            raise UserError(f"source {source.name!r}: apt-get knows no package {request!r} that could be downloaded")
        path = directory / files[name]
        taken = path.name.split("_")[1].replace("%3a", ":")
        if not version:
            print(f"        {source.name}: {name} is {name}={taken}", flush=True)
        if not path.is_file():
            _download(f"{name}={taken}", path)
        found[request] = Package(str(path), name, taken)
    return [found[request] for request in wanted]


def _parsed(request: str, source: DebianPackages) -> tuple[str, str]:
    """Name and version, which may be empty."""
    match = _REQUEST.fullmatch(request)
    if match is None:
        raise UserError(f"source {source.name!r}: {request!r} is not a package's name, nor name=version")
    return match[1], match[2] or ""


def _files_of(requests: list[str]) -> dict[str, str]:
    """The files that apt-get would download, name_version_architecture.deb, by the names of the packages."""
    if not requests:
        return {}
    with tempfile.TemporaryDirectory() as empty:  # where a package lies, apt-get says nothing of it
        output = _apt_get(["download", "--print-uris", *requests], Path(empty))
    lines = [line.split() for line in output.splitlines()]  # 'address' file bytes hash
    return {words[1].split("_")[0]: words[1] for words in lines if len(words) == 4}


def _download(request: str, path: Path) -> None:
    """Download into a directory beside `path`, then move: what lies there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=TEMPORARY_SUFFIX) as staging:
        _apt_get(["download", request], Path(staging))  # which verifies what it has downloaded
        file = Path(staging, path.name)
        if not file.is_file():
            raise UserError(f"apt-get downloaded something else than {path.name} for {request}")
        sync_file(file)
        os.replace(file, path)
    sync_directory(path.parent)


def _apt_get(arguments: list[str], directory: Path) -> str:
    if shutil.which("apt-get") is None:
        raise UserError(
            "Debian packages are downloaded with apt-get, which is not on this machine. Use another source; or run "
            "this on Debian or Ubuntu, or in a container of theirs, and copy the directory downloads/debian here: "
            "packages that are named with their version are then read without apt-get"
        )
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *arguments]
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=_LONGEST_DOWNLOAD,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"no answer within {_LONGEST_DOWNLOAD} seconds from: {' '.join(command)}") from error
    if result.returncode == 0:
        return result.stdout
    reasons = [line[3:] for line in result.stderr.splitlines() if line.startswith("E: ")]
    raise UserError(
        f"apt-get cannot find or download a package ({'; '.join(reasons) or 'without a reason'}). Run `apt-get "
        "update`, see with `apt-cache policy NAME` which versions of it there are, and correct `packages`"
    )


class _Reader:
    """Reads one package in bounded memory."""

    def __init__(self, source: DebianPackages, number: int, package: Package, config: CollectionConfig) -> None:
        self.source, self.number, self.package, self.config = source, number, package, config
        self.position = ""  # of what was read last
        self.group, self.licence = package.name, _UNKNOWN_LICENCE
        self.pages = 0  # in HTML

    def read(self) -> Iterator[Document | Quarantined | Skipped]:
        with contextlib.suppress(ArchiveError):  # the same error comes again below
            self._look_through()
        for name, file in self._files("data"):
            self.position = name
            if not self._is_wanted(name):
                if manuals.is_text(name):
                    yield Skipped("other_language")
                continue
            if manuals.is_plain(name) and self.pages >= _MANY_PAGES:
                continue
            try:
                yield from self._documents(name, decompressed(file))
            except ArchiveError as error:
                yield self.set_aside(name, "inside", error.reason)

    def _look_through(self) -> None:
        """Find what has to be known before the first document: the source package, the licences, the pages."""
        for name, file in self._files("control"):
            if name == "control" and (match := _SOURCE.search(_beginning(file))):
                self.group = match[1]
        for name, file in self._files("data"):
            if name == f"usr/share/doc/{self.package.name}/copyright":
                named = map(str.strip, _LICENCE.findall(_beginning(file)))
                names = ", ".join(dict.fromkeys(filter(None, named)))
                self.licence = textwrap.shorten(names, _LONGEST_LICENCE, placeholder=" …") or _UNKNOWN_LICENCE
            self.pages += manuals.is_page(name) and self._is_wanted(name)

    def _files(self, archive: str) -> Iterator[tuple[str, IO[bytes]]]:
        for member, file in deb.members(Path(self.package.path), archive):
            yield shown(PurePosixPath("/", member.name).relative_to("/").as_posix()), file

    def _is_wanted(self, name: str) -> bool:
        return manuals.is_text(name, self.source.languages)

    def _documents(self, name: str, file: IO[bytes]) -> Iterator[Document | Quarantined]:
        limit = self.config.max_record_bytes
        piece_bytes = min(_PIECE_BYTES, limit // 2)
        for piece in itertools.count(1):
            if manuals.is_plain(name):
                content = file.read(piece_bytes) + file.readline(piece_bytes)
            elif len(content := file.read(limit + 1)) > limit:
                yield self.set_aside(name, "whole file", "too_large")
                return
            if not content and piece > 1:
                return
            yield self._document(name, content, piece)

    def _document(self, name: str, content: bytes, piece: int) -> Document | Quarantined:
        try:
            text = manuals.text_of(name, content)
        except UnicodeDecodeError as error:
            return self.set_aside(name, f"byte {error.start}", "invalid_utf8")
        except ValueError:
            return self.set_aside(name, "whole file", "invalid_format")
        origin = f"{self.package.name}/{name}"
        return Document(
            id=f"{self.source.name}/{origin}" + (f"{PART_MARK}piece{piece}" if piece > 1 else ""),
            source=self.number,
            kind="code" if manuals.is_code(name) else "prose",
            origin=origin,
            licence=self.licence,
            revision=f"{self.package.name}={self.package.version}",
            text=text,
            group=self.group,
        )

    def set_aside(self, name: str, position: str, reason: str) -> Quarantined:
        return Quarantined(self.number, f"{self.package.name}/{name}", position, reason)


def _beginning(file: IO[bytes]) -> str:
    return file.read(_SMALL_FILE).decode(errors="replace")
