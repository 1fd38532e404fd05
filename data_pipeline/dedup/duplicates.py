"""Duplicates: exact ones by key, near ones by MinHash banding, and a true Jaccard similarity before any removal.

Banding alone only proposes pairs. Removing on proposals, and then everything that is connected through them, is known
to empty whole sources that share a template. So each pair is verified on the shingles themselves, and a document goes
only where it resembles one that stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write
from data_pipeline.config import DecontaminationConfig, DeduplicationConfig
from data_pipeline.dedup import minhash
from data_pipeline.dedup.decontamination import find_contaminated
from data_pipeline.dedup.evaluation_index import EvaluationIndex
from data_pipeline.dedup.paragraphs import Removal
from data_pipeline.dedup.repeated_paragraphs import find_repeated
from data_pipeline.dedup.sketches import SketchArgument, Sketches, sketch_shard
from data_pipeline.documents import Counts, Document, map_documents, write_row

REASONS = (None, "exact_duplicate", "near_duplicate", "contaminated", "duplicate_paragraphs")
_EXACT, _NEAR, _CONTAMINATED, _TORSO = 1, 2, 3, 4

# In one bucket every document meets the best one; those that differ from it meet the best of the rest, and so on.
# Templated text can fill a bucket with documents that all differ, and more rounds hardly find more there. A document
# likewise meets so many kept ones of its cluster before it is kept itself.
_ROUNDS = 3
_COMPARED_AT_ONCE = 1 << 22  # shingles, which bounds memory


@dataclass(frozen=True)
class FindArgument:
    sketches: list[Path]  # the .documents.npy files of the sketch stage, in order
    config: DeduplicationConfig
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    evaluation: Path | None = None  # directory of the evaluation stage, where there is one


@dataclass(frozen=True)
class RemoveArgument:
    path: Path
    found: Path  # directory of the find stage
    first: int  # number of the shard's first document
    config: DeduplicationConfig


def find_duplicates(task: str, directory: Path, argument: FindArgument) -> Counts:
    """Decide over all shards which documents go.

    `verdicts.npy` holds for every document its place in REASONS, (documents,) uint8. `duplicates.jsonl` tells of each
    that goes which one is kept for it, their similarity, and its cluster, named after the best document in it.
    Then go documents that hold evaluation texts, and paragraphs that another document holds, where that is wanted.
    """
    sketches = Sketches(argument.sketches)
    verdicts, kept = exact_duplicates(sketches)
    clusters = kept.copy()
    best_first = sketches.by_preference()
    remaining = best_first[verdicts[best_first] == 0]
    near_duplicates(sketches, remaining, argument.config.threshold, verdicts, kept, clusters)
    kept = kept[kept]  # an exact copy of what went as a near duplicate has the same shingles as that
    removed = np.flatnonzero(verdicts).tolist()
    ids = sketches.ids({*removed, *kept[removed].tolist(), *clusters[removed].tolist()})
    with atomic_write(directory / f"{task}.duplicates.jsonl") as file:
        for document in removed:
            partner = int(kept[document])
            row: dict[str, Any] = {"cluster": ids[int(clusters[partner])], "kept": ids[partner]}
            similarity = minhash.jaccard(sketches.shingles(partner), sketches.shingles(document))
            write_row(file, {**row, "removed": ids[document], "similarity": round(similarity, 4)})
    if argument.evaluation:
        index = EvaluationIndex(argument.evaluation)
        verdicts[find_contaminated(sketches, index, argument.decontamination, verdicts, directory)] = _CONTAMINATED
    if argument.config.paragraphs:
        repeated = find_repeated(sketches, argument.config, verdicts, _TORSO)
        with atomic_write(directory / f"{task}.paragraphs.npy", "wb") as binary:
            np.save(binary, repeated)
    with atomic_write(directory / f"{task}.verdicts.npy", "wb") as binary:
        np.save(binary, verdicts)
    return Counts(len(sketches), len(sketches))


def remove_duplicates(task: str, directory: Path, argument: RemoveArgument) -> Counts:
    """Copy one shard without the documents and paragraphs that `find_duplicates` decided against.

    Where paragraphs go, what stays is sketched again, because later stages compare documents as they are then.
    """
    verdicts = np.load(argument.found / "all.verdicts.npy", mmap_mode="r")
    gone = np.zeros((2, 0), np.int64)
    if argument.config.paragraphs:
        gone = np.load(argument.found / "all.paragraphs.npy", mmap_mode="r")
    numbers = count(argument.first)
    removal = Removal()

    def decide(document: Document) -> str | None:
        number = next(numbers)
        start, stop = np.searchsorted(gone[0], [number, number + 1])
        if stop > start:
            document.text = removal.edited(document, gone[1, start:stop].tolist())
        return REASONS[verdicts[number]] or (None if document.text else REASONS[_TORSO])

    kept = directory / f"{task}.jsonl"
    counts = map_documents(argument.path, kept, directory / "dropped" / f"{task}.jsonl", decide)
    if argument.config.paragraphs:
        counts.details = removal.details()
        removal.write_examples(directory / "removed" / f"{task}.jsonl")
        sketch_shard(task, directory, SketchArgument(kept, replace(argument.config, bands=1, rows=1, paragraphs=False)))
    return counts


def exact_duplicates(sketches: Sketches) -> tuple[np.ndarray, np.ndarray]:
    """A verdict for every document, and the document that is kept for it (itself where it stays)."""
    best_first = sketches.by_preference()
    keys = sketches.documents["key"][best_first]
    order = np.lexsort((keys[:, 0], keys[:, 1]))  # stable: among equal keys the best stays first
    new = np.ones(len(order), bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = order[np.flatnonzero(new)][np.cumsum(new) - 1] if len(order) else order
    kept, verdicts = np.arange(len(sketches)), np.zeros(len(sketches), np.uint8)
    kept[best_first[order]] = best_first[first]
    verdicts[best_first[order[~new]]] = _EXACT
    return verdicts, kept


def near_duplicates(
    sketches: Sketches,
    documents: np.ndarray,
    threshold: float,
    verdicts: np.ndarray,
    kept: np.ndarray,
    clusters: np.ndarray,
) -> None:
    """Fill in `verdicts`, `kept` and `clusters` of the near duplicates among `documents`, which are given best first.

    Clusters are connected through verified pairs. In each the best document is kept, and every other one goes if it
    is in a verified pair with one that is kept, or reaches the threshold with one of the first that are.
    """
    from scipy.sparse import coo_matrix  # here, because it is slow to import and the tokenizer does not need it
    from scipy.sparse.csgraph import connected_components

    if not len(documents):
        return
    verified = verified_pairs(sketches, documents, threshold)
    ends = np.divmod(verified, len(documents))
    graph = coo_matrix((np.ones(len(verified), np.int8), ends), shape=(len(documents),) * 2)
    labels = connected_components(graph, directed=False)[1]
    by_worse = np.argsort(ends[1], kind="stable")
    better, worse = ends[0][by_worse], ends[1][by_worse]
    stay: dict[int, list[int]] = {}
    stays = np.zeros(len(documents), bool)
    for place in np.unique(ends).tolist():  # best first
        staying = stay.setdefault(int(labels[place]), [])
        document = int(documents[place])
        known = better[slice(*np.searchsorted(worse, [place, place + 1]))]
        partner = next((other for other in known[stays[known]]), None)
        if partner is None:
            own = documents[[place]]
            met = (other for other in staying[:_ROUNDS] if similar(sketches, int(documents[other]), own, threshold)[0])
            partner = next(met, None)
        if partner is None:
            staying.append(place)
            stays[place] = True
        else:
            verdicts[document], kept[document] = _NEAR, documents[partner]
        clusters[document] = documents[staying[0]]


def verified_pairs(sketches: Sketches, documents: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs of places in `documents` that share a band and reach the threshold, in ascending order, (pairs,) int64.

    A pair is the number better * len(documents) + worse, so that one that was compared takes nine bytes.
    """
    compared, holds = np.empty(0, np.int64), np.empty(0, bool)
    for band in range(sketches.bands()):
        new, answers = [compared], [holds]
        for bucket in buckets(sketches.band(band)[documents]):
            rest = bucket
            for _ in range(_ROUNDS):
                if len(rest) < 2:
                    break
                best, others = int(rest[0]), rest[1:]
                pairs = best * len(documents) + others
                places = _places(compared, pairs)
                unknown = places < 0
                reached = np.zeros(len(others), bool)
                reached[~unknown] = holds[places[~unknown]]
                if unknown.any():
                    reached[unknown] = similar(sketches, int(documents[best]), documents[others[unknown]], threshold)
                    new.append(pairs[unknown])  # met once in a band
                    answers.append(reached[unknown])
                rest = others[~reached]
        compared = np.concatenate(new)
        order = np.argsort(compared)
        compared, holds = compared[order], np.concatenate(answers)[order]
    return compared[holds]


