"""Clusters of duplicates: how large they are, and a few of them with kept and removed text side by side."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from json import JSONDecoder
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.documents import read_rows, stable_hash
from data_pipeline.report.survey import masked

LARGEST = 3  # clusters that are shown for their size
SHOWN = 10  # clusters in all; the others are those nearest to the threshold
_MOST_WORDS = 1500  # of a text, that are compared
_AROUND = 12  # words of equal text that are shown on either side of a difference
_ID_START = '{"id": '


@dataclass(frozen=True)
class Segment:
    """A run of words of one text. `kind` is "same", "differs", or "gap" for equal words that are left out."""

    kind: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A document that was removed, and the one that was kept for it."""

    cluster: str
    size: int  # documents in the cluster, the kept ones included
    kept: str
    removed: str
    similarity: float
    reason: str  # such as "near_duplicate"
    segments: tuple[list[Segment], list[Segment]]  # of the kept text, and of the removed one


@dataclass(frozen=True)
class Duplicates:
    """`sizes` tells how many clusters have each number of documents."""

    sizes: dict[int, int]
    pairs: list[Pair]


def find_clusters(stages: Path) -> Duplicates:
    """Sizes of all clusters and the most instructive pairs, from what the stages left in `stages`.

    Shown are the largest clusters, then those nearest to the threshold, each by its least similar pair: there the
    question whether the two are duplicates is hardest. 32 bytes a removed document are in memory.
    """
    files = sorted(stages.glob("*_duplicates/all.duplicates.jsonl"))
    if not files:
        return Duplicates({}, [])
    clusters, kept, ranks, similarities = array("Q"), array("Q"), array("Q"), array("d")
    for row in read_rows(files[0]):
        clusters.append(stable_hash(row["cluster"]))
        kept.append(stable_hash(row["cluster"], row["kept"]))
        ranks.append(stable_hash("pair", row["removed"]))
        similarities.append(row["similarity"])
    labels, owner = np.unique(np.array(clusters, np.uint64), return_inverse=True)
    # Kept documents belong to the cluster too; most clusters have one.
    first = np.unique(np.array(kept, np.uint64), return_index=True)[1]
    sizes = np.bincount(owner, minlength=len(labels)) + np.bincount(owner[first], minlength=len(labels))
    chosen = choose(owner, sizes, np.array(similarities), np.array(ranks, np.uint64))
    rows = _rows_at(files[0], chosen)
    documents = find_documents(stages, {row[side] for row in rows for side in ("kept", "removed")})
    found = []
    for number, row in zip(chosen, rows, strict=True):
        left, right = documents.get(row["kept"]), documents.get(row["removed"])
        if left and right:  # texts of stages may have been deleted to save space
            segments = compare(masked(left["text"]), masked(right["text"]))
            found.append(Pair(**row, size=int(sizes[owner[number]]), reason=right["reason"], segments=segments))
    values, counts = np.unique(sizes, return_counts=True)
    return Duplicates(dict(zip(values.tolist(), counts.tolist(), strict=True)), found)


def choose(owner: np.ndarray, sizes: np.ndarray, similarities: np.ndarray, ranks: np.ndarray) -> list[int]:
    """Numbers of the pairs to show, one a cluster: the largest clusters first, then the least similar pairs.

    Args:
        owner: cluster of every pair, (pairs,) int64.
        sizes: documents in every cluster, (clusters,) int64.
        similarities: of every pair, (pairs,) float64.
        ranks: decide between equals, (pairs,) uint64.
    """
    order = np.lexsort((ranks, similarities))
    # Of every cluster its first pair in this order; `unique` gives first occurrences.
    best = order[np.sort(np.unique(owner[order], return_index=True)[1])]
    crowded = best[sizes[owner[best]] > 2]
    largest = crowded[np.argsort(-sizes[owner[crowded]], kind="stable")][:LARGEST].tolist()
    return [*largest, *(number for number in best.tolist() if number not in largest)][:SHOWN]


def find_documents(stages: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Some of the documents among which duplicates were found, by id. Of the others only the id is parsed."""
    decoder, found = JSONDecoder(), dict[str, dict[str, Any]]()
    paths = sorted(stages.glob("*_deduplicate/*.jsonl")) + sorted(stages.glob("*_deduplicate/dropped/*.jsonl"))
    for path in paths:
        with open(path, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                if len(found) == len(ids):
                    return found
                if decoder.raw_decode(line, len(_ID_START))[0] in ids:
                    row = decoder.decode(line)
                    found[row["id"]] = row
    return found


def compare(kept: str, removed: str) -> tuple[list[Segment], list[Segment]]:
    """Both texts as segments; words that only one of them has differ, and long runs of equal words are shortened."""
    left, right = _words(kept), _words(removed)
    matcher = SequenceMatcher(None, [word.strip() for word in left], [word.strip() for word in right], autojunk=False)
    segments: tuple[list[Segment], list[Segment]] = ([], [])
    for kind, left_start, left_end, right_start, right_end in matcher.get_opcodes():
        segments[0].extend(_segments(kind, left[left_start:left_end]))
        segments[1].extend(_segments(kind, right[right_start:right_end]))
    for side, text in enumerate((kept, removed)):
        if len(text.split()) > _MOST_WORDS:
            segments[side].append(Segment("gap", f"… beyond {_MOST_WORDS:,} words nothing is compared"))
    return segments


def _segments(kind: str, words: list[str]) -> list[Segment]:
    """A run of words of one text that is equal in both, or not."""
    text = "".join(words)
    if kind != "equal":
        parts = re.split(r"((?<!\s)(?:\s*\n\s*|\s+\Z))", text)  # what is marked ends with its line
        return [Segment("differs" if part.strip() else "same", part) for part in parts if part]
    if len(words) <= 3 * _AROUND:
        return [Segment("same", text)]
    first, last = "".join(words[:_AROUND]), "".join(words[-_AROUND:])
    return [
        Segment("same", first),
        Segment("gap", f"… {len(words) - 2 * _AROUND:,} equal words …"),
        Segment("same", last),
    ]


def _words(text: str) -> list[str]:
    """The first words of a text, each with the whitespace that follows it."""
    return [match[0] for match in islice(re.finditer(r"\S+\s*", text), _MOST_WORDS)]


def _rows_at(path: Path, numbers: list[int]) -> list[dict[str, Any]]:
    """Some lines of a JSON-lines file, in the order of `numbers`."""
    wanted = set(numbers)
    found = {number: row for number, row in enumerate(read_rows(path)) if number in wanted}
    return [found[number] for number in numbers]
