"""What deduplication took out beside duplicates: repeated paragraphs, and documents that hold evaluation texts."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.dedup.decontamination import COMMON, CONTAMINATED
from data_pipeline.documents import read_rows, stable_hash
from data_pipeline.report.survey import excerpt, masked

SHOWN = 10  # of each kind


@dataclass(frozen=True)
class Contamination:
    """Rows with the words that were found, and the file and place of the evaluation text."""

    documents: list[dict[str, Any]]  # some that were dropped, drawn by a hash of their ids, each with its `document`
    common: list[dict[str, Any]]  # n-grams that were in too many documents to count, the most frequent first


def repeated_paragraphs(stages: Path) -> list[dict[str, Any]]:
    """The removed paragraphs that took most bytes: `example`, `document`, and over all shards `count` and `bytes`.

    Both numbers are at least so large: a shard lists only the paragraphs that took most bytes in it.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(stages.glob("*_deduplicate/removed/*.jsonl")):
        for row in read_rows(path):
            known = found.setdefault(row["key"], {**row, "count": 0, "bytes": 0})
            known["count"] += row["count"]
            known["bytes"] += row["bytes"]
    most = heapq.nsmallest(SHOWN, found.values(), key=lambda row: (-row["bytes"], row["key"]))
    return [{**row, "example": excerpt(row["example"])} for row in most]


def contamination(stages: Path) -> Contamination:
    """Examples of what decontamination found, from what the stage that finds duplicates left."""
    directory = next(iter(stages.glob("[0-9][0-9]_duplicates")), stages)
    documents, common = (
        read_rows(directory / name) if (directory / name).is_file() else iter(()) for name in (CONTAMINATED, COMMON)
    )
    return Contamination(
        _masked(heapq.nsmallest(SHOWN, documents, key=lambda row: stable_hash("example", row["document"]))),
        _masked(heapq.nsmallest(SHOWN, common, key=lambda row: (-row["documents"], row["words"]))),
    )


def _masked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "words": masked(row["words"])} for row in rows]
