"""Collecting: every source becomes documents in intermediate shards; what cannot be read is set aside."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.files import atomic_write
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import PART_MARK, Counts, Document, Quarantined, Skipped, write_row
from data_pipeline.sources import config as kinds
from data_pipeline.sources import (
    debian,
    git_repository,
    hub,
    pypi,
    python_code,
    text_files,
    warc,
    web_pages,
    wiki_dump,
    wikipedia,
)

# The module of each kind of source. `plan` finds its parts, each with a text that tells whether it has changed, and
# `read` gives the records of one part.
READERS: dict[type[kinds.Source], Any] = {
    kinds.PackagedWikipedia: wikipedia,
    kinds.PythonCode: python_code,
    kinds.HubDataset: hub,
    kinds.TextFiles: text_files,
    kinds.GitRepositories: git_repository,
    kinds.PyPIPackages: pypi,
    kinds.WikipediaDump: wiki_dump,
    kinds.WebPages: web_pages,
    kinds.WarcFiles: warc,
    kinds.DebianPackages: debian,
}


@dataclass(frozen=True)
class Part:
    """A piece of one source that one task reads. `state` tells whether what is there has changed since."""

    source: kinds.Source
    number: int  # position of the source in the config
    items: tuple[Any, ...]  # files, or whatever the source's reader takes
    state: str
    config: CollectionConfig


def plan(sources: Iterable[kinds.Source], config: CollectionConfig, downloads: Path) -> list[Part]:
    """Find what there is to read, downloading packages into `downloads`; the texts themselves stay unread.

    Raises:
        UserError: a source is missing, empty or out of reach.
    """
    return [
        Part(source, number, items, state, config)
        for number, source in enumerate(sources)
        for items, state in READERS[type(source)].plan(source, config, downloads)
    ]


def tasks_of(parts: Iterable[Part]) -> dict[str, Part]:
    """Each part under the name of its task. Names count within a source: one part more leaves other sources' alone."""
    counts: Counter[int] = Counter()
    named = {}
    for part in parts:
        named[f"{part.number:02d}_{counts[part.number]:05d}"] = part
        counts[part.number] += 1
    return named


def local_files(parts: Iterable[Part]) -> list[str]:
    """One file on this machine of every part that has any."""
    paths = ([getattr(item, "path", item) for item in part.items] for part in parts)
    found = ([str(path) for path in some if isinstance(path, str | Path) and os.path.exists(path)] for some in paths)
    return [some[0] for some in found if some]


def collect_part(task: str, directory: Path, part: Part) -> Counts:
    """Read one part into `<task>-000.jsonl`, `<task>-001.jsonl`, ... of about `shard_bytes` of text each."""
    counts = Counts()
    size = pieces = 0
    records = READERS[type(part.source)].read(part.source, part.number, part.items, part.config)
    with ExitStack() as shards, atomic_write(directory / "dropped" / f"{task}.jsonl") as quarantine:
        file: IO[str] | None = None
        for record in _checked(records, part):
            if not isinstance(record, Document):
                number = record.count if isinstance(record, Skipped) else 1
                counts.documents_in += number
                counts.dropped[record.reason] += number
                if isinstance(record, Quarantined):
                    write_row(quarantine, record)
                continue
            counts.documents_in += 1
            if file is None or size >= part.config.shard_bytes:
                shards.close()  # completes the shard before
                file = shards.enter_context(atomic_write(directory / f"{task}-{pieces:03d}.jsonl"))
                size, pieces = 0, pieces + 1
            write_row(file, record)
            counts.documents_out += 1
            size += record.byte_count
            counts.bytes_out += record.byte_count
    counts.bytes_in = counts.bytes_out  # how much text an unreadable record held is not known
    return counts


def cut_text(text: str, limit: int) -> list[str]:
    """`text` in pieces of about `limit` bytes, cut at blank lines where there are any, else at line ends."""
    if len(text) * 4 <= limit or len(text.encode()) <= limit:
        return [text]
    pieces: list[str] = []
    current: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        width = len(line.encode())
        at_gap = bool(current) and not current[-1].strip()
        if current and (size + width > limit or (at_gap and size > limit * 3 // 4)):
            pieces.append("".join(current))
            current, size = [], 0
        current.append(line)
        size += width
    return [*pieces, "".join(current)]


def _checked(
    records: Iterable[Document | Quarantined | Skipped], part: Part
) -> Iterator[Document | Quarantined | Skipped]:
    """The promises that later stages rely on: encodable text without NUL, not empty, and bounded in size."""
    for record in records:
        if not isinstance(record, Document):
            yield record
            continue
        reason = unreadable(record.text, part.config)
        if reason:
            yield Quarantined(part.number, record.origin, "whole document", reason)
        elif record.kind == "code":
            yield record
        else:
            yield from _cut(record, part.config)


def _cut(document: Document, config: CollectionConfig) -> Iterator[Document]:
    pieces = cut_text(document.text, config.max_document_bytes)
    for number, piece in enumerate(pieces):
        suffix = f"{PART_MARK}{number + 1}" if len(pieces) > 1 else ""
        fields = {**vars(document), "id": document.id + suffix, "text": piece}
        if piece.strip():
            yield Document(**fields)


def unreadable(text: str, config: CollectionConfig) -> str | None:
    """Why no later stage could work with the text, or None."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "nul_byte"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "lone_surrogate"
    return "too_large" if size > config.max_record_bytes else None
