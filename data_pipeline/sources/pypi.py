"""Source code and documentation in the wheels of Python packages, each at an exact version.

A wheel is opened as an archive and read as data. It is never unpacked or installed, and none of its code runs. Packages
that exist only as source distributions cannot be read: to learn their metadata pip would run their build scripts.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from common.errors import UserError
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined
from data_pipeline.sources import licences
from data_pipeline.sources.config import PyPIPackages
from data_pipeline.sources.downloading import download_wheel, noted_sha256
from data_pipeline.sources.python_code import normalised
from data_pipeline.sources.source_tree import Tree, holds_licence, in_parts, kind_of, record

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
# Text is compressed to a fifth or a tenth; an archive made to fill a disk, or whose members overlap, far more.
_MOST_EXPANSION = 200
_SMALL = 10_000_000  # bytes
_UTF8_NAME, _ENCRYPTED = 0x800, 0x1  # flags of a member
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)


class Member(NamedTuple):
    """A file of a wheel that is read; `reason` says why it is set aside instead."""

    path: str
    size: int  # bytes
    reason: str = ""


def plan(source: PyPIPackages, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """Download what is not there yet, and list the chosen files in parts of about `shard_bytes`.

    Raises:
        UserError: a requirement names no exact version, a wheel cannot be downloaded or has changed, or there is no
            file to read.
    """
    parts: list[tuple[tuple[Any, ...], str]] = []
    for name, version in dict.fromkeys(parse_requirement(requirement) for requirement in source.requirements):
        path, sha256 = fetch(name, version, downloads / "packages")
        tree = Tree(group=name, revision=f"{name}=={version}", origin=path.name)
        licence, members = _contents(path, source, config)
        for number, part in enumerate(in_parts(((member, member.size) for member in members), config.shard_bytes)):
            chosen = [member for member, _ in part]
            if chosen:
                parts.append(((tree, str(path), licence, *chosen), f"{tree.revision} {sha256} {number}"))
    if not parts:
        kinds = f" with the suffixes {', '.join(source.suffixes)}" if source.suffixes else ""
        raise UserError(f"source {source.name!r}: its packages have no code or documentation files{kinds}")
    return parts


def read(
    source: PyPIPackages, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """One document a file; whatever is wrong with one, the others are still read."""
    tree, path, licence, *members = items
    sound = [member for member in members if not member.reason]
    for member in members:
        if member.reason:
            yield Quarantined(number, f"{tree.origin}/{member.path}".rstrip("/"), "whole file", member.reason)
    if not sound:  # and perhaps the archive cannot be opened
        return
    with zipfile.ZipFile(path) as archive:
        for member in sound:
            try:
                content = archive.read(member.path)
            except _DAMAGE:
                yield Quarantined(number, f"{tree.origin}/{member.path}", "whole file", "damaged_archive")
            else:
                yield record(source, number, tree, member.path, content, licence)


def parse_requirement(requirement: str) -> tuple[str, str]:
    """Name, in its one spelling, and version.

    Raises:
        UserError: it is not of the form `name==version`.
    """
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise UserError(f"{requirement!r} does not name a package and its exact version; write name==1.2.3")
    return normalised(match[1]), match[2]


def fetch(name: str, version: str, directory: Path) -> tuple[Path, str]:
    """The wheel in `directory`, downloaded when there is none of this version, and its sha256.

    Raises:
        UserError: it could not be downloaded, or is not what it was.
    """
    path = next((wheel for wheel in sorted(directory.glob("*.whl")) if _describes(wheel) == (name, version)), None)
    if path is None:
        instead = "for a package without wheels, take its repository with a GitRepositories source"
        path = download_wheel(f"{name}=={version}", directory, otherwise=instead)
    if _describes(path) != (name, version):
        raise UserError(f"the wheel of {name}=={version} is {path.name}; write the version as it stands there")
    return path, noted_sha256(path)


def _describes(wheel: Path) -> tuple[str, str]:
    """Name and version, which are the first two words of a wheel's file name (PEP 427)."""
    name, version = [*wheel.name.split("-"), ""][:2]
    return normalised(name), version


def _contents(path: Path, source: PyPIPackages, config: CollectionConfig) -> tuple[str, list[Member]]:
    """The licence of a wheel, and its members to read or to set aside."""
    try:
        with zipfile.ZipFile(path) as archive:
            licence = _licence(archive, config.max_record_bytes)
            members = [
                Member(info.filename, 0, reason)
                if (reason := _refused(archive, info, config.max_record_bytes))
                else Member(info.filename, info.file_size)
                for info in archive.infolist()
                if kind_of(info.filename, source.suffixes)
            ]
    except _DAMAGE:
        return licences.UNKNOWN, [Member("", 0, "damaged_archive")]
    # No member gives more than the size that the archive declares for it.
    if sum(member.size for member in members) > max(_SMALL, _MOST_EXPANSION * path.stat().st_size):
        return licences.UNKNOWN, [Member("", 0, "expands_too_much")]
    return licence, members


def _refused(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> str:
    """Why a member is set aside unread; empty for one that is read."""
    path = PurePosixPath(info.filename)
    # Nothing is unpacked, but a name stands in the id of a document and tells where it is from.
    if str(path) != info.filename or path.is_absolute() or ".." in path.parts or re.search(r"[\\:]", info.filename):
        return "unsafe_name"
    if not info.filename.isprintable() or not (info.filename.isascii() or info.flag_bits & _UTF8_NAME):
        return "unsafe_name"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "symbolic_link"
    if archive.getinfo(info.filename) is not info:
        return "repeated_name"
    # One small piece of bzip2 may become gigabytes before its size is known.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
        return "not_a_wheel"
    return "too_large" if info.file_size > limit else ""


def _licence(archive: zipfile.ZipFile, limit: int) -> str:
    """What the metadata declare, or else what the licence files beside them say."""
    texts: dict[str, str] = {}
    for info in archive.infolist():
        directory, _, name = info.filename.partition("/")
        wanted = directory.endswith(".dist-info") and (name == "METADATA" or holds_licence(name))
        if wanted and not _refused(archive, info, limit):
            texts[info.filename] = archive.read(info).decode("utf-8", "replace")
    fields = "".join(text for name, text in texts.items() if name.endswith(".dist-info/METADATA"))
    declared = licences.declared(HeaderParser().parsestr(fields))
    return licences.recognise_all(texts.values()) if declared == licences.UNKNOWN else declared
