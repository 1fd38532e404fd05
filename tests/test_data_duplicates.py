"""What deduplication guarantees: which near copies are found, that nothing else goes, and that it takes linear time."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_data_helpers import prose, replace_words, words

from data_pipeline.config import DeduplicationConfig
from data_pipeline.dedup import minhash
from data_pipeline.dedup.duplicates import FindArgument, find_duplicates
from data_pipeline.dedup.sketches import SketchArgument, sketch_shard
from data_pipeline.documents import Document, read_rows, write_row

CONFIG = DeduplicationConfig()
PAIRS = 600


def sketched(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "texts").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            write_row(file, Document(str(number), 0, "prose", "", "", "", text))
    sketch_shard("a", folder, SketchArgument(folder / "texts", CONFIG))
    return folder / "a.documents.npy"


def found_in(folder: Path, texts: list[str]) -> tuple[np.ndarray, dict[int, int]]:
    """The verdict on every text, and of those that go the one that is kept for it."""
    return decided(folder, sketched(folder, texts))


def decided(folder: Path, table: Path) -> tuple[np.ndarray, dict[int, int]]:
    find_duplicates("all", folder, FindArgument([table], CONFIG))
    rows = read_rows(folder / "all.duplicates.jsonl")
    return np.load(folder / "all.verdicts.npy"), {int(row["removed"]): int(row["kept"]) for row in rows}


def jaccard(one: str, other: str) -> float:
    """In plain Python, of runs of five words."""
    sets = []
    for text in (one, other):
        found = re.findall(r"\w+", text.lower())
        sets.append(set(zip(*(found[start:] for start in range(5)), strict=False)))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def pairs(length: int, changed: int, lowest: float, highest: float) -> list[tuple[str, str]]:
    """Texts of `length` words with a copy in which `changed` words are others, of a similarity within the limits."""
    found = []
    seed = 0
    while len(found) < PAIRS:
        seed += 1
        text = prose(seed * 7919, length)
        copy = replace_words(text, seed * 104_729, changed)
        if lowest <= jaccard(text, copy) < highest:
            found.append((text, copy))
    return found


def recall(folder: Path, planted: list[tuple[str, str]]) -> float:
    """The share of the planted pairs of which one text goes, among all the others."""
    _, gone = found_in(folder, [text for pair in planted for text in pair])
    assert all(kept // 2 == removed // 2 for removed, kept in gone.items())
    return len(gone) / len(planted)


def test_pairs_of_similarity_0_9_are_found(tmp_path: Path) -> None:
    assert recall(tmp_path, pairs(length=200, changed=3, lowest=0.89, highest=0.91)) >= 0.98


def test_pairs_of_similarity_0_8_are_found_as_often_as_banding_promises(tmp_path: Path) -> None:
    planted = pairs(length=195, changed=5, lowest=0.8, highest=0.81)
    similarity = np.mean([jaccard(*pair) for pair in planted])
    promised = 1 - (1 - similarity**CONFIG.rows) ** CONFIG.bands
    assert 0.91 < promised < 0.94
    # Of so many pairs, the share found is within three standard deviations of the promise.
    spread = np.sqrt(promised * (1 - promised) / len(planted))
    assert recall(tmp_path, planted) >= promised - 3 * spread


def test_pairs_just_below_the_threshold_stay(tmp_path: Path) -> None:
    """Most of them share a band, so only the true similarity saves them."""
    planted = pairs(length=185, changed=5, lowest=0.78, highest=0.8)
    assert recall(tmp_path, planted) == 0


def test_what_goes_has_the_similarity_to_what_stays(tmp_path: Path) -> None:
    """Families of copies, and copies of copies, each further from the first: near the threshold on both sides."""
    texts = []
    generator = random.Random(0)
    for family in range(60):
        parts = prose(family, 150).split(" ")
        for _ in range(8):
            texts.append(" ".join(parts))
            for place in generator.sample(range(len(parts)), generator.randint(0, 2)):
                parts[place] = words(generator.randrange(10**9), 1)[0]
    verdicts, gone = found_in(tmp_path, texts)
    assert set(np.flatnonzero(verdicts).tolist()) == gone.keys()
    below = 0
    for removed, kept in gone.items():
        assert jaccard(texts[removed], texts[kept]) >= CONFIG.threshold and not verdicts[kept]
    for first in range(0, len(texts), 8):
        below += sum(jaccard(texts[first], texts[first + step]) < CONFIG.threshold for step in range(1, 8))
    assert 60 < len(gone) < len(texts) - 60 and below > 60


def work(folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, int], int, float]:
    """What goes and what is kept for it, documents that were compared, and seconds to decide."""
    compared = 0
    original = minhash.overlaps

    def counting(own: np.ndarray, sets: list[np.ndarray]) -> np.ndarray:
        nonlocal compared
        compared += len(sets)
        return original(own, sets)

    table = sketched(folder, texts)
    with monkeypatch.context() as patched:
        patched.setattr(minhash, "overlaps", counting)
        started = time.perf_counter()
        gone = decided(folder, table)[1]
        return gone, compared, time.perf_counter() - started


def identical(count: int) -> list[str]:
    return ["the same few words again and again"] * count


def templated(count: int) -> list[str]:
    """Pages of a catalogue, most of each the template: similar by three quarters, which fills every band's buckets."""
    template = words(1, 80)
    return [" ".join(template[:40] + words(10 + number, 8) + template[40:]) for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "count", "at_least", "at_most"), [(identical, 25_000, 1, 1), (templated, 5_000, 0, 0.01)]
)
def test_crowds_take_linear_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[int], list[str]],
    count: int,
    at_least: float,
    at_most: float,
) -> None:
    """All texts fall into the same buckets: with every pair compared, 4 times as many would take 16 times as long."""
    few, few_compared, few_seconds = work(tmp_path / "few", made(count), monkeypatch)
    texts = made(4 * count)
    many, many_compared, many_seconds = work(tmp_path / "many", texts, monkeypatch)
    for gone, total in ((few, count), (many, 4 * count)):
        assert at_least * (total - 1) <= len(gone) <= at_most * total
        for removed, kept in gone.items():  # of the pages, those few that say nearly the same
            assert texts[removed] == texts[kept] or jaccard(texts[removed], texts[kept]) >= CONFIG.threshold
    assert many_compared <= 4.5 * few_compared
    assert many_seconds < 10 * few_seconds + 1
    assert at_least or many_compared > count  # they did meet
