"""Duplicates: exact ones by key, near ones by MinHash banding, and a true Jaccard similarity before any removal.

Banding alone only proposes pairs. Removing on proposals, and then everything that is connected through them, is known
to empty whole sources that share a template; so each pair is verified on the shingle sets themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write, read_json, write_json
from data_pipeline import minhash
from data_pipeline.config import DeduplicationConfig
from data_pipeline.documents import Counts, Document, batches, map_documents, read_documents, write_row

# In one bucket every document meets the best one; those that differ from it meet the best of the rest, and so on.
# Templated text can fill a bucket with documents that all differ, and more rounds hardly find more there.
_BUCKET_ROUNDS = 3


@dataclass(frozen=True)
class SketchArgument:
    path: Path
    config: DeduplicationConfig


@dataclass(frozen=True)
class FindArgument:
    sketches: list[Path]  # the .json files of the sketch stage, in order
    config: DeduplicationConfig


@dataclass(frozen=True)
class RemoveArgument:
    path: Path
    removed: Path  # of the find stage


def sketch_shard(task: str, directory: Path, argument: SketchArgument) -> Counts:
    """Keys, shingle sets and band keys of one shard: what finding duplicates needs to know of it."""
    config, counts = argument.config, Counts()
    rows: list[tuple[str, int, int, str]] = []
    sets: list[np.ndarray] = []
    bands: list[np.ndarray] = []
    for batch in batches(read_documents(argument.path)):
        rows += [(item.id, item.source, item.byte_count, minhash.exact_key(item.text)) for item in batch]
        found = minhash.shingle_sets([item.text for item in batch], config.shingle_words)
        bands.append(minhash.band_keys(minhash.sketch(found, config.bands * config.rows), config.bands, config.rows))
        sets += found
    counts.documents_in = counts.documents_out = len(rows)
    _save(directory / f"{task}.bands.npy", np.concatenate(bands or [np.empty((0, config.bands), np.uint64)]))
    _save(directory / f"{task}.shingles.npy", np.concatenate(sets) if sets else np.empty(0, np.uint64))
    _save(directory / f"{task}.ends.npy", np.cumsum([len(items) for items in sets], dtype=np.int64))
    write_json(directory / f"{task}.json", rows)
    return counts


def find_duplicates(task: str, directory: Path, argument: FindArgument) -> Counts:
    """Decide over all shards which documents go; `removed.json` gives each the reason, `duplicates.jsonl` its twin."""
    corpus = Corpus(argument.sketches)
    counts = Counts(len(corpus), len(corpus))
    order = corpus.by_preference()
    removed: dict[str, str] = {}
    with atomic_write(directory / f"{task}.duplicates.jsonl") as file:
        unique: list[int] = []
        first_of: dict[str, int] = {}
        for document in order:
            kept = first_of.setdefault(corpus.keys[document], document)
            if kept == document:
                unique.append(document)
                continue
            removed[corpus.ids[document]] = "exact_duplicate"
            write_row(file, {"kept": corpus.ids[kept], "removed": corpus.ids[document], "similarity": 1.0})
        for kept, document in near_duplicates(corpus, unique, argument.config.threshold):
            removed[corpus.ids[document]] = "near_duplicate"
            similarity = round(minhash.jaccard(corpus.shingles(kept), corpus.shingles(document)), 4)
            write_row(file, {"kept": corpus.ids[kept], "removed": corpus.ids[document], "similarity": similarity})
    write_json(directory / f"{task}.removed.json", removed)
    return counts


def remove_duplicates(task: str, directory: Path, argument: RemoveArgument) -> Counts:
    """Copy one shard without the documents that `find_duplicates` named."""
    removed: dict[str, str] = read_json(argument.removed)

    def decide(document: Document) -> str | None:
        return removed.get(document.id)

    return map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)


def near_duplicates(corpus: Corpus, documents: list[int], threshold: float) -> list[tuple[int, int]]:
    """Pairs (kept, removed) among `documents`, which are given best first.

    Clusters are connected through verified pairs only; the best document of each is kept.
    """
    from scipy.sparse import coo_matrix  # here, because it is slow to import and the tokenizer does not need it
    from scipy.sparse.csgraph import connected_components

    if not documents:
        return []
    pairs = sorted(_verified_pairs(corpus, documents, threshold))
    ends = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(pairs), np.int8), (ends[0], ends[1])), shape=(len(documents),) * 2)
    labels = connected_components(graph, directed=False)[1]
    best: dict[int, int] = {}
    result = []
    for rank, label in enumerate(labels.tolist()):
        kept = best.setdefault(label, rank)
        if kept != rank:
            result.append((documents[kept], documents[rank]))
    return result


def _verified_pairs(corpus: Corpus, documents: list[int], threshold: float) -> set[tuple[int, int]]:
    """Pairs of ranks, better first, that share a band and have at least `threshold` Jaccard similarity."""
    verified: dict[tuple[int, int], bool] = {}
    bands = corpus.bands[documents]
    for band in range(bands.shape[1]):
        for bucket in _buckets(bands[:, band]):
            rest = bucket
            for _ in range(_BUCKET_ROUNDS):
                best, others, rest = rest[0], rest[1:], []
                for other in others:
                    pair = (best, other)
                    if pair not in verified:
                        one, two = corpus.shingles(documents[best]), corpus.shingles(documents[other])
                        verified[pair] = _similar(one, two, threshold)
                    if not verified[pair]:
                        rest.append(other)
                if len(rest) < 2:
                    break
    return {pair for pair, similar in verified.items() if similar}


def _similar(one: np.ndarray, two: np.ndarray, threshold: float) -> bool:
    # Sets whose sizes differ this much cannot reach the threshold, and need no comparison.
    if min(len(one), len(two)) < threshold * max(len(one), len(two)):
        return False
    return minhash.jaccard(one, two) >= threshold


def _buckets(keys: np.ndarray) -> Iterator[list[int]]:
    """Groups of at least two positions with equal keys, each in ascending order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    for first, last in pairwise(edges.tolist()):
        if last - first > 1:
            yield order[first:last].tolist()


