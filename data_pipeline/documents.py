"""Documents, and the JSON-lines files in which they pass from stage to stage."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from common.files import atomic_write

_BATCH_CHARACTERS = 1_000_000
PART_MARK = "#part"  # stands in the id of a piece between the id of the whole text and the place of the piece


@dataclass
class Document:
    """One text with its provenance. `kind` is "prose", "wiki" (prose with lost templates) or "code"."""

    id: str  # unique in the dataset, and the same in every run
    source: int  # position in the config's `sources`
    kind: str
    origin: str  # URL or path
    licence: str
    revision: str
    text: str
    group: str = ""  # what has to stay on one side of the split, such as a repository; the whole text where empty
    split: str = ""  # "train" or "val" once the split stage has decided
    language: str = ""  # ISO 639 code of prose once the filter stage has passed it; code has none

    @property
    def byte_count(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @property
    def whole(self) -> str:
        """Id of the text that this is a piece of; its own where it was not cut."""
        return self.id.partition(PART_MARK)[0]


@dataclass
class Quarantined:
    """A record that could not be read; the rest of its file is used."""

    source: int
    file: str
    position: str  # such as "line 12" or "byte 4096"
    reason: str


@dataclass
class Skipped:
    """Records that were read and are no text to learn from, such as redirects: counted by their reason, not listed."""

    reason: str
    count: int = 1


@dataclass
class Counts:
    """What one task did. `documents_in == documents_out + sum(dropped.values())`, or the run stops."""

    documents_in: int = 0
    documents_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    details: dict[str, Any] = field(default_factory=dict)  # small numbers of the stage's own, ready for JSON
    bytes_in: int = 0  # of text in UTF-8, counted by the stages that drop documents
    bytes_out: int = 0


def read_documents(path: Path) -> Iterator[Document]:
    for row in read_rows(path):
        row.pop("reason", None)
        yield Document(**row)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about a million characters: arrays and calls work on many at once, in bounded memory."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file. Only a newline ends a line: text may hold U+2028 and its like."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def write_row(file: IO[str], row: Any, **extra: Any) -> None:
    """Append a dataclass or dictionary as one JSON line."""
    values = row if isinstance(row, dict) else vars(row)
    file.write(json.dumps({**values, **extra}, ensure_ascii=False) + "\n")


def map_documents(
    source: Path, kept_path: Path, dropped_path: Path, decide: Callable[[Document], str | None]
) -> Counts:
    """Copy the documents of `source`: `decide` may edit one, and returns why it is dropped, or None to keep it.

    Dropped documents stay readable, with their reason, in `dropped_path`.
    """
    counts = Counts()
    with atomic_write(kept_path) as kept, atomic_write(dropped_path) as dropped:
        for document in read_documents(source):
            counts.documents_in += 1
            counts.bytes_in += document.byte_count
            reason = decide(document)
            if reason is None:
                counts.documents_out += 1
                counts.bytes_out += document.byte_count
                write_row(kept, document)
            else:
                counts.dropped[reason] += 1
                write_row(dropped, document, reason=reason)
    return counts


def stable_hash(*parts: object) -> int:
    """A 64-bit hash that is the same in every process and on every machine, unlike the built-in one."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stable_fraction(*parts: object) -> float:
    """`stable_hash` as a number in [0, 1), for sampling that does not depend on order."""
    return stable_hash(*parts) / 2**64
