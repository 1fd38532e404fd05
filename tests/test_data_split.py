"""Near-duplicates and the split: what is removed, and what may not stand on both sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_helpers import (
    dropped_rows,
    prose,
    replace_words,
    shingle_set,
    small_config,
    stage_directory,
    words,
    write_jsonl,
)

from data_pipeline.config import DeduplicationConfig, SplitConfig
from data_pipeline.dedup import minhash
from data_pipeline.dedup.duplicates import FindArgument, find_duplicates
from data_pipeline.dedup.minhash import overlaps
from data_pipeline.dedup.sketches import SketchArgument, sketch_shard
from data_pipeline.dedup.split import LEAK, draw
from data_pipeline.documents import Document, read_rows, write_row
from data_pipeline.pipeline import curate
from data_pipeline.sources.config import PythonCode, TextFiles


def planted(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """120 texts, and near copies of ten of them in steps of growing distance; ids of copies by id of the original."""
    texts = [prose(seed, 120) for seed in range(120)]
    copies = {}
    for number in range(10):
        texts.append(replace_words(texts[number], 77 + number, 1 + number))
        copies[f"line{len(texts)}"] = f"line{number + 1}"
    return write_jsonl(tmp_path / "planted.jsonl", texts), copies


def test_near_duplicates_are_verified_and_kept_apart_from_the_rest(tmp_path: Path) -> None:
    path, copies = planted(tmp_path)
    texts = {f"line{n + 1}": json.loads(line)["text"] for n, line in enumerate(path.read_text().splitlines())}
    config = small_config(path, deduplication=DeduplicationConfig(bands=40, rows=4))  # finds every pair of 0.7
    out = tmp_path / "data"
    curate(config, out, workers=1)
    removed = {row["id"].rpartition("#")[2] for row in dropped_rows(out, "deduplicate")}
    expected = set()
    for copy, original in copies.items():
        one, other = (shingle_set(texts[name], 5) for name in (copy, original))
        if minhash.jaccard(one, other) >= 0.8:
            expected.add(frozenset((copy, original)))
    assert 1 <= len(expected) < len(copies)
    assert len(removed) == len(expected) and all(len(pair & removed) == 1 for pair in expected)
    lines = (stage_directory(out, "duplicates") / "all.duplicates.jsonl").read_text().splitlines()
    found = list(map(json.loads, lines))
    for row in found:
        kept, gone = (row[key].rpartition("#")[2] for key in ("kept", "removed"))
        one, other = (shingle_set(texts[name], 5) for name in (kept, gone))
        assert row["similarity"] == pytest.approx(minhash.jaccard(one, other), abs=1e-4) and gone in removed
        assert len(texts[kept]) >= len(texts[gone])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_near_duplicate_crosses_the_split(tmp_path: Path, seed: int) -> None:
    path, copies = planted(tmp_path)
    config = small_config(path, split=SplitConfig(validation_fraction=0.3, seed=seed))
    out = tmp_path / "data"
    manifest = curate(replace(config, deduplication=DeduplicationConfig(threshold=0.99)), out, workers=1)
    side, shingles = {}, {}
    for shard in sorted(stage_directory(out, "split").glob("*.jsonl")):
        for line in shard.read_text().splitlines():
            row = json.loads(line)
            name = row["id"].rpartition("#")[2]
            side[name], shingles[name] = row["split"], shingle_set(row["text"], 5)
    assert manifest["splits"]["val"]["documents"] > 15
    crossing = 0
    for one in side:
        for other in side:
            if side[one] == "val" and side[other] == "train":
                assert minhash.jaccard(shingles[one], shingles[other]) < 0.5
                shared = minhash.overlap(shingles[one], shingles[other])
                assert shared < 0.5 * min(len(shingles[one]), len(shingles[other]))
                crossing += 1
    assert crossing > 1000
    dropped = {row["id"].rpartition("#")[2] for row in dropped_rows(out, "split")}
    assert dropped and dropped <= {name for pair in copies.items() for name in pair}
    assert {stage["name"]: stage["dropped"] for stage in manifest["stages"]}["split"] == {LEAK: len(dropped)}


def test_one_long_document_still_gives_a_validation_split(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(prose(seed) for seed in range(400)))
    config = replace(small_config(), sources=(TextFiles(patterns=(str(tmp_path / "book.txt"),)),))
    manifest = curate(config, tmp_path / "data", workers=1)
    assert manifest["splits"]["val"]["documents"] >= 1
    assert manifest["splits"]["train"]["bytes"] > 3 * manifest["splits"]["val"]["bytes"]


def test_what_belongs_together_is_held_out_together() -> None:
    books = np.repeat(np.arange(10, dtype=np.uint64), 5)
    sizes = np.full(50, 100)
    one = np.zeros(50)
    chosen = draw(one, books, sizes, 0.2, seed=0)
    assert chosen.sum() == 10 and len(np.unique(books[chosen])) == 2
    assert (draw(one, books, sizes, 0.2, seed=1) != chosen).any()
    single = draw(np.zeros(10), np.zeros(10, np.uint64), np.full(10, 100), 0.2, seed=0)
    assert single.sum() == 2  # one text alone is drawn from by piece
    assert draw(np.zeros(1), np.zeros(1, np.uint64), np.full(1, 100), 0.5, seed=0).tolist() == [False]
    assert draw(np.zeros(0), np.zeros(0, np.uint64), np.zeros(0), 0.5, seed=0).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_a_group_of_two_sources_is_on_one_side(seed: int) -> None:
    """A repository that one source has as a package and another as an archive; the third source is one group of them.

    The fourth is one group of its own, and drawn from by document.
    """
    sources = np.repeat([0, 1, 2, 3], [60, 60, 10, 10])
    groups = np.concatenate([np.arange(60) // 3, 10 + np.arange(60) // 3, np.full(10, 12), np.full(10, 99)])
    sizes = np.full(140, 100)
    chosen = draw(sources, groups.astype(np.uint64), sizes, 0.1, seed)
    for group in range(30):
        assert len(np.unique(chosen[groups == group])) == 1
    for source in (0, 1):
        assert 0 < chosen[sources == source].mean() <= 0.2
    assert not chosen[sources == 2].any()
    assert chosen[sources == 3].sum() == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_huge_group_is_passed_over_while_there_are_others(seed: int) -> None:
    groups = np.arange(8, dtype=np.uint64)
    sizes = np.array([1000, 20, 20, 20, 20, 20, 20, 20])
    chosen = draw(np.zeros(8), groups, sizes, 0.05, seed)
    assert not chosen[0] and 57 <= sizes[chosen].sum() <= 114
    smaller = draw(np.zeros(2), groups[:2], np.array([1000, 600]), 0.05, seed)
    assert smaller.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(5))
def test_no_source_is_held_out_for_the_sake_of_another(seed: int) -> None:
    """Fifty sites; the second source has most of its bytes, the third all, from sites of the first."""
    sources = np.repeat([0, 1, 2], [50, 12, 1])
    groups = np.concatenate([np.arange(50), [7, 8], np.arange(100, 110), [9]]).astype(np.uint64)
    sizes = np.concatenate([np.full(50, 10), [900, 900], np.full(10, 20), [500]])
    chosen = draw(sources, groups, sizes, 0.1, seed)
    for group in np.unique(groups):
        assert len(np.unique(chosen[groups == group])) == 1
    held = [sizes[chosen & (sources == source)].sum() / sizes[sources == source].sum() for source in range(3)]
    assert 0.1 <= held[0] <= 0.2 and 0 < held[1] <= 0.2 and held[2] == 0


def test_a_repository_is_on_one_side(tmp_path: Path) -> None:
    code = PythonCode(max_bytes=1_000_000, packages=("rich", "jinja2", "tyro", "fsspec"))
    config = replace(small_config(), sources=(code,), split=SplitConfig(validation_fraction=0.1))
    curate(config, tmp_path / "data", workers=1)
    side: dict[str, set[str]] = {}
    for shard in sorted(stage_directory(tmp_path / "data", "split").glob("*.jsonl")):
        for line in shard.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            side.setdefault(row["group"], set()).add(row["split"])
    assert {"rich", "jinja2", "python"} <= side.keys()
    assert all(len(found) == 1 for found in side.values()) and {"val"} in side.values()


def found_duplicates(texts: list[str], folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Verdicts and the rows of `duplicates.jsonl`, with documents named by their number."""
    write_rows(folder / "texts.jsonl", [Document(str(n), 0, "prose", "", "", "", text) for n, text in enumerate(texts)])
    config = DeduplicationConfig()
    sketch_shard("a", folder, SketchArgument(folder / "texts.jsonl", config))
    find_duplicates("all", folder, FindArgument([folder / "a.documents.npy"], config))
    return np.load(folder / "all.verdicts.npy"), list(read_rows(folder / "all.duplicates.jsonl"))


