"""The train/validation split, with a check that no held-out text is also trained on.

Validation candidates are drawn by a hash of their id. Then every candidate is compared with everything else, exactly,
through its shingles: one that resembles a training document, or is contained in one, goes back to training, and takes
with it the candidates that resemble it. What stays is far from all training text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write, read_json, write_json
from data_pipeline.config import SplitConfig
from data_pipeline.documents import Counts, Document, map_documents, read_documents, stable_hash
from data_pipeline.minhash import shingle_set

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class DrawArgument:
    paths: list[Path]
    config: SplitConfig
    shingle_words: int


@dataclass(frozen=True)
class CompareArgument:
    path: Path
    candidates: Path  # of the draw stage
    config: SplitConfig
    shingle_words: int


@dataclass(frozen=True)
class AssignArgument:
    path: Path
    candidates: Path
    related: list[Path]  # of the compare stage


def draw_candidates(task: str, directory: Path, argument: DrawArgument) -> Counts:
    """Draw the validation candidates of every source and write their shingles."""
    pieces: dict[int, dict[str, dict[str, int]]] = {}  # source -> whole text -> piece -> bytes
    for path in argument.paths:
        for document in read_documents(path):
            texts = pieces.setdefault(document.source, {})
            texts.setdefault(document.whole, {})[document.id] = document.byte_count
    config = argument.config
    ids = sorted(name for texts in pieces.values() for name in draw(texts, config.validation_fraction, config.seed))
    number = {identifier: position for position, identifier in enumerate(ids)}
    sets: list[np.ndarray] = [np.empty(0, np.uint64)] * len(ids)
    for path in argument.paths:
        for document in read_documents(path):
            if document.id in number:
                sets[number[document.id]] = shingle_set(document.text, argument.shingle_words)
    write_json(directory / f"{task}.json", ids)
    with atomic_write(directory / f"{task}.npz", "wb") as file:
        owners = np.repeat(np.arange(len(ids)), [len(items) for items in sets])
        np.savez(file, shingles=np.concatenate([np.empty(0, np.uint64), *sets]), owners=owners)
    return Counts()


def draw(texts: dict[str, dict[str, int]], fraction: float, seed: int) -> list[str]:
    """Ids to hold out of one source: texts in the order of a hash, until they make up `fraction` of its bytes.

    Counting bytes instead of texts gives a validation set of the expected size where a few texts are huge. All pieces
    of a text go the same way, as they share a subject and a style; only a source that is a single text is drawn from
    by piece. A source of one piece keeps it for training.

    Args:
        texts: bytes of every piece of every whole text, by id.
        fraction: of all bytes, above 0.
        seed: another one gives another order.
    """
    if len(texts) == 1:
        texts = {piece: {piece: size} for pieces in texts.values() for piece, size in pieces.items()}
    target = fraction * sum(size for pieces in texts.values() for size in pieces.values())
    chosen: list[str] = []
    held = 0
    for whole in sorted(texts, key=lambda name: (stable_hash("split", seed, name), name))[: len(texts) - 1]:
        if held >= target:
            break
        chosen += texts[whole]
        held += sum(texts[whole].values())
    return chosen


def compare_shard(task: str, directory: Path, argument: CompareArgument) -> Counts:
    """Which candidates each document of one shard resembles: pairs of document id and candidate number."""
    ids: list[str] = read_json(argument.candidates)
    with np.load(argument.candidates.with_suffix(".npz")) as arrays:
        order = np.argsort(arrays["shingles"], kind="stable")
        shingles, owners = arrays["shingles"][order], arrays["owners"][order]
    sizes = np.bincount(owners, minlength=len(ids))
    counts, pairs = Counts(), []
    for document in read_documents(argument.path):
        counts.documents_in += 1
        counts.documents_out += 1
        own = shingle_set(document.text, argument.shingle_words)
        for candidate in related(own, shingles, owners, sizes, argument.config.leak_threshold):
            if ids[candidate] != document.id:
                pairs.append((document.id, candidate))
    write_json(directory / f"{task}.json", pairs)
    return counts


def related(
    own: np.ndarray, shingles: np.ndarray, owners: np.ndarray, sizes: np.ndarray, threshold: float
) -> list[int]:
    """Candidates of which the document with shingles `own` shares at least `threshold`.

    The share is of the smaller of the two sets, so that it covers both resemblance and containment: it is never below
    the Jaccard similarity.

    Args:
        own: sorted distinct shingles of a document, (shingles,) uint64.
        shingles: those of all candidates, sorted, (total,) uint64.
        owners: the candidate of each, (total,).
        sizes: shingles of each candidate, (candidates,).
        threshold: fraction of the smaller set.
    """
    first = np.searchsorted(shingles, own, side="left")
    last = np.searchsorted(shingles, own, side="right")
    hits = [owners[start:stop] for start, stop in zip(first, last, strict=True) if stop > start]
    if not hits:
        return []
    shared = np.bincount(np.concatenate(hits), minlength=len(sizes))
    return np.flatnonzero((shared > 0) & (shared >= threshold * np.minimum(sizes, len(own)))).tolist()


def assign_shard(task: str, directory: Path, argument: AssignArgument) -> Counts:
    """Copy one shard with `split` filled in."""
    held_out = validation_ids(argument)
    counts: Counter[tuple[int, str, str]] = Counter()

    def decide(document: Document) -> str | None:
        document.split = "val" if document.id in held_out else "train"
        counts[document.source, document.split, "documents"] += 1
        counts[document.source, document.split, "bytes"] += document.byte_count
        return None

    result = map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)
    result.details = {" ".join(map(str, key)): value for key, value in sorted(counts.items())}
    return result


def validation_ids(argument: AssignArgument) -> set[str]:
    """The candidates that resemble no training document, not even through other candidates."""
    ids: list[str] = read_json(argument.candidates)
    number = {identifier: position for position, identifier in enumerate(ids)}
    back: set[int] = set()
    neighbours: dict[int, set[int]] = {}
    for path in argument.related:
        for identifier, candidate in read_json(path):
            if identifier in number:
                neighbours.setdefault(candidate, set()).add(number[identifier])
                neighbours.setdefault(number[identifier], set()).add(candidate)
            else:
                back.add(candidate)
    queue = list(back)
    while queue:
        fresh = neighbours.get(queue.pop(), set()) - back
        back |= fresh
        queue += fresh
    return {identifier for position, identifier in enumerate(ids) if position not in back}


def totals(details: list[dict[str, int]]) -> dict[int, dict[str, dict[str, int]]]:
    """Documents and bytes by source and split, summed over shards.

    Raises:
        UserError: nothing is left to train on or to validate with.
    """
    result: dict[int, dict[str, dict[str, int]]] = {}
    for shard in details:
        for key, value in shard.items():
            source, split, what = key.split()
            empty = {name: {"documents": 0, "bytes": 0} for name in _SPLITS}
            result.setdefault(int(source), empty)[split][what] += value
    for name in _SPLITS:
        if not any(source[name]["documents"] for source in result.values()):
            raise UserError(
                f"no document is left for the {name} split: the corpus is too small, too repetitive, or the filters "
                "drop it (look into stages/*/dropped); add text, relax the filters, or change "
                "--split.validation-fraction or --split.leak-threshold"
            )
    return result
