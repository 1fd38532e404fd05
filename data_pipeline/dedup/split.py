"""The train/validation split, with a check that nothing held out is also trained on.

What belongs together is held out together: a whole text, a whole repository. Then every held-out document is compared
with all training documents, exactly, through its shingles: one that resembles any, or is contained in one, is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import ge
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
    leaked: np.ndarray  # numbers of its documents that resemble training text
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
    own = table[left]
    chosen = draw(own["source"], own["group"], own["bytes"], config.validation_fraction, config.seed)
    held_out = left[chosen]
    sides[held_out] = _HELD_OUT
    for name, array in (("sides", sides), ("held_out", held_out)):
        with atomic_write(directory / f"{task}.{name}.npy", "wb") as file:
            np.save(file, array)
    sets = [sketches.shingles(document) for document in held_out.tolist()]
    ShingleIndex.build(sets, config.leak_threshold).save(directory / f"{task}.index")
    return Counts()


def draw(sources: np.ndarray, groups: np.ndarray, sizes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which documents to hold out, (documents,) bool: of every source a fraction, and groups whole.

    Groups are taken in the order of a hash until they make up `fraction` of a source's bytes; one that would take any
    source past twice that is passed over. So a validation set has the expected size where a few groups are huge, and
    where two sources share a group. A source of which no group fits gives the smallest that the others can spare, and
    always trains on one. A source that is one group of its own is drawn from by document.

    Args:
        sources: of every document, (documents,).
        groups: of every document, (documents,) uint64; a repository that two sources have is one group.
        sizes: of every document, in bytes, (documents,).
        fraction: of all bytes, above 0.
        seed: another one gives another order.
    """
    _, source = np.unique(sources, return_inverse=True)
    names, group = np.unique(_apart_where_alone(source, groups), return_inverse=True)
    count = int(source.max(initial=-1)) + 1
    pair, owner = np.unique(group * count + source, return_inverse=True)  # a group's part of a source
    part_group, part_source = np.divmod(pair, max(1, count))
    part_size = np.bincount(owner, weights=sizes, minlength=len(pair))
    starts = np.searchsorted(part_group, np.arange(len(names) + 1))
    target = (fraction * np.bincount(part_source, weights=part_size, minlength=count)).tolist()
    left = np.bincount(part_source, minlength=count).tolist()  # groups of each source that are trained on
    held, chosen = [0.0] * count, np.zeros(len(names), bool)

    def parts_of(number: int) -> list[tuple[int, float]]:
        places = slice(starts[number], starts[number + 1])
        return list(zip(part_source[places].tolist(), part_size[places].tolist(), strict=True))

    def hold_out(number: int) -> None:
        chosen[number] = True
        for each, size in parts_of(number):
            held[each] += size
            left[each] -= 1

    def fits(number: int, but: int = -1) -> bool:
        return all(left[s] > 1 and (s == but or held[s] + size <= 2 * target[s]) for s, size in parts_of(number))

    for number in np.argsort(mix64(names ^ mix64(np.array([seed], np.uint64) + _SALT)), kind="stable"):
        if any(held[each] < target[each] for each, _ in parts_of(number)) and fits(number):
            hold_out(number)
            if all(map(ge, held, target)):
                break
    for each in (each for each in range(count) if not held[each]):
        own = np.flatnonzero(part_source == each)
        by_size = part_group[own[np.argsort(part_size[own], kind="stable")]]
        spare = next((number for number in by_size if fits(number, but=each)), None)
        if spare is not None:
            hold_out(spare)
    return np.asarray(chosen[group])


def _apart_where_alone(source: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The groups, with one for each document of a source that is a single group which no other source has."""
    apart = groups.copy()
    for each in range(int(source.max(initial=-1)) + 1):
        members = source == each
        if len(np.unique(groups[members])) == 1 and not np.isin(groups[~members], groups[members]).any():
            apart[members] = np.arange(members.sum(), dtype=np.uint64) + np.uint64(each << 40)
    return apart


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


def leaked_by_shard(paths: Iterable[Path], starts: dict[str, int], ends: dict[str, int]) -> dict[str, np.ndarray]:
    """The numbers that `compare_shard` wrote, gathered and given to the shards that hold these documents."""
    leaked = np.unique(np.concatenate([np.empty(0, np.int64), *map(np.load, paths)]))
    return {
        task: leaked[np.searchsorted(leaked, starts[task]) : np.searchsorted(leaked, ends[task])] for task in starts
    }


def assign_shard(task: str, directory: Path, argument: AssignArgument) -> Counts:
    """Copy one shard with `split` filled in, without the held-out documents that resemble a training document."""
    own = np.load(argument.drawn, mmap_mode="r")[argument.first : argument.stop].copy()
    own[argument.leaked - argument.first] = _LEAKED
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