def write_rows(path: Path, documents: list[Document]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            write_row(file, document)


def test_crowded_buckets_take_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 identical texts, and 1,000 that share a template and differ in content."""
    compared = 0

    def counting(own: np.ndarray, sets: list[np.ndarray]) -> np.ndarray:
        nonlocal compared
        compared += len(sets)
        return overlaps(own, sets)

    monkeypatch.setattr(minhash, "overlaps", counting)
    template = words(1, 46)
    texts = ["the same words again and again"] * 1000
    texts += [" ".join(template + words(10 + number, 14)) for number in range(1000)]
    verdicts, rows = found_duplicates(texts, tmp_path)
    assert (verdicts[:1000] == 1).sum() == 999 and not verdicts[1000:].any()
    assert {row["kept"] for row in rows} == {"0"} and all(row["similarity"] == 1 for row in rows)
    assert 1000 < compared < 10 * 1000


def test_what_goes_resembles_what_stays(tmp_path: Path) -> None:
    """A chain of texts, each like the next and unlike those further on: one cluster, of which more than one stays."""
    band = words(5, 300)
    texts = [" ".join(band[start : start + 200]) for start in range(0, 84, 7)]
    verdicts, rows = found_duplicates(texts, tmp_path)
    shingles = [shingle_set(text, 5) for text in texts]
    assert minhash.jaccard(shingles[0], shingles[1]) > 0.9 and minhash.jaccard(shingles[0], shingles[-1]) < 0.8
    assert len({row["cluster"] for row in rows}) == 1 and len({row["kept"] for row in rows}) > 1
    for row in rows:
        kept, gone = int(row["kept"]), int(row["removed"])
        assert verdicts[gone] and not verdicts[kept]
        assert minhash.jaccard(shingles[kept], shingles[gone]) >= 0.8


def test_a_copy_far_down_a_chain_goes(tmp_path: Path) -> None:
    """More of the chain stay than a document is compared with, but that it resembles one of them is known already."""
    band = words(5, 700)
    texts = [" ".join(band[start : start + 300]) for start in range(0, 360, 18)]
    texts.append(replace_words(texts[-1], 5, 1))
    verdicts, rows = found_duplicates(texts, tmp_path)
    partner = {row["removed"]: row["kept"] for row in rows}
    copies = {str(len(texts) - 1), str(len(texts) - 2)}
    assert len({row["kept"] for row in rows}) > 4 and copies & partner.keys()
    for gone, kept in partner.items():
        one, other = (shingle_set(texts[int(name)], 5) for name in (gone, kept))
        assert minhash.jaccard(one, other) >= 0.8 and not verdicts[int(kept)]