def similar(sketches: Sketches, document: int, others: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the Jaccard similarity of `document` with each of the others reaches the threshold, (others,) bool."""
    own = sketches.shingles(document)
    answers = [np.empty(0, bool)]
    for some in _portions(others, sketches.documents["shingles"][others]):
        sets = [sketches.shingles(other) for other in some.tolist()]
        shared = minhash.overlaps(own, sets)
        sizes = np.array(list(map(len, sets)))
        answers.append(shared >= threshold * (len(own) + sizes - shared))
    return np.concatenate(answers)


def _portions(documents: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """`documents` in portions of about `_COMPARED_AT_ONCE` shingles."""
    total = np.cumsum(sizes)
    if not len(documents) or total[-1] < _COMPARED_AT_ONCE:
        return [documents] * bool(len(documents))
    return np.split(documents, np.flatnonzero(np.diff(total // _COMPARED_AT_ONCE)) + 1)


def _places(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value stands in a sorted array of distinct ones, -1 for one that does not."""
    if not len(ordered):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[places] == values, places, -1)


def buckets(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of at least two positions with equal keys, each in ascending order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    crowded = np.flatnonzero(np.diff(edges) > 1)
    for first, last in zip(edges[crowded].tolist(), edges[crowded + 1].tolist(), strict=True):
        yield order[first:last]
