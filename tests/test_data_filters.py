"""Quality filters, at the edges of their thresholds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_helpers import prose, words

from data_pipeline.config import CodeFilters, FilterConfig, MeasureConfig, ProseFilters
from data_pipeline.documents import Document
from data_pipeline.quality.code_signals import parses
from data_pipeline.quality.filters import drop_reasons
from data_pipeline.quality.prose_signals import DUPLICATE_NGRAMS, TOP_NGRAMS, prose_signals
from data_pipeline.quality.signals import measure
from data_pipeline.quality.words import WordTable, split_piece

# Everything switched off, so that each test turns on the one rule that it is about.
OPEN = ProseFilters(
    min_words=0,
    min_mean_word_length=0.0,
    max_mean_word_length=1e9,
    max_symbol_ratio=1e9,
    max_bullet_lines=1.0,
    max_ellipsis_lines=1.0,
    min_alphabetic_words=0.0,
    min_stop_words=0,
    max_duplicate_lines=1.0,
    max_duplicate_line_characters=1.0,
    min_words_for_repetition=10**9,
    min_punctuated_lines=0.0,
    max_short_lines=1.0,
    max_newlines_per_word=1e9,
    max_repeated_characters=1.0,
    max_word_characters=10**9,
    min_language_probability=0.0,
)
OPEN_CODE = CodeFilters(
    max_line_characters=10**9,
    max_mean_line_characters=1e9,
    min_alphanumeric=0.0,
    min_bytes=0,
    max_bytes=10**9,
    drop_generated=False,
    must_parse=False,
    drop_xml=False,
    min_visible_text=0.0,
    min_visible_characters=0,
)


def prose_reason(text: str, limits: ProseFilters) -> str | None:
    """Why `text` is dropped, measured among other texts."""
    documents = [Document("id", 0, "prose", "", "", "", each) for each in ("", text, "a\n\nb.", text)]
    signals = measure(documents, WordTable(), MeasureConfig(candidate_languages=("en",)))
    _, first, _, second = drop_reasons(signals, FilterConfig(prose=limits))
    assert first == second
    return first


def lines(count: int, of: int, marked: str, plain: str) -> str:
    return "\n".join([marked] * count + [plain] * (of - count))


@pytest.mark.parametrize(
    ("change", "passes", "fails", "reason"),
    [
        ({"min_words": 50}, "word " * 50, "word " * 49, "too_few_words"),
        ({"min_words": 50}, "word " * 50, "word " * 49 + "--- ***", "too_few_words"),  # punctuation is no word
        ({"max_words": 60}, "word " * 60, "word " * 61, "too_many_words"),
        ({"min_mean_word_length": 3.0}, "abc " * 9, "abc " * 8 + "ab", "mean_word_length"),
        ({"max_mean_word_length": 10.0}, "abcdefghij " * 9, "abcdefghij " * 8 + "abcdefghijk", "mean_word_length"),
        ({"max_symbol_ratio": 0.1}, "word " * 9 + "#", "word " * 9 + "##", "hashes"),
        ({"max_symbol_ratio": 0.1}, "word " * 9 + "…", "word " * 9 + "… ...", "ellipses"),
        ({"max_bullet_lines": 0.9}, lines(9, 10, "- a", "b"), lines(10, 10, "• a", "b"), "bullet_lines"),
        ({"max_ellipsis_lines": 0.3}, lines(3, 10, "a...", "b"), lines(4, 10, "a…", "b"), "ellipsis_lines"),
        ({"min_alphabetic_words": 0.8}, "a " * 8 + "1 2", "a " * 7 + "1 2 3", "few_letters"),
        ({"min_stop_words": 2}, "the cat and dog", "the the the cat", "stop_words"),
        (
            {"max_duplicate_lines": 0.3},
            "a\na\na\na\nb\nc\nd\ne\nf\ng",
            "a\na\na\na\na\nb\nc\nd\ne\nf",
            "duplicate_lines",
        ),
        ({"min_punctuated_lines": 0.12}, lines(12, 100, "a.", "b"), lines(11, 100, "a.", "b"), "unpunctuated_lines"),
        (
            {"max_short_lines": 0.67},
            lines(67, 100, "x" * 30, "y" * 31),
            lines(68, 100, "x" * 30, "y" * 31),
            "short_lines",
        ),
        ({"max_newlines_per_word": 0.3}, "a b c\n" * 3 + "d", "a b c\n" * 3 + "\nd", "newlines"),
        ({"min_sentences": 2}, "One two three. Four.\nfive", "One two three.\nFour.", "few_sentences"),
        ({"min_sentences": 1}, "A set of words.", "A {set} of words.", "few_sentences"),
        ({"max_word_characters": 1000}, "x" * 1000, "x" * 1001, "long_word"),
        ({"max_word_characters": 1000, "min_words": 500}, "a-" * 500, "a-" * 501, "long_word"),
        ({}, "lorem and ipsum", "Lorem ipsum dolor", "lorem_ipsum"),
    ],
)
def test_prose_threshold(change: dict[str, float], passes: str, fails: str, reason: str) -> None:
    limits = dataclasses.replace(OPEN, **change)  # type: ignore[arg-type]
    assert prose_reason(passes, limits) is None
    assert prose_reason(fails, limits) == reason


def test_duplicate_line_characters() -> None:
    limits = dataclasses.replace(OPEN, max_duplicate_line_characters=0.2)
    assert prose_reason(f"{'x' * 20}\n{'x' * 20}\n{'y' * 58}", limits) is None  # 20 of 100
    assert prose_reason(f"{'x' * 20}\n{'x' * 20}\n{'y' * 57}", limits) == "duplicate_line_characters"  # 20 of 99


def test_repeated_characters_are_of_those_outside_newlines() -> None:
    limits = dataclasses.replace(OPEN, max_repeated_characters=0.2)
    assert prose_reason(f"{'x' * 20}\n{'x' * 20}\n{'y' * 60}", limits) is None  # 20 of 100
    assert prose_reason(f"{'x' * 20}\n{'x' * 20}\n{'y' * 59}", limits) == "repeated_characters"  # 20 of 99


def test_paragraphs_are_compared_as_wholes() -> None:
    limits = dataclasses.replace(OPEN, max_duplicate_lines=0.3)
    first, others = "one\ntwo", [f"{number}\nx{number}" for number in range(6)]
    assert prose_reason("\n\n".join([first, *others, first]), limits) is None  # 1 of 8
    assert prose_reason("\n\n\n".join([first, *others[:1], first]), limits) == "duplicate_paragraphs"  # 1 of 3
    assert prose_reason("one\ntwo\n\none\nthree\n\ntwo x\ny", limits) is None  # no whole one repeats


def test_repetition() -> None:
    limits = dataclasses.replace(OPEN, min_words_for_repetition=1)
    assert prose_reason("one two one two three four five six seven eight", limits) == "top_2gram"
    assert prose_reason(prose(3, 200), limits) is None
    tail = " ".join(words(9, 40))
    assert prose_reason(f"{prose(3, 60)} {tail} {prose(4, 30)} {tail}", limits) == "duplicate_5grams"


def test_short_texts_are_not_measured_for_repetition() -> None:
    text = "Pope Pius IX\n\nPope Pius IX was head of the Catholic Church until his death in February 1878."
    assert prose_reason(text, dataclasses.replace(OPEN, min_words_for_repetition=1)) == "top_3gram"
    assert prose_reason(text, dataclasses.replace(OPEN, min_words_for_repetition=19)) is None


def plain_top(found: list[str], n: int) -> int:
    """Characters of the most frequent n-gram, by counting strings."""
    ngrams = [" ".join(found[start : start + n]) for start in range(len(found) - n + 1)]
    first = max(ngrams, key=ngrams.count, default="")
    return len(first) * ngrams.count(first)


def plain_repeated(found: list[str], n: int) -> int:
    """Characters of n-grams that occurred before, read from left to right without overlap."""
    seen: set[str] = set()
    total = place = 0
    while place + n <= len(found):
        ngram = "\x1f".join(found[place : place + n])
        if ngram in seen:
            total += len("".join(found[place : place + n]))
            place += n
        else:
            seen.add(ngram)
            place += 1
    return total


@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "d.", "e-f"]), max_size=60), min_size=1, max_size=4))
def test_ngram_measures_agree_with_a_plain_count(found: list[list[str]]) -> None:
    texts = [" ".join(pieces) for pieces in found]
    table = WordTable()
    signals = prose_signals(texts, table.read(texts), table)
    for number, text in enumerate(texts):
        split = [word for piece in text.split() for word in split_piece(piece)]
        for n in TOP_NGRAMS:
            assert signals[f"top_{n}gram"][number] * len(text) == pytest.approx(plain_top(split, n))
        for n in DUPLICATE_NGRAMS:
            assert signals[f"duplicate_{n}grams"][number] * len(text) == pytest.approx(plain_repeated(split, n))


@given(st.lists(st.text(st.sampled_from("ab .-\n…•é"), max_size=40), min_size=1, max_size=4))
def test_line_measures_agree_with_a_plain_count(texts: list[str]) -> None:
    table = WordTable()
    signals = prose_signals(texts, table.read(texts), table)
    for number, text in enumerate(texts):
        found = text.split("\n")
        filled = [line for line in found if line.strip()]
        again = [line for place, line in enumerate(filled) if line in filled[:place]]
        expected = {
            "bullet_lines": (sum(line.lstrip().startswith(("•", "-")) for line in found), len(found)),
            "ellipsis_lines": (sum(line.rstrip().endswith(("...", "…")) for line in found), len(found)),
            "punctuated_lines": (sum(line.endswith(".") for line in filled), len(filled)),
            "short_lines": (sum(len(line) <= 30 for line in filled), len(filled)),
            "repeated_characters": (sum(map(len, again)), len(text.replace("\n", ""))),
        }
        for name, (part, whole) in expected.items():
            assert signals[name][number] * max(1, whole) == pytest.approx(part), name
        assert signals["longest_piece"][number] == max(map(len, text.split()), default=0)


def code(text: str, origin: str = "file.py", **change: object) -> str | None:
    documents = [Document("id", 0, "code", origin, "MIT", "", each) for each in ("x\n", text)]
    limits = dataclasses.replace(OPEN_CODE, **change)  # type: ignore[arg-type]
    return drop_reasons(measure(documents, WordTable(), MeasureConfig()), FilterConfig(code=limits))[1]


def test_code_thresholds() -> None:
    assert code("x" * 1000, max_line_characters=1000) is None
    assert code("x" * 1001, max_line_characters=1000) == "long_line"
    assert code("x" * 100 + "\n" + "x" * 100, max_mean_line_characters=100.0) is None
    assert code("x" * 100 + "\n" + "x" * 101, max_mean_line_characters=100.0) == "mean_line_length"
    assert code("x---", min_alphanumeric=0.25) is None
    assert code("x----", min_alphanumeric=0.25) == "few_letters"
    assert code("é" * 50, min_bytes=100) is None
    assert code("é" * 49, min_bytes=100) == "too_small"
    assert code("x" * 100, max_bytes=100) is None
    assert code("x" * 101, max_bytes=100) == "too_large"


def test_code_must_parse_only_where_it_is_python() -> None:
    assert code("print 'two'", must_parse=True) == "syntax_error"
    assert code("print('three')", must_parse=True) is None
    assert code("print 'two'", "file.rb", must_parse=True) is None
    assert not parses("x = '\0'")
    assert not parses("(" * 5000)


def test_generated_code_is_known_by_its_header() -> None:
    assert code("# Auto-generated by a tool\nx = 1", drop_generated=True) == "generated"
    assert code("# DO NOT EDIT\nx = 1", drop_generated=True) == "generated"
    assert code("x = 1\n" * 10 + "# autogenerated\n", drop_generated=True) is None
    assert code("# Auto-generated\nx = 1") is None


def test_lengths_hold_for_every_kind_of_text() -> None:
    texts = ["word " * 10, "word " * 100, "word " * 1000]
    kinds = [
        Document(f"{kind}{size}", 0, kind, "", "", "", text)
        for kind in ("prose", "code")
        for size, text in enumerate(texts)
    ]
    columns = measure(kinds, WordTable(), MeasureConfig())
    reasons = drop_reasons(columns, FilterConfig(min_length=51, max_length=4999))
    assert [reason for reason in reasons if reason in {"too_short", "too_long"}] == ["too_short", "too_long"] * 2
    assert [reasons[place] for place in (0, 2, 3, 5)] == ["too_short", "too_long"] * 2
    assert not {"too_short", "too_long"} & set(drop_reasons(columns, FilterConfig()))