class Corpus:
    """The sketches of all shards; documents are numbered through, shingle sets stay on disk."""

    def __init__(self, sketches: Iterable[Path]) -> None:
        self.ids: list[str] = []
        self.keys: list[str] = []
        self._sizes: list[tuple[int, int]] = []  # (source, bytes)
        self._shards: list[tuple[np.ndarray, np.ndarray]] = []
        self._place: list[tuple[int, int]] = []  # (shard, document in it)
        bands = []
        for path in sketches:
            rows = read_json(path)
            self._place += [(len(self._shards), position) for position in range(len(rows))]
            self.ids += [row[0] for row in rows]
            self._sizes += [(row[1], row[2]) for row in rows]
            self.keys += [row[3] for row in rows]
            stem = path.name.removesuffix(".json")
            bands.append(np.load(path.with_name(f"{stem}.bands.npy")))
            shingles = path.with_name(f"{stem}.shingles.npy")
            mapped: Any = np.load(shingles, mmap_mode="r") if rows else np.empty(0, np.uint64)
            self._shards.append((mapped, np.load(path.with_name(f"{stem}.ends.npy"))))
        self.bands = np.concatenate(bands) if bands else np.empty((0, 0), np.uint64)

    def __len__(self) -> int:
        return len(self.ids)

    def by_preference(self) -> list[int]:
        """All documents, the one to keep first: earlier source, then longer, then smaller id."""
        return sorted(range(len(self)), key=lambda i: (self._sizes[i][0], -self._sizes[i][1], self.ids[i]))

    def shingles(self, document: int) -> np.ndarray:
        shard, position = self._place[document]
        shingles, ends = self._shards[shard]
        return np.asarray(shingles[ends[position - 1] if position else 0 : ends[position]])


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path, "wb") as file:
        np.save(file, array)
