"""Evaluation texts are found in training documents, however they are written there, and nothing else is."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_data_helpers import dropped_rows, prose, small_config, stage_directory, words, write_jsonl

from common.errors import UserError
from common.files import read_json
from data_pipeline.config import (
    CleaningConfig,
    CollectionConfig,
    DataConfig,
    DecontaminationConfig,
    DeduplicationConfig,
)
from data_pipeline.dedup.duplicates import REASONS, FindArgument, find_duplicates
from data_pipeline.dedup.evaluation_index import EvaluationIndex
from data_pipeline.dedup.evaluation_texts import EvaluationArgument, plan, read_evaluation
from data_pipeline.dedup.sketches import SketchArgument, sketch_shard
from data_pipeline.documents import Counts, Document, read_rows, write_row
from data_pipeline.pipeline import curate
from data_pipeline.verify import verify

QUESTION, ANSWER, PASSAGE, LICENCE = (words(seed, 40) for seed in (901, 902, 903, 904))
SHORT, TOO_SHORT = words(905, 9), words(906, 7)


def ngrams(text: str, count: int) -> Iterator[str]:
    found = re.findall(r"\w+", text.lower())
    for start in range(len(found) - count + 1):
        yield " ".join(found[start : start + count])


def inserted(seed: int, run: str) -> str:
    """A document of about 100 words with `run` in the middle."""
    before, after = prose(seed, 60), prose(seed + 1000, 60)
    return f"{before} {run} {after}"


def evaluation_files(folder: Path) -> tuple[str, ...]:
    rows = [
        {"question": " ".join(QUESTION), "answer": " ".join(ANSWER)},
        {"question": " ".join(SHORT), "answer": "yes"},
        {"question": " ".join(TOO_SHORT)},
        {"question": " ".join(LICENCE), "answer": None},
    ]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "story.txt").write_text("\n".join(" ".join(PASSAGE[n : n + 6]) for n in range(0, 40, 6)))
    return str(folder / "quiz.jsonl"), str(folder / "*.txt")


PLANTED = {  # what stands in a document, and the evaluation text that it is; None where it is too little
    "verbatim": (" ".join(QUESTION), "quiz.jsonl#line1"),
    "rewritten": (" ".join(ANSWER).upper().replace(" ", ";\n(", 9), "quiz.jsonl#line1"),
    "passage": (" ".join(PASSAGE[20:]), "story.txt#partline1"),
    "exactly enough": (" ".join(QUESTION[5:18]), "quiz.jsonl#line1"),
    "one word less": (" ".join(QUESTION[20:32]), None),
    "one word changed": (" ".join([*PASSAGE[:12], "otherwise", *PASSAGE[13:25]]), None),
    "short": (" ".join(SHORT).title(), "quiz.jsonl#line2"),
    "short but cut": (" ".join(SHORT[:8]), None),
    "too short": (" ".join(TOO_SHORT), None),
}


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    folder = tmp_path_factory.mktemp("decontamination")
    texts = [prose(seed) for seed in range(60)]
    texts += [inserted(2000 + number, f"{run}.") for number, (run, _) in enumerate(PLANTED.values())]
    texts += [inserted(3000 + number, " ".join(LICENCE) + ".") for number in range(11)]
    config = small_config(
        write_jsonl(folder / "train.jsonl", texts),
        decontamination=DecontaminationConfig(evaluation_files(folder), ("question", "answer")),
    )
    curate(config, folder / "data", workers=1)
    return config, folder / "data"


def test_all_and_only_planted_texts_are_found(cleaned: tuple[DataConfig, Path]) -> None:
    _, out = cleaned
    lines = {name: f"line{61 + number}" for number, name in enumerate(PLANTED)}
    rows = dropped_rows(out, "deduplicate")
    assert {row["reason"] for row in rows} == {"contaminated"}
    expected = {lines[name]: where for name, (_, where) in PLANTED.items() if where}
    assert {row["id"].rpartition("#")[2] for row in rows} == expected.keys()
    found = {
        row["document"].rpartition("#")[2]: row
        for row in read_rows(stage_directory(out, "duplicates") / "all.contamination.jsonl")
    }
    assert {name: Path(row["evaluation"]).name for name, row in found.items()} == expected
    assert found[lines["verbatim"]] | {"document": ""} == {
        "document": "",
        "matches": 28,
        "evaluation": found[lines["short"]]["evaluation"].replace("line2", "line1"),
        "words": " ".join(QUESTION[:13]),
    }
    assert found[lines["exactly enough"]]["matches"] == 1
    assert found[lines["exactly enough"]]["words"] == " ".join(QUESTION[5:18])
    assert found[lines["short"]]["words"] == " ".join(SHORT)


def test_nothing_is_found_in_what_is_left(cleaned: tuple[DataConfig, Path]) -> None:
    _, out = cleaned
    left = [row["text"] for path in stage_directory(out, "split").glob("*.jsonl") for row in read_rows(path)]
    assert len(left) > 60
    runs = {count: {run for text in left for run in ngrams(text, count)} for count in (9, 12, 13)}
    for text in (QUESTION, ANSWER, PASSAGE):
        assert not runs[13] & set(ngrams(" ".join(text), 13))
    assert " ".join(SHORT) not in runs[9]
    assert " ".join(QUESTION[20:32]) in runs[12]  # and what is too little stayed


def test_what_stands_everywhere_is_no_evidence(cleaned: tuple[DataConfig, Path]) -> None:
    _, out = cleaned
    common = list(read_rows(stage_directory(out, "duplicates") / "all.common_ngrams.jsonl"))
    assert [row["words"] for row in common] == sorted(
        ngrams(" ".join(LICENCE), 13), key=[r["words"] for r in common].index
    )
    assert {row["documents"] for row in common} == {11} and len(common) == 28


def test_the_evaluation_texts_are_accounted_for(cleaned: tuple[DataConfig, Path]) -> None:
    _, out = cleaned
    manifest = read_json(out / "manifest.json")
    assert manifest["evaluation"] == {"documents_in": 7, "documents_out": 5, "dropped": {"too_short": 2}}
    assert not any(check.wrong for check in verify(out))
    for name in ("report.html", "README.md"):
        told = " ".join((out / name).read_text(encoding="utf-8").replace("\\", "").split())
        assert re.search(r"5 of 7 [a-z ]+ were looked for\. Left out[a-z ,]*: too_short 2\.", told), name
    reasons = [row["reason"] for row in dropped_rows(out, "evaluation")]
    assert reasons == ["too_short", "too_short"]  # "yes", and the question of seven words
    rows = read_rows(stage_directory(out, "evaluation") / "evaluation.texts.jsonl")
    texts = [row["origin"].rpartition("/")[2] for row in rows]
    assert texts == [
        "quiz.jsonl#line1",
        "quiz.jsonl#line2",
        "quiz.jsonl#line4",
        "quiz.jsonl#line1",
        "story.txt#partline1",
    ]


def built_index(folder: Path, config: DecontaminationConfig) -> Counts:
    files, _ = plan(config, CollectionConfig())
    return read_evaluation(
        "evaluation", folder, EvaluationArgument(files, config, CollectionConfig(), CleaningConfig())
    )


def reasons_for(folder: Path, texts: list[str], config: DecontaminationConfig) -> list[str | None]:
    """Decide over texts in two shards."""
    built_index(folder, config)
    dedup, half = DeduplicationConfig(), len(texts) // 2
    for name, part in (("a", texts[:half]), ("b", texts[half:])):
        with (folder / f"{name}.in").open("w", encoding="utf-8") as file:
            for number, text in enumerate(part):
                write_row(file, Document(f"{name}{number}", 0, "prose", "", "", "", text))
        sketch_shard(name, folder, SketchArgument(folder / f"{name}.in", dedup, folder))
    tables = [folder / f"{name}.documents.npy" for name in "ab"]
    find_duplicates("all", folder, FindArgument(tables, dedup, config, folder))
    return [REASONS[verdict] for verdict in np.load(folder / "all.verdicts.npy")]


def test_a_threshold_counts_within_one_evaluation_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [" ".join(QUESTION), " ".join(ANSWER), " ".join(PASSAGE[:14])])
    texts = [
        inserted(1, " ".join(QUESTION[:17])),  # five n-grams
        inserted(2, " ".join(QUESTION[:16])),
        inserted(3, f"{' '.join(QUESTION[:15])} and {' '.join(ANSWER[:15])}"),  # three each
        inserted(4, " ".join(PASSAGE[:14])),  # all that there are
        inserted(5, " ".join(QUESTION[:14]) + " so " + " ".join(QUESTION[20:34])),
        inserted(6, f"{' '.join(QUESTION[:13])} or {' '.join(QUESTION[:13])}"),
    ]
    config = DecontaminationConfig((str(tmp_path / "test.jsonl"),), min_matches=5)
    found = reasons_for(tmp_path, texts, config)
    assert found == ["contaminated", None, None, "contaminated", None, None]
    found = reasons_for(tmp_path, texts, replace(config, min_matches=4))
    assert found == ["contaminated", "contaminated", None, "contaminated", "contaminated", None]


@pytest.mark.parametrize(("most", "expected"), [(3, [None] * 4), (4, ["contaminated"] * 4)])
def test_the_limit_of_documents_is_inclusive(tmp_path: Path, most: int, expected: list[str | None]) -> None:
    write_jsonl(tmp_path / "test.jsonl", [" ".join(LICENCE)])
    texts = [inserted(number, " ".join(LICENCE)) for number in range(4)]
    config = DecontaminationConfig((str(tmp_path / "test.jsonl"),), max_documents=most)
    assert reasons_for(tmp_path, texts, config) == expected


def test_copies_of_a_page_do_not_make_its_text_common(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [" ".join(QUESTION)])
    page = inserted(1, " ".join(QUESTION))
    found = reasons_for(tmp_path, [page] * 30, DecontaminationConfig((str(tmp_path / "test.jsonl"),)))
    assert found.count("contaminated") == 1 and found.count("exact_duplicate") == 29


def test_matches_are_those_of_plain_sets(tmp_path: Path) -> None:
    generator = random.Random(0)
    vocabulary = ["so", "it", "is", "not", "été", "中", "A1", "b_c"]

    def text(most: int) -> str:
        return "".join(generator.choice(vocabulary) + generator.choice((" ", ", ", "\n")) for _ in range(most))

    write_jsonl(tmp_path / "test.jsonl", [text(generator.randint(1, 30)) for _ in range(200)])
    config = DecontaminationConfig((str(tmp_path / "test.jsonl"),), ngram_words=6, min_words=4)
    built_index(tmp_path, config)
    index = EvaluationIndex(tmp_path)
    known: dict[int, str] = {}
    texts = list(read_rows(index.texts))
    for ngram, number, position in index.places.tolist():
        length = int(index.ngrams["words"][ngram])
        run = list(ngrams(texts[number]["text"], length))[position]
        assert known.setdefault(ngram, run) == run
    assert len(set(known.values())) == len(index.ngrams)
    wanted = set()
    for row in texts:
        wanted |= set(ngrams(row["text"], min(6, len(re.findall(r"\w+", row["text"])))))
    assert wanted == set(known.values())
    others = [text(generator.randint(1, 150)) * 2 for _ in range(100)] + ["", "..."]
    matches = index.matches(others, first=5)
    found = {(row["document"], known[row["ngram"]]) for row in matches}
    expected = {
        (number, run)
        for number, other in enumerate(others, 5)
        for count in (4, 5, 6)
        for run in ngrams(other, count)
        if run in wanted
    }
    assert found == expected and len(found) == len(matches) > 50


def test_evaluation_texts_that_change_or_go_are_noticed(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(40)]
    path = write_jsonl(tmp_path / "train.jsonl", texts)
    write_jsonl(tmp_path / "test.jsonl", [prose(77)])
    config = small_config(path, decontamination=DecontaminationConfig((str(tmp_path / "test.jsonl"),)))
    curate(config, tmp_path / "data", workers=1)
    assert not dropped_rows(tmp_path / "data", "deduplicate")
    write_jsonl(tmp_path / "test.jsonl", [texts[5], "a longer file"])
    curate(config, tmp_path / "data", workers=1)
    assert [row["id"].rpartition("#")[2] for row in dropped_rows(tmp_path / "data", "deduplicate")] == ["line6"]
    curate(replace(config, decontamination=DecontaminationConfig()), tmp_path / "data", workers=1)
    stages = [path.name.partition("_") for path in (tmp_path / "data/stages").glob("[0-9]*_*")]
    numbers = sorted(int(number) for number, _, _ in stages)
    assert numbers == list(range(len(stages))) and "evaluation" not in {name for _, _, name in stages}
    assert not list((tmp_path / "data").rglob("*matches*"))


def test_bad_evaluation_records_lose_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(
        b'{"text": "\\ud800 lone"}\n[1]\n{"text": 3}\n\xff\n{"text": ""}\n{"text": "\\u0000"}\n'
        + json.dumps({"text": " ".join(QUESTION)}).encode()
    )
    counts = built_index(tmp_path, DecontaminationConfig((str(path),)))
    assert counts.documents_out == 1
    assert counts.dropped == {"lone_surrogate": 1, "not_an_object": 1, "invalid_utf8": 1, "empty": 1, "nul_byte": 1}
    assert counts.documents_in == 6


@pytest.mark.parametrize(
    ("content", "patterns", "message"),
    [
        ('{"question": "Which?"}\n', ("test.jsonl",), "test.jsonl has no text.*text_fields, now text"),
        ("", ("absent-*.jsonl",), "no file matches"),
        (
            '{"text": "Which of them?"}\n[]\n',
            ("test.jsonl",),
            r"none of the 2 evaluation texts .*\(not_an_object 1, too_short 1\).*min_words = 8",
        ),
    ],
)
def test_evaluation_texts_that_cannot_be_found_are_an_error(
    tmp_path: Path, content: str, patterns: tuple[str, ...], message: str
) -> None:
    """Nothing would be dropped, and the dataset would be taken for clean."""
    (tmp_path / "test.jsonl").write_text(content)
    path = write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(40)])
    config = DecontaminationConfig(tuple(str(tmp_path / name) for name in patterns))
    with pytest.raises(UserError, match=message):
        curate(small_config(path, decontamination=config), tmp_path / "data", workers=1)
