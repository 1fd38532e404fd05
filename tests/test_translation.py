"""Verses in three Bibles become examples of translation, and translations are measured."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from inference_fixtures import ROOT, make_run

from common.cli import load_config, run_command
from common.errors import UserError
from common.runs import Run
from data_pipeline.config import DataConfig
from data_pipeline.dedup.evaluation_texts import EvaluationArgument, evaluation_texts, plan
from data_pipeline.documents import Document
from data_pipeline.examples.formats import read_records
from data_pipeline.translation import making
from data_pipeline.translation.config import TranslationConfig, check
from data_pipeline.translation.held_out import Split, split
from data_pipeline.translation.making import examples, texts
from data_pipeline.translation.sword import plain_text, read_module
from data_pipeline.translation.verses import Verse, aligned
from evaluation import translation
from evaluation.dictionary import Dictionary
from evaluation.harness.task_data import drawn
from evaluation.translation_scores import score
from inference import load_run

pytest.importorskip("pysword")
sacrebleu = pytest.importorskip("sacrebleu")


def test_markup_becomes_text_whose_words_stay_apart() -> None:
    for markup, text in {
        '<w lemma="strong:H0430">God</w><note placement="foot">The <b>word</b> Elohim.</note><w>created</w> it.': (
            "God created it."
        ),
        '<w>llamado</w><transChange type="added">á ser</transChange><w>apóstol</w>, <w>apartado</w>': (
            "llamado á ser apóstol, apartado"
        ),
        '<q who="Jesus">¶ <w>For</w> <w>God</w> so</q><note>x</note><q><w>loved</w></q>': "For God so loved",
        '<title canonical="true">A <w>Psalm</w>.</title> <l/>Yahweh &amp; I!<l/> Many': "A Psalm. Yahweh & I! Many",
        "<title>Heading</title>¡<w>OH</w> <divineName>Jehová</divineName>’s": "¡OH Jehová’s",
    }.items():  # fmt: skip
        assert plain_text(markup) == text


def make_package(path: Path, verses: dict[str, dict[int, str]]) -> Path:
    """A Debian package with a module whose testaments have these verses, by their place in the index."""
    files: dict[str, bytes] = {}
    for testament, found in verses.items():
        block = "".join(found.values()).encode()
        packed, rows, start = zlib.compress(block), [], 0
        for number in range(max(found) + 1):
            size = len(found.get(number, "").encode())
            rows.append(struct.pack("<IIH", 0, start, size))
            start += size
        files[f"{testament}.bzs"] = struct.pack("<III", 0, len(packed), len(block))
        files[f"{testament}.bzv"], files[f"{testament}.bzz"] = b"".join(rows) + bytes(10 * 40_000), packed
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./usr/share/sword/modules/texts/ztext/x/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = content.getvalue()
    header = b"data.tar.gz".ljust(48) + str(len(data)).encode().ljust(10) + b"`\n"
    path.write_bytes(b"!<arch>\n" + header + data)
    return path


def test_verses_are_found_by_their_place_in_the_versification(tmp_path: Path) -> None:
    # Two entries before the first book, one for the book, one for the chapter; Genesis 1 has 31 verses.
    package = make_package(
        tmp_path / "x.deb", {"ot": {4: "first", 34: "last", 36: "next chapter"}, "nt": {4: "Mátthew"}}
    )
    assert read_module(package, "kjv") == {
        ("Gen", 1, 1): "first", ("Gen", 1, 31): "last", ("Gen", 2, 1): "next chapter", ("Matt", 1, 1): "Mátthew",
    }  # fmt: skip
    package.write_bytes(package.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"x\.deb holds no readable Bible"):
        read_module(package, "kjv")


def words(*numbers: int, text: str = "word") -> str:
    return " ".join(f'<w lemma="strong:H{number:04d}">{text}{number}</w>' for number in numbers)


def test_a_chapter_that_is_counted_otherwise_is_aligned_by_its_words() -> None:
    english = {("Jonah", 2, number): words(*range(10 * number, 10 * number + 6)) for number in range(1, 6)}
    spanish = {("Jonah", 2, number + 1): text for (_, _, number), text in english.items()}
    spanish["Jonah", 2, 1] = words(901, 902, 903)
    markup: Any = {"kjv": english, "en": dict(english), "es": spanish}
    verses, left_out = aligned(markup)
    assert [verse.number for verse in verses] == [1, 2, 3, 4, 5] and not left_out
    assert all(verse.texts["es"] == verse.texts["kjv"] for verse in verses)
    markup["en"]["Jonah", 2, 3] *= 9  # holds more than the verse
    del markup["en"]["Jonah", 2, 4], spanish["Jonah", 2, 6]
    verses, left_out = aligned(markup)
    assert [verse.number for verse in verses] == [1, 2] and left_out.total() == 3


def verse(book: str, number: int, text: str) -> Verse:
    return Verse(book, 1, number, {"es": f"es {text}", "en": f"en {text}", "kjv": f"kjv {text}"})


def test_what_quotes_a_held_out_verse_is_not_learned_from() -> None:
    long = "the righteous shall live by faith and not by the works of the law alone he said"
    other = "a wholly different sentence about ships and the sea that stands in no other book at all"
    verses = [
        verse("Rom", 1, long),
        verse("Col", 1, "grace to you"),
        verse("Hab", 1, f"behold {long} twice"),
        verse("Hab", 2, other),
        verse("Gal", 1, "grace to you"),
    ]
    found = split(verses, TranslationConfig(test_books=("Rom",), validation_books=("Col",)))
    assert [each.name for each in found.train] == ["Hab 1:2"]
    assert {reason: [each.name for each in of] for reason, of in found.too_close.items()} == {
        "quotes": ["Hab 1:1", "Gal 1:1"]
    }
    with pytest.raises(UserError, match="no book 'Tobit'"):
        split(verses, TranslationConfig(test_books=("Tobit",), validation_books=("Col",)))
    with pytest.raises(UserError, match="no verse is left to train on: hold out fewer books"):
        split(verses, TranslationConfig(test_books=("Rom", "Hab"), validation_books=("Col", "Gal")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_books": ("Col",)}, "Col is among test_books and validation_books"),
        ({"test_books": ()}, "must each name a book"),
        ({"directions": (("es", "es"),)}, "two different versions"),
        ({"max_similarity": 0.0}, "max_similarity is 0.0"),
        ({"ngram_words": 0}, "ngram_words is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(TranslationConfig(**changes))


def test_examples_ask_as_the_fine_tune_reads_them(tmp_path: Path) -> None:
    directions = (*TranslationConfig().directions, ("en", "es"), ("kjv", "es"))
    rows = list(examples([verse("Gen", 1, "light")], directions))
    assert [row["prompt"] for row in rows] == [
        "es light\n<en>", "es light\n<kjv>", "en light\n<es>", "kjv light\n<es>",
    ]  # fmt: skip
    assert rows[0]["references"] == ["en light", "kjv light"] and rows[1]["references"] == ["kjv light", "en light"]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_records(path)
    assert read.format == "prompt_completion" and len(read.records) == 4 and not read.problems
    chapters = list(texts([verse("Gen", 1, "a"), verse("Gen", 2, "b")]))
    assert [row["text"] for row in chapters] == ["es a es b", "en a en b", "kjv a kjv b"]


def test_files_are_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    letters = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    verses = [
        verse(book, number, f"{book} {letters[number]} " * 5) for book in ("Gen", "Rom", "Col") for number in range(9)
    ]
    monkeypatch.setattr(making, "read_verses", lambda downloads: (verses, Counter({"a reason": 3})))
    config = TranslationConfig(test_books=("Rom",), validation_books=("Col",))
    contents = []
    for _ in range(2):
        making.make(config, tmp_path / "data" / "es_en", "python -m data_pipeline CONFIG")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "data" / "es_en").iterdir()})
    assert contents[0] == contents[1]
    assert {name: data.count(b"\n") for name, data in contents[0].items() if name != "README.md"} == {
        "train.jsonl": 18, "validation.jsonl": 9, "test.jsonl": 9, "texts.jsonl": 3,
    }  # fmt: skip
    assert "| a reason | 3 |" in contents[0]["README.md"].decode()
    assert "9 to train on, 9 in Rom to test" in capsys.readouterr().out


def test_the_base_reads_no_held_out_verse_in_any_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held_out = [verse(book, 1, f"{book} of twelve words and of more") for book in ("Rom", "Col")]
    parts = Split([verse("Gen", 1, "light")], held_out[1:], held_out[:1], {})
    monkeypatch.setattr(making, "read_verses", lambda downloads: ([], Counter()))
    monkeypatch.setattr(making, "split", lambda verses, config: parts)
    recipe = load_config(ROOT / "configs/data/translation_es_en.py", TranslationConfig)
    making.make(recipe, Path("data/translation_es_en"), "python -m data_pipeline CONFIG")
    base = load_config(ROOT / "configs/data/translation_base.py", DataConfig)
    files, _ = plan(base.decontamination, base.collection)
    found = evaluation_texts(EvaluationArgument(files, base.decontamination, base.collection, base.cleaning))
    texts = [one.text for one in found if isinstance(one, Document)]
    assert sorted(texts) == sorted(text for one in held_out for text in one.texts.values())


SPANISH = ["El gato come pan", "El perro come carne", "La gata bebe leche", "El gato bebe agua"]
ENGLISH = ["The cat eats bread", "The dog eats meat", "The kitten drinks milk", "The cat drinks water"]


def test_a_dictionary_is_learned_from_sentences() -> None:
    dictionary = Dictionary(SPANISH, ENGLISH)
    assert dictionary.translate("¿El perro bebe agua?") == "The dog drinks water?"
    assert dictionary.translate("GATO, zorro!") == "Cat, zorro!"


def test_scores_are_those_of_sacrebleu_and_the_better_system_is_found() -> None:
    references = [[f"{text} and then goes home {n} times", f"well , {text} {n}"] for n, text in enumerate(ENGLISH * 6)]
    good = [first.replace("then ", "") if n % 3 else first for n, (first, _) in enumerate(references)]
    bad = [" ".join(reversed(first.split())) for first, _ in references]
    found = score({"bad": bad, "good": good}, references, baseline="bad")
    first = [one for one, _ in references]
    expected = sacrebleu.corpus_bleu(good, [first])
    system = found.systems["good"]
    assert system.bleu == pytest.approx(expected.score) and system.length_ratio == pytest.approx(
        expected.sys_len / expected.ref_len
    )
    assert system.all_references == pytest.approx(
        sacrebleu.corpus_bleu(good, [first, [other for _, other in references]]).score
    )
    assert system.chrf == pytest.approx(sacrebleu.corpus_chrf(good, [first], word_order=2).score)
    assert system.low < system.bleu < system.high and (system.p or 0) < 0.05
    assert found.systems["bad"].p is None and list(found.systems) == ["bad", "good"]
    assert "tok:13a" in found.signatures["BLEU"]
    with pytest.raises(ValueError, match="24 translations"):
        score({"bad": bad, "good": good[1:]}, references, baseline="bad")
    with pytest.raises(UserError, match="different numbers"):
        score({"bad": bad}, [["one"], ["one", "two"]], baseline="bad")


def write_examples(data: Path, references: int = 2) -> list[dict[str, Any]]:
    """train.jsonl and test.jsonl, the last verse of which has so many references; the others have two."""
    data.mkdir()
    rows = [
        {"prompt": f"{es}\n<en>", "completion": f" {en}", "source": es, "references": [f"{en} now .", f"now {en} ."]}
        for es, en in zip(SPANISH, ENGLISH, strict=True)
    ]
    rows[-1]["references"] = rows[-1]["references"][:references]
    for name in ("train", "test"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_what_cannot_be_scored_is_told_before_anything_is_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "tuned")
    write_examples(tmp_path / "data")
    monkeypatch.setattr(translation, "translate", lambda *_: pytest.fail("translated for nothing"))
    for number in (1, 0):
        write_examples(tmp_path / f"odd{number}", number)
        with pytest.raises(UserError, match="different numbers of references" if number else "holds no translations"):
            translation.main(["tuned", "--data", f"odd{number}", "--device", "cpu"])
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # as where it is not installed
    with pytest.raises(UserError, match="sacrebleu is not here"):
        translation.main(["tuned", "--data", "data", "--device", "cpu"])


def test_a_run_is_measured_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "tuned")
    data = tmp_path / "data"
    rows = write_examples(data)
    with pytest.raises(SystemExit) as ended:
        run_command(
            translation.main, ["tuned", "--data", str(data), "--max-new-tokens", "5", "--device", "cpu", "--limit", "3"]
        )
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert "the base did not translate: " in printed.out and "did not start from another model" in printed.out
    result = json.loads((run / "translation.json").read_text())
    assert result["verses"] == 3 and list(result["systems"]) == [
        translation.COPY, translation.DICTIONARY, translation.TUNED, translation.HUMAN,
    ]  # fmt: skip
    assert "did not start from another model" in result["without_base"]
    assert result["systems"][translation.DICTIONARY]["bleu"] > result["systems"][translation.COPY]["bleu"]
    written = [json.loads(line)["translations"] for line in (run / "translations.jsonl").read_text().splitlines()]
    loaded = load_run(Run(run), device="cpu")
    kept = drawn(rows, 3, 0)
    assert [each[translation.COPY] for each in written] == [row["source"] for row in kept]
    again = translation.translate(loaded.model, loaded.tokenizer, kept, 5)
    assert [each[translation.TUNED] for each in written] == again
    (data / "test.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(UserError, match="holds no translations with"):
        translation.read_examples(data / "test.jsonl")
