"""Language, lexicon, character model and the rules for source files: what each drops and what it keeps."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from test_data_filters import OPEN, OPEN_CODE, code
from test_data_helpers import dropped_rows, prose, small_config, write_jsonl
from test_data_pipeline import said

from common.errors import UserError
from data_pipeline import documents
from data_pipeline.config import DataConfig, FilterConfig, MeasureConfig, ProseFilters
from data_pipeline.config_checks import check
from data_pipeline.documents import Document, stable_hash, write_row
from data_pipeline.pipeline import curate
from data_pipeline.quality import character_model
from data_pipeline.quality.character_model import CharacterModel
from data_pipeline.quality.code_signals import comment_characters, visible_characters
from data_pipeline.quality.filters import drop_reasons, language_codes
from data_pipeline.quality.language import LANGUAGES, identify
from data_pipeline.quality.lexicon import LEXICONS, toxic_words
from data_pipeline.quality.signals import MeasureArgument, measure, measure_shard
from data_pipeline.quality.words import WordTable
from data_pipeline.sources.config import TextFiles

TEXTS = {
    "en": "The river rises in the hills above the town and reaches the sea after eighty miles. Its valley was settled"
    " early, and two of the bridges that cross it are older than the oldest house in the county.",
    "es": "El río nace en las colinas que dominan la ciudad y llega al mar después de un largo recorrido. Su valle fue"
    " poblado muy pronto, y dos de los puentes que lo cruzan son más antiguos que las casas de la comarca.",
    "fr": "La rivière prend sa source dans les collines et se jette dans la mer après un long parcours. Sa vallée est"
    " habitée depuis longtemps, et deux des ponts qui la traversent sont plus vieux que les maisons du bourg.",
    "de": "Der Fluss entspringt in den Hügeln über der Stadt und erreicht nach achtzig Meilen das Meer. Sein Tal ist"
    " früh besiedelt worden, und zwei von den Brücken sind älter als das älteste Haus der Gegend.",
    "pt": "O rio nasce nas colinas que dominam a cidade e chega ao mar depois de um longo percurso. O seu vale foi"
    " povoado muito cedo, e duas das pontes que o atravessam são mais antigas do que as casas da região.",
    "it": "Il fiume nasce nelle colline che dominano la città e raggiunge il mare dopo un lungo percorso. La sua valle"
    " fu abitata molto presto, e due dei ponti che lo attraversano sono più antichi delle case del paese.",
    "fi": "Joki alkaa kaupungin yläpuolella olevilta kukkuloilta ja laskee mereen pitkän matkan jälkeen. Sen laakso"
    " asutettiin varhain, ja kaksi sen ylittävistä silloista on vanhempia kuin seudun vanhin talo.",
    "ru": "Река берёт начало на холмах над городом и после долгого пути впадает в море. Долина была заселена рано, и"
    " два моста через неё старше самого старого дома в округе.",
}


def reasons(texts: list[str], measures: MeasureConfig, model: CharacterModel | None = None, **change: object) -> list:
    """Why each text is dropped where nothing but `change` is asked of it."""
    columns = measure([Document("id", 0, "prose", "", "", "", text) for text in texts], WordTable(), measures, model)
    return drop_reasons(columns, FilterConfig(prose=dataclasses.replace(OPEN, **change)))  # type: ignore[arg-type]


def test_languages_are_told_apart() -> None:
    found, probabilities = identify([*TEXTS.values(), *(text.upper() for text in TEXTS.values())])
    assert [LANGUAGES[number] for number in found] == [*TEXTS, *TEXTS]
    assert probabilities.min() > 0.65 and probabilities.max() <= 1


def test_languages_and_probabilities_are_those_of_the_library() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    assert sorted({"und", *library.labels}) == sorted(LANGUAGES)
    texts = [
        *TEXTS.values(),
        "Zoë",
        "Ελλάδα",
        "東京は日本の首都である。",
        "srpski језик",
        "e\u0301te\u0301 dernier",
        "word " * 9,
    ]
    for text, number, probability in zip(texts, *identify(texts), strict=True):
        language, expected = library.classify(text)
        assert LANGUAGES[number] == language
        assert probability == pytest.approx(expected, rel=1e-3)


def test_a_text_without_a_language_has_none() -> None:
    for text in ("", "😀😀"):
        (number,), (probability,) = identify([text])
        assert LANGUAGES[number] == "und" and probability == 0


def test_only_candidates_are_found() -> None:
    text = "Naguib Mahfuz\n\nNaguib Mahfuz fue un escritor, columnista, dramaturgo y guionista egipcio."
    found, probabilities = identify([text, TEXTS["fi"]], ("en", "es", "fr"))
    assert LANGUAGES[found[0]] == "es" and probabilities[0] > 0.9 > identify([text])[1][0]
    assert LANGUAGES[found[1]] in ("en", "es", "fr")
    found, probabilities = identify([text, ""], ("fr",))
    assert [LANGUAGES[number] for number in found] == ["fr", "fr"] and probabilities.tolist() == [1, 1]


def test_only_the_wanted_languages_are_kept_and_only_where_they_are_certain() -> None:
    texts = [*TEXTS.values(), "Uitgang exit salida"]
    assert reasons(texts, MeasureConfig()) == [None] * len(texts)
    found = reasons(texts, MeasureConfig(), languages=("en", "fr"), min_language_probability=0.65)
    assert [language for language, reason in zip(TEXTS, found, strict=False) if not reason] == ["en", "fr"]
    assert found[1] == "other_language"
    assert reasons(texts, MeasureConfig(), min_language_probability=0.65) == [
        *[None] * len(TEXTS),
        "uncertain_language",
    ]


def test_stop_words_are_those_of_the_language() -> None:
    listed = list(MeasureConfig().stop_words)
    found = reasons(list(TEXTS.values()), MeasureConfig(), min_stop_words=2)
    assert found == [None] * len(TEXTS) and listed == ["en", "es", "fr", "de", "pt", "it"]
    none_left = MeasureConfig(stop_words=dict.fromkeys(listed, ("the", "and")))
    judged = reasons(list(TEXTS.values()), none_left, min_stop_words=1)
    assert judged == [None, *["stop_words"] * 5, None, None]  # Finnish and Russian have no list


def test_a_text_dense_with_toxic_words_is_dropped() -> None:
    for language in LEXICONS:
        spam = [entry[number % 3] for number, entry in enumerate(toxic_words(language)[::12])]
        text = f"{TEXTS[language]} {' '.join(spam)}"
        assert reasons([text], MeasureConfig(), max_toxic_words=0.05, min_different_toxic_words=3) == ["toxic"]
        assert reasons([text], MeasureConfig()) == ["toxic"]  # the default
        assert reasons([text], MeasureConfig(), max_toxic_words=0.9) == [None]
        elsewhere = f"{TEXTS['fi']} {TEXTS['fi']} {' '.join(spam[:4])}"
        assert reasons([elsewhere], MeasureConfig()) == [None]  # no lexicon for Finnish
        listed = LEXICONS[language].read_text(encoding="utf-8").split()
        assert listed == sorted(set(listed)) and all(word == word.lower() for word in listed)


def test_a_text_about_toxic_words_is_kept() -> None:
    first, second, third = (entry[0] for entry in toxic_words("en")[:3])
    article = (
        f"The word “{first}” is a vulgarism that dictionaries have listed since the eighteenth century. Linguists who"
        f" study taboo compare it with “{second}” and “{third}”, which are younger. " + TEXTS["en"] + TEXTS["en"]
    )
    assert reasons(
        [article, f"{TEXTS['en']} {first} " * 3, f"He said {first}, {first}, {first}."], MeasureConfig()
    ) == [
        None,
        None,
        None,
    ]


def test_innocent_words_that_hold_or_resemble_toxic_ones_are_kept() -> None:
    innocent = (
        "Scunthorpe Penistone Essex Sussex Middlesex Cockermouth Shitterton Lightwater Arsenal assassin classic"
        " analysis cocktail peacock cum laude document Dickens Hancock Matsushita shiitake therapist pussycat titmouse"
        " bass sextant basement breast penis vagina gay lesbian queer homosexual sex education rape seed"
        " niggardly snigger"
    )
    columns = measure(
        [Document("id", 0, "prose", "", "", "", f"{TEXTS['en']} {innocent}")], WordTable(), MeasureConfig()
    )
    assert language_codes(columns["language"]) == ["en"]
    assert columns["toxic_words"] == 0 and columns["different_toxic_words"] == 0


@pytest.fixture(scope="module")
def model() -> CharacterModel:
    return CharacterModel.trained_on([prose(seed, 200) for seed in range(200)])


def test_probabilities_of_the_next_character_sum_to_one(model: CharacterModel) -> None:
    symbols, examples = np.unique(model.symbols, return_index=True)
    assert 20 < len(symbols) <= 256
    for history in ("", "th", "the bodar", "Qzé~j"):
        before = model.bits_per_character([history])[0] * len(history)
        texts = [history + chr(example) for example in examples[1:]]
        after = model.bits_per_character(texts) * (len(history) + 1)
        end = model.singles[0]  # the end of a text takes a little too
        assert 1 - end - 0.02 < np.exp2(before - after).sum() < 1.0001


def test_what_reads_like_the_reference_takes_fewer_bits(model: CharacterModel) -> None:
    text = prose(1000, 200)
    shuffled = "".join(random.Random(0).sample(text, len(text)))
    like, english, noise = model.bits_per_character([text, TEXTS["en"], shuffled])
    assert like < 3 < english < noise
    assert reasons([text, TEXTS["en"]], MeasureConfig(), model, max_bits_per_character=3.0) == [
        None,
        "unlike_reference",
    ]
    assert reasons([text, TEXTS["en"]], MeasureConfig(), None, max_bits_per_character=0.1) == [None, None]


def test_a_score_does_not_depend_on_other_texts(model: CharacterModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "x", *TEXTS.values(), prose(5), ""]
    together = model.bits_per_character(texts)
    monkeypatch.setattr(character_model, "_CHUNK", 7)
    assert [model.bits_per_character([text])[0] for text in texts] == together.tolist()
    assert together[0] == 0


def test_the_sample_is_bounded_and_the_same_in_any_order(tmp_path: Path) -> None:
    first, second, third = sorted(("a", "b", "c"), key=lambda name: stable_hash("reference", name))
    sizes = {first: 10, second: 100, third: 5}  # the second does not fit, and the third may not take its place
    paths = []
    for number, name in enumerate(sizes):
        paths.append(tmp_path / f"{number}.jsonl")
        with paths[-1].open("w", encoding="utf-8") as file:
            write_row(file, Document(name, 0, "prose", "", "", "", name * sizes[name]))
            write_row(file, Document(f"{name} in code", 0, "code", "", "", "", "x = 1"))
    for order in permutations(paths):
        assert character_model.sample(order, 20) == [first * 10]
        assert sorted(character_model.sample(order, 115)) == sorted(name * size for name, size in sizes.items())


def test_columns_do_not_depend_on_batch_borders(
    model: CharacterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = tmp_path / "shard.jsonl"
    with shard.open("w", encoding="utf-8") as file:
        for number, text in enumerate([*TEXTS.values(), *map(prose, range(20)), "x", "1 2 3"]):
            write_row(file, Document(str(number), 0, "prose", "", "", "", text))
            write_row(file, Document(f"{number}c", 0, "code", "a.py", "", "", f"# {text!r}\nx = {number}\n"))
    argument = MeasureArgument(shard, MeasureConfig(), None)
    measure_shard("whole", tmp_path, argument)
    monkeypatch.setattr(documents, "_BATCH_CHARACTERS", 500)
    measure_shard("parts", tmp_path, argument)
    with np.load(tmp_path / "whole.signals.npz") as whole, np.load(tmp_path / "parts.signals.npz") as parts:
        assert len(whole.files) > 40
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], parts[name], name)


def mixed_config(folder: Path, **filters: object) -> DataConfig:
    """Sixty good texts, and thirty of which every third is noise."""
    noise = random.Random(1)
    others = [prose(seed) for seed in range(500, 530)]
    others[::3] = ["".join(noise.sample(text, len(text))) for text in others[::3]]
    paths = [
        write_jsonl(folder / "good.jsonl", [prose(seed) for seed in range(60)]),
        write_jsonl(folder / "mixed.jsonl", others),
    ]
    limits = dataclasses.replace(OPEN, **filters)  # type: ignore[arg-type]
    measures = MeasureConfig(candidate_languages=("en",), reference_sources=("source0",))
    return small_config(*paths, measures=measures, filters=FilterConfig(prose=limits))


def test_a_percentile_drops_what_reads_least_like_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    config = mixed_config(tmp_path, max_bits_percentile=88.0)
    curate(config, out, workers=1)
    capsys.readouterr()
    dropped = dropped_rows(out, "filter")
    assert sorted(int(row["id"].rpartition("line")[2]) for row in dropped) == list(range(1, 31, 3))
    assert {row["reason"] for row in dropped} == {"unlike_reference"}
    looser = dataclasses.replace(config.filters.prose, max_bits_percentile=95.0)
    config = dataclasses.replace(config, filters=FilterConfig(prose=looser))
    curate(config, out, workers=1)
    worked = said(capsys)
    assert [stage for stage, busy in worked.items() if not busy][:4] == ["collect", "clean", "reference", "measure"]
    assert worked["filter"] and worked["sketch"] and len(dropped_rows(out, "filter")) == 4
    smaller = dataclasses.replace(config, measures=dataclasses.replace(config.measures, reference_bytes=5000))
    curate(smaller, out, workers=1)
    worked = said(capsys)
    assert worked["reference"] and worked["measure"] and not worked["clean"]


def test_the_language_travels_into_the_provenance(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*(TEXTS["en"] + prose(seed) for seed in range(40)), TEXTS["fr"] * 2])
    config = small_config(
        path, measures=MeasureConfig(candidate_languages=("en", "fr")), filters=FilterConfig(prose=OPEN)
    )
    manifest = curate(config, tmp_path / "data", workers=1)
    rows = [
        json.loads(line)
        for name in manifest["files"]
        if name.endswith(".documents.jsonl")
        for line in (tmp_path / "data" / name).read_text(encoding="utf-8").splitlines()
    ]
    assert sorted(row["language"] for row in rows) == ["en"] * 40 + ["fr"]


def test_mistakes_in_the_measures_are_named() -> None:
    with pytest.raises(UserError, match=r"filters\.prose\.languages names 'english'; known are und, ace"):
        check(DataConfig(filters=FilterConfig(prose=ProseFilters(languages=("english",)))))
    with pytest.raises(UserError, match=r"measures\.reference_sources names 'wiki'; known are wikipedia, python"):
        check(DataConfig(measures=MeasureConfig(reference_sources=("wiki",))))
    with pytest.raises(UserError, match=r"name sources that read well in measures\.reference_sources"):
        check(DataConfig(filters=FilterConfig(prose=ProseFilters(max_bits_percentile=90.0))))


def test_a_reference_without_prose_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 50)
    source = TextFiles(patterns=(str(tmp_path / "*.py"),), name="code")
    config = DataConfig(sources=(source,), measures=MeasureConfig(reference_sources=("code",)))
    with pytest.raises(UserError, match="hold no prose to learn from"):
        curate(config, tmp_path / "data", workers=1)


def test_code_of_other_kinds_is_known_by_its_content() -> None:
    header = '<?xml version="1.0"?>\n<a>some text of a file</a>'
    assert code(header, "a.svg", drop_xml=True) == "xml"
    assert code("<!-- " + "x" * 100 + header, "a.svg", drop_xml=True) is None
    assert code(header, "a.xslt", drop_xml=True) is None
    assert code(header, "a.svg") is None
    page = "<html><head><style>p {color: red}</style><script>var a = 1 < 2;</script></head><body><p class='x'>Ab cd</p>"
    assert visible_characters(page, ".html") == 4 and np.isnan(visible_characters(page, ".py"))
    shown = f"<p class='{'c' * 388}'>{'x' * 100}</p>"  # 100 of 503
    assert code(shown, "a.html", min_visible_text=0.19, min_visible_characters=100) is None
    assert code(shown, "a.HTM#line1", min_visible_text=0.2) == "little_visible_text"
    assert code("<p>" + "x" * 99, "a.html", min_visible_characters=100) == "few_visible_characters"
    assert code(shown, "a.py", min_visible_text=0.9) is None


def test_share_of_comments() -> None:
    text = '"""Docs."""\nx = "# no comment"\ndef f():\n    r"""More\n    docs."""\n    return """no docs"""  # one\n'
    assert comment_characters(text, ".py") == len('"""Docs.""""""More\n    docs."""# one')
    assert comment_characters('/* a */ x = "// b"; // c\n', ".js") == len("/* a */") + len("// c")
    assert np.isnan(comment_characters("# a", ".rb"))
    assert code("x = 1  # one", min_comments=0.01, max_comments=0.8) is None
    assert code("x = 1", min_comments=0.01) == "few_comments"
    assert code("# one two three four five\nx", max_comments=0.8) == "many_comments"
    assert code("# one two three four five\nx", "a.rb", max_comments=0.8) is None
    assert OPEN_CODE.min_comments == 0 and OPEN_CODE.max_comments == 1  # off unless asked for


@pytest.mark.parametrize(
    "text", ['"""\\' * 30_000 + "\\", '"""' * 33_333 + '"', "/*" * 50_000, '"\\' * 50_000, "'" * 99_999]
)
def test_hostile_code_is_read_once(text: str) -> None:
    """A search that began anew at every quote would take minutes."""
    for kind in (".py", ".js"):
        assert 0 <= comment_characters(text, kind) <= len(text)
    assert visible_characters(f"<script>{'<a' * 50_000}{'<!--' * 20_000}", ".html") == 0
