"""The train/validation split, with a check that nothing held out is also trained on.

What belongs together is held out together: a whole text, a whole repository. Then every held-out document is compared
with all training documents, exactly, through its shingles: one that resembles any, or is contained in one, is dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write
from data_pipeline.config import SplitConfig
from data_pipeline.dedup.duplicates import exact_duplicates
from data_pipeline.dedup.shingle_index import ShingleIndex
from data_pipeline.dedup.sketches import Sketches
from data_pipeline.documents import Counts, Document, map_documents
from data_pipeline.hashing import mix64

LEAK = "resembles_training_text"
_SPLITS = ("train", "val")
_TRAIN, _HELD_OUT, _LEAKED, _REMOVED, _REPEATED = range(5)
_SALT = np.uint64(0x9E3779B97F4A7C15)
_NONE = np.empty(0, np.uint64)


@dataclass(frozen=True)
class DrawArgument:
    sketches: list[Path]  # the .documents.npy files of the sketch stage, in order
    verdicts: Path | None  # of the stage that finds duplicates; None where it was taken into account
    config: SplitConfig


@dataclass(frozen=True)
class CompareArgument:
    sketches: Path  # of one shard
    first: int  # number of its first document
    drawn: Path  # these three of the draw stage
    held_out: Path
    index: Path
    config: SplitConfig


@dataclass(frozen=True)
class AssignArgument:
    path: Path
    drawn: Path  # of the draw stage
    leaked: list[Path]  # of the compare stage
    first: int  # number of the shard's first document
    stop: int  # and of the next shard's


def draw_held_out(task: str, directory: Path, argument: DrawArgument) -> Counts:
    """Write which side every document is on, before the comparison, and an index of what is held out.

    `sides.npy` is (documents,) uint8, `held_out.npy` the numbers of the held-out documents, (held out,) int64, and
    `index` a `ShingleIndex` of these.
    """
    sketches, config = Sketches(argument.sketches), argument.config
    table = sketches.documents
    if argument.verdicts is None:  # paragraphs were removed, and what remains of two documents can be the same
        sides = np.where(exact_duplicates(sketches)[0] > 0, _REPEATED, _TRAIN).astype(np.uint8)
    else:
        sides = np.where(np.load(argument.verdicts) > 0, _REMOVED, _TRAIN).astype(np.uint8)
    left = np.flatnonzero(sides == _TRAIN)
    chosen = draw_by_source(table["source"][left], table["group"][left], table["bytes"][left], config)
    held_out = left[chosen]
    sides[held_out] = _HELD_OUT
    for name, array in (("sides", sides), ("held_out", held_out)):
        with atomic_write(directory / f"{task}.{name}.npy", "wb") as file:
            np.save(file, array)
    sets = [sketches.shingles(document) for document in held_out.tolist()]
    ShingleIndex.build(sets, config.leak_threshold).save(directory / f"{task}.index")
    return Counts()


def draw_by_source(sources: np.ndarray, groups: np.ndarray, sizes: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Which documents to hold out, (documents,) bool: a fraction of each source, and a group whole in all of them.

    Args:
        sources: of every document, (documents,).
        groups: of every document, (documents,) uint64; a repository that two sources have is one group.
        sizes: of every document, in bytes, (documents,).
        config: the fraction of bytes, and the seed.
    """
    held_out = np.zeros(len(groups), bool)
    trained = held_out.copy()
    by_source = [np.flatnonzero(sources == source) for source in np.unique(sources).tolist()]
    # A source that is one group follows where another source has that group, and is drawn from by document elsewhere.
    for members in sorted(by_source, key=lambda members: len(np.unique(groups[members])) == 1):
        own = groups[members]
        decided = own[np.isin(own, groups[held_out])], own[np.isin(own, groups[trained])]
        chosen = draw(own, sizes[members], config.validation_fraction, config.seed, *decided)
        held_out[members[chosen]] = True
        trained[members[~chosen]] = True
    return held_out


def draw(
    groups: np.ndarray,
    sizes: np.ndarray,
    fraction: float,
    seed: int,
    held_out: np.ndarray = _NONE,
    trained: np.ndarray = _NONE,
) -> np.ndarray:
    """Which documents of one source to hold out, (documents,) bool.

    Groups are taken in the order of a hash until they make up `fraction` of the source's bytes; one that would take
    the sum past twice that is passed over, as long as another is left. So a validation set has the expected size where
    a few groups are huge. A source that is one group is drawn from by document; a single document is trained on.

    Args:
        groups: of every document, (documents,) uint64.
        sizes: of every document, in bytes, (documents,).
        fraction: of all bytes, above 0.
        seed: another one gives another order.
        held_out: groups that an earlier source decided to hold out, and `trained` those that it did not.
        trained: see `held_out`.
    """
    names, members = np.unique(groups, return_inverse=True)
    if len(names) <= 1 and bool(len(held_out)) == bool(len(trained)):
        names, members = np.arange(len(groups), dtype=np.uint64), np.arange(len(groups))
    chosen = np.isin(names, held_out)
    total = np.bincount(members, weights=sizes, minlength=len(names))
    target, held = fraction * total.sum(), total[chosen].sum()
    order = np.argsort(mix64(names ^ mix64(np.array([seed], np.uint64) + _SALT)), kind="stable")
    free = order[~(chosen | np.isin(names, trained))[order]]
    fitting = free[total[free] <= 2 * target].tolist()
    if not fitting and not held and len(free):
        fitting = [int(free[np.argmin(total[free])])]
    for group in fitting:
        if held >= target or chosen.sum() == len(names) - 1:
            break
        if held + total[group] <= 2 * target or not held:
            chosen[group] = True
            held += total[group]
    return np.asarray(chosen[members])


def compare_shard(task: str, directory: Path, argument: CompareArgument) -> Counts:
    """Write the numbers of the held-out documents that a training document of one shard resembles."""
    sketches = Sketches([argument.sketches])
    held_out = np.load(argument.held_out)
    index = ShingleIndex.load(argument.index)
    sides = np.load(argument.drawn, mmap_mode="r")[argument.first : argument.first + len(sketches)]
    leaked = np.zeros(len(held_out), bool)
    for document in np.flatnonzero(sides == _TRAIN).tolist():
        leaked[index.related(sketches.shingles(document), argument.config.leak_threshold)] = True
    with atomic_write(directory / f"{task}.npy", "wb") as file:
        np.save(file, held_out[leaked])
    return Counts()


def assign_shard(task: str, directory: Path, argument: AssignArgument) -> Counts:
    """Copy one shard with `split` filled in, without the held-out documents that resemble a training document."""
    every = np.load(argument.drawn)
    for path in argument.leaked:
        every[np.load(path)] = _LEAKED
    own = every[argument.first : argument.stop]
    sides = iter(own[own != _REMOVED].tolist())
    counts: Counter[tuple[int, str, str]] = Counter()

    def decide(document: Document) -> str | None:
        side = next(sides)
        if side in (_LEAKED, _REPEATED):
            return LEAK if side == _LEAKED else "exact_duplicate"
        document.split = "val" if side == _HELD_OUT else "train"
        counts[document.source, document.split, "documents"] += 1
        counts[document.source, document.split, "bytes"] += document.byte_count
        return None

    result = map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)
    result.details = {" ".join(map(str, key)): value for key, value in sorted(counts.items())}
    return result


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
