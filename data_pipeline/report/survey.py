"""What the manifest does not hold: lengths, languages and revisions, and examples of what was dropped.

Every file is read once, as a stream. What is remembered of it does not grow with it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipeline.documents import read_rows, stable_hash
from data_pipeline.masking import mask_personal, mask_secrets

Part = TypeVar("Part")

EXAMPLES = 3  # of every reason
EXAMPLE_CHARACTERS = 300
MOST_REVISIONS = 8  # of one source, that are named
# Bins of document lengths: four an octave, from one byte to more than any document has.
LENGTH_EDGES = 2.0 ** (np.arange(4 * 32 + 1) / 4)


@dataclass(order=True)
class Example:
    """A dropped document or record. The order, by a hash of its id, decides which ones are shown."""

    rank: int
    id: str
    source: int | str
    text: str


@dataclass
class Dropped:
    """What one or several files of dropped documents hold."""

    examples: dict[str, list[Example]] = field(default_factory=dict)  # by reason, those of smallest rank
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(len(LENGTH_EDGES) - 1, np.int64))
    languages: Counter[str] = field(default_factory=Counter)  # documents

    def add_example(self, reason: str, key: str, source: int | str, text: str) -> None:
        """Remember an example if its rank is among the smallest."""
        known = self.examples.setdefault(reason, [])
        rank = stable_hash("example", key)
        if len(known) < EXAMPLES or rank < known[-1].rank:
            known.append(Example(rank, key, source, excerpt(text)))
            known.sort()
            del known[EXAMPLES:]

    def merge(self, other: Dropped) -> None:
        """Add what another file holds; the order of merging does not matter."""
        for reason, examples in other.examples.items():
            self.examples[reason] = heapq.nsmallest(EXAMPLES, [*self.examples.get(reason, []), *examples])
        self.lengths += other.lengths
        self.languages += other.languages


@dataclass
class Published:
    """What the published documents' index and provenance hold."""

    has_code: bool = False
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(len(LENGTH_EDGES) - 1, np.int64))
    languages: dict[str, list[int]] = field(default_factory=dict)  # documents and bytes
    revisions: dict[str, set[str]] = field(default_factory=dict)  # by source; one more than MOST_REVISIONS means many

    def merge(self, other: Published) -> None:
        """Add what another shard holds; the order of merging does not matter."""
        self.has_code |= other.has_code
        self.lengths += other.lengths
        for language, (documents, size) in other.languages.items():
            self.add_language(language, documents, size)
        for source, revisions in other.revisions.items():
            for revision in sorted(revisions):
                self.add_revision(source, revision)

    def add_language(self, language: str, documents: int, size: int) -> None:
        entry = self.languages.setdefault(language, [0, 0])
        entry[0] += documents
        entry[1] += size

    def add_revision(self, source: str, revision: str) -> None:
        known = self.revisions.setdefault(source, set())
        if revision and len(known) <= MOST_REVISIONS:
            known.add(revision)


def dropped_documents(directory: Path, executor: Executor | None) -> Dropped:
    """What lies in the `dropped` folder of one stage; nothing where there is none."""
    total = Dropped()
    for part in _over(executor, survey_dropped, sorted((directory / "dropped").glob("*.jsonl"))):
        total.merge(part)
    return total


def published_documents(out: Path, shards: Iterable[str], executor: Executor | None) -> Published:
    """What index and provenance of the token shards named `shards` hold."""
    total = Published()
    for part in _over(executor, survey_shard, [out / shard for shard in shards]):
        total.merge(part)
    return total


def quarantined(path: Path) -> Dropped:
    """Examples of what could not be read, by reason, from `quarantine.jsonl`; nothing where there is none."""
    found = Dropped()
    for row in read_rows(path) if path.is_file() else ():
        found.add_example(row["reason"], f"{row['file']}, {row['position']}", row["source"], "")
    return found


def survey_dropped(path: Path) -> Dropped:
    """Examples, lengths and languages of one file of dropped documents; quarantined records have only a place."""
    found, sizes = Dropped(), []
    for row in read_rows(path):
        if "text" not in row:
            continue
        found.add_example(row["reason"], row["id"], row["source"], row["text"])
        found.languages[row.get("language", "")] += 1
        sizes.append(len(row["text"].encode()))
    found.lengths = histogram(np.array(sizes))
    return found


def survey_shard(path: Path) -> Published:
    """Lengths, languages and revisions of the documents of one published shard, given its `.bin` file."""
    found = Published()
    sizes = np.load(path.with_suffix(".index.npy"), mmap_mode="r")["bytes"]
    found.lengths = histogram(sizes)
    records = path.with_suffix(".documents.jsonl")
    for row, size in zip(read_rows(records), sizes.tolist(), strict=True) if records.is_file() else ():
        found.add_language(row.get("language", ""), 1, size)
        found.add_revision(row["source"], row["revision"])
        found.has_code |= row.get("kind") == "code"
    return found


def histogram(sizes: np.ndarray) -> np.ndarray:
    """How many of `sizes`, in bytes, fall between each two of `LENGTH_EDGES`."""
    return np.histogram(np.maximum(sizes, 1), LENGTH_EDGES)[0]


def masked(text: str) -> str:
    """A text without personal data and secrets: a report is passed on, and what was dropped may still hold them."""
    counts: Counter[str] = Counter()
    return mask_secrets(mask_personal(text, counts), counts)


def excerpt(text: str) -> str:
    """The beginning of a text, masked before it is cut."""
    shown = masked(text)
    return shown if len(shown) <= EXAMPLE_CHARACTERS else shown[:EXAMPLE_CHARACTERS].rstrip() + " …"


def _over(executor: Executor | None, function: Callable[[Path], Part], paths: list[Path]) -> Iterable[Part]:
    """`function` of every path, in order; in other processes where there is an executor."""
    return map(function, paths) if executor is None else executor.map(function, paths)
