"""Paragraphs that stand in several documents: where they stay, and what is left of the others."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_data_helpers import dropped_rows, files_of, prose, small_config, stage_directory, words, write_jsonl

from common.errors import UserError
from data_pipeline.config import CollectionConfig, DataConfig, DeduplicationConfig, SplitConfig
from data_pipeline.dedup.duplicates import REASONS, FindArgument, RemoveArgument, find_duplicates, remove_duplicates
from data_pipeline.dedup.paragraphs import Removal
from data_pipeline.dedup.repeated_paragraphs import shared_paragraphs
from data_pipeline.dedup.sketches import SketchArgument, Sketches, sketch_shard
from data_pipeline.documents import Document, read_documents, read_rows, write_row
from data_pipeline.pipeline import curate

CONFIG = DeduplicationConfig(paragraphs=True)


def paragraph(seed: int, count: int = 30) -> str:
    return " ".join(words(seed, count)).capitalize() + "."


def document(name: str, *paragraphs: str, kind: str = "prose", source: int = 0) -> Document:
    return Document(name, source, kind, "", "", "", "\n\n".join(paragraphs))


def deduplicated(
    folder: Path, shards: list[list[Document]], config: DeduplicationConfig = CONFIG
) -> tuple[list[str | None], dict[str, str]]:
    """Why each document goes, and the texts of those that stay, by id."""
    folder.mkdir()
    for number, shard in enumerate(shards):
        with (folder / f"{number}.in").open("w", encoding="utf-8") as file:
            for each in shard:
                write_row(file, each)
        sketch_shard(str(number), folder, SketchArgument(folder / f"{number}.in", config))
    find_duplicates("all", folder, FindArgument([folder / f"{n}.documents.npy" for n in range(len(shards))], config))
    first = 0
    texts = {}
    for number, shard in enumerate(shards):
        remove_duplicates(f"kept{number}", folder, RemoveArgument(folder / f"{number}.in", folder, first, config))
        first += len(shard)
        texts.update({each.id: each.text for each in read_documents(folder / f"kept{number}.jsonl")})
    return [REASONS[verdict] for verdict in np.load(folder / "all.verdicts.npy")], texts


def normalized(text: str) -> str:
    return " ".join(text.lower().split())


def expected(documents: list[Document], reasons: list[str | None], config: DeduplicationConfig) -> dict[str, str]:
    """The rule, one document after another: what stays of those that are no duplicates as a whole."""
    best_first = sorted(range(len(documents)), key=lambda n: (documents[n].source, -documents[n].byte_count, n))
    seen: set[str] = set()
    texts = {}
    for number in best_first:
        if reasons[number]:
            continue
        parts = documents[number].text.split("\n\n")
        long = [len(part) >= config.paragraph_characters for part in parts]
        gone = [is_long and normalized(part) in seen for part, is_long in zip(parts, long, strict=True)]
        lost = sum(len(part.encode()) for part, goes in zip(parts, gone, strict=True) if goes)
        if lost > config.paragraph_max_loss * documents[number].byte_count:
            continue
        seen.update(normalized(part) for part, is_long in zip(parts, long, strict=True) if is_long)
        texts[documents[number].id] = "\n\n".join(part for part, goes in zip(parts, gone, strict=True) if not goes)
    return texts


@pytest.mark.parametrize("seed", range(4))
def test_a_long_paragraph_stays_only_in_the_best_document(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    pool = [paragraph(number, generator.randint(4, 60)) for number in range(150)]
    documents = [
        document(str(number), *generator.choices(pool, k=generator.randint(1, 9)), source=generator.randint(0, 1))
        for number in range(120)
    ]
    whole, _ = deduplicated(tmp_path / "whole", [documents], replace(CONFIG, paragraphs=False))
    assert "near_duplicate" in whole or "exact_duplicate" in whole
    oracle = expected(documents, whole, CONFIG)
    reasons, texts = deduplicated(tmp_path / "one", [documents])
    assert texts == oracle
    assert [reason if reason != "duplicate_paragraphs" else None for reason in reasons] == whole
    assert 5 < reasons.count("duplicate_paragraphs") < 100
    places = Counter(normalized(part) for text in texts.values() for part in text.split("\n\n") if len(part) >= 100)
    once = [part for part in places if places[part] == 1]
    assert len(once) > 0.8 * len(places)  # a document may repeat itself
    _, many = deduplicated(tmp_path / "many", [documents[:1], documents[1:50], [], documents[50:]])
    assert many == texts


def test_no_paragraph_vanishes_with_a_document_that_goes(tmp_path: Path) -> None:
    """A copy of a whole document, and a torso, hold paragraphs that others hold as well."""
    notice, story, end = paragraph(1), paragraph(2, 100), paragraph(3, 22)
    first = document("first", story, notice)
    copy = document("copy", end, story.upper(), notice, source=1)
    torso = document("torso", story, notice, paragraph(4, 60), source=1)
    last = document("last", paragraph(4, 60), end, paragraph(5, 90), source=2)
    reasons, texts = deduplicated(tmp_path / "a", [[first, copy, torso, last]])
    assert len(end) >= 100 and reasons == [None, "near_duplicate", "duplicate_paragraphs", None]
    assert texts == {"first": first.text, "last": last.text}


def test_short_paragraphs_and_code_stay(tmp_path: Path) -> None:
    licence, short = paragraph(1, 40), "Chapter the first"
    texts = [
        document("a", short, licence, paragraph(2, 80), kind="code"),
        document("b", short, licence, paragraph(3, 80), kind="code"),
        document("c", short, licence, paragraph(4, 80)),
        document("d", short, licence, paragraph(5, 90), kind="wiki"),
    ]
    _, kept = deduplicated(tmp_path / "a", [texts])
    assert kept == {
        **{each.id: each.text for each in texts},
        "c": "\n\n".join((short, paragraph(4, 80))),
    }


def test_case_and_spaces_do_not_make_another_paragraph(tmp_path: Path) -> None:
    notice = paragraph(1)
    texts = [
        document("a", paragraph(2, 200), notice),
        document("b", paragraph(3, 90), notice.upper().replace(" ", "\n", 3), paragraph(4)),
        Document("c", 0, "prose", "", "", "", f"{paragraph(5, 90)}\n \t\n{notice.replace(' ', '  ')}\n\n\nThe end"),
    ]
    _, kept = deduplicated(tmp_path / "a", [texts])
    assert kept["b"] == f"{paragraph(3, 90)}\n\n{paragraph(4)}"
    assert kept["c"] == f"{paragraph(5, 90)}\n\n\nThe end"


def test_what_was_removed_is_counted_and_shown(tmp_path: Path) -> None:
    notice, advert = paragraph(1), paragraph(2, 90)
    documents = [document(str(n), paragraph(10 + n, 200 + n), notice, *[advert] * (n % 2)) for n in range(6)]
    (tmp_path / "a").mkdir()
    with (tmp_path / "a.in").open("w", encoding="utf-8") as file:
        for each in documents:
            write_row(file, each)
    sketch_shard("a", tmp_path, SketchArgument(tmp_path / "a.in", CONFIG))
    find_duplicates("all", tmp_path, FindArgument([tmp_path / "a.documents.npy"], CONFIG))
    counts = remove_duplicates("kept", tmp_path, RemoveArgument(tmp_path / "a.in", tmp_path, 0, CONFIG))
    size = 5 * len(notice) + 2 * len(advert)
    assert counts.details == {"edited_documents": 5, "removed_paragraphs": 7, "removed_paragraph_bytes": size}
    shown = list(read_rows(tmp_path / "removed" / "kept.jsonl"))
    assert [(row["count"], row["bytes"]) for row in shown] == sorted(
        [(5, 5 * len(notice)), (2, 2 * len(advert))], key=lambda row: -row[1]
    )
    assert {row["example"] for row in shown} == {notice, advert[:300]} and shown[0]["document"] in {"0", "1"}


def test_examples_are_bounded(tmp_path: Path) -> None:
    removal = Removal()
    for number in range(500):
        assert removal.edited(document(str(number), "x" * 5000 + str(number), "rest"), [0]) == "rest"
    removal.write_examples(tmp_path / "shown.jsonl")
    assert removal.details()["removed_paragraphs"] == 500
    assert len(list(read_rows(tmp_path / "shown.jsonl"))) == 100
    assert (tmp_path / "shown.jsonl").stat().st_size < 50_000


def test_ranges_of_keys_find_the_same_as_one(tmp_path: Path) -> None:
    generator = random.Random(0)
    pool = [paragraph(number) for number in range(40)]
    documents = [document(str(number), *generator.choices(pool, k=4)) for number in range(40)]
    deduplicated(tmp_path / "a", [documents[:20], documents[20:]])
    sketches = Sketches([tmp_path / "a" / f"{number}.documents.npy" for number in range(2)])

    def grouped(rows: np.ndarray) -> set[frozenset[tuple[int, int]]]:
        assert sorted(np.unique(rows["paragraph"]).tolist()) == list(range(len(np.unique(rows["paragraph"]))))
        groups: dict[int, set[tuple[int, int]]] = {}
        for row in rows:
            groups.setdefault(int(row["paragraph"]), set()).add((int(row["document"]), int(row["position"])))
        return set(map(frozenset, groups.values()))

    everything = np.ones(40, bool)
    one = grouped(shared_paragraphs(sketches, everything))
    assert len(one) > 30 and one == grouped(shared_paragraphs(sketches, everything, sorted_at_once=7))
    assert not len(shared_paragraphs(sketches, ~everything))


def corpus(folder: Path) -> DataConfig:
    """Pages with a notice, of which two differ in nothing else that is long; and paragraphs that cross over."""
    notice = paragraph(1, 40)
    pages = [f"{prose(100 + number)}\n\n{notice}" for number in range(60)]
    verse = "\n\n".join(" ".join(words(50 + line, 8)) + "." for line in range(12))
    pages += [f"{verse}\n\n{paragraph(2, 45)}", f"{verse}\n\n{paragraph(3, 45)}"]
    pages += [f"{paragraph(2, 45)}\n\n{paragraph(3, 45)}\n\n{prose(7, 300)}"]
    path = write_jsonl(folder / "pages.jsonl", pages)
    return small_config(path, deduplication=CONFIG, split=SplitConfig(validation_fraction=0.2))


def test_what_remains_the_same_is_kept_once(tmp_path: Path) -> None:
    """Two pages of short verses that differed in a paragraph each, which a better page holds."""
    config = corpus(tmp_path)
    manifest = curate(config, tmp_path / "data", workers=1)
    assert [row["id"].rpartition("#")[2] for row in dropped_rows(tmp_path / "data", "split")] == ["line62"]
    assert {stage["name"]: stage["dropped"] for stage in manifest["stages"]}["split"] == {"exact_duplicate": 1}
    rows = [row for path in stage_directory(tmp_path / "data", "split").glob("*.jsonl") for row in read_rows(path)]
    assert sum(paragraph(1, 40) in row["text"] for row in rows) == 1
    assert {row["split"] for row in rows} == {"train", "val"}


def test_the_result_depends_on_neither_workers_nor_shards(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    curate(config, tmp_path / "one", workers=1)
    other = replace(config, collection=CollectionConfig(shard_bytes=12_000))
    curate(other, tmp_path / "two", workers=2)
    assert len(list(stage_directory(tmp_path / "two", "filter").glob("*.jsonl"))) > len(
        list(stage_directory(tmp_path / "one", "filter").glob("*.jsonl"))
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_impossible_limits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": prose(1)}) + "\n")
    with pytest.raises(UserError, match=r"paragraph_max_loss is 1\.5"):
        curate(small_config(path, deduplication=replace(CONFIG, paragraph_max_loss=1.5)), tmp_path / "data", 1)
