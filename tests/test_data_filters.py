"""Quality filters, at the edges of their thresholds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_data_helpers import prose, words

from data_pipeline.config import CodeFilters, ProseFilters
from data_pipeline.documents import Document
from data_pipeline.filters import code_reason, duplicate_characters, parses, prose_reason, top_ngram_characters

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
    max_word_characters=10**9,
)
OPEN_CODE = CodeFilters(
    max_line_characters=10**9,
    max_mean_line_characters=1e9,
    min_alphanumeric=0.0,
    min_bytes=0,
    max_bytes=10**9,
    drop_generated=False,
    must_parse=False,
)


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
        ({"max_symbol_ratio": 0.1}, "word " * 10 + "#", "word " * 10 + "##", "symbols"),
        ({"max_symbol_ratio": 0.1}, "word " * 10 + "…", "word " * 10 + "… ...", "symbols"),
        ({"max_bullet_lines": 0.9}, lines(9, 10, "- a", "b"), lines(10, 10, "• a", "b"), "bullet_lines"),
        ({"max_ellipsis_lines": 0.3}, lines(3, 10, "a...", "b"), lines(4, 10, "a…", "b"), "ellipsis_lines"),
        ({"min_alphabetic_words": 0.8}, "a " * 8 + "1 2", "a " * 7 + "1 2 3", "few_letters"),
        ({"min_stop_words": 2}, "The cat and dog", "the the the cat", "stop_words"),
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
        ({"max_word_characters": 1000}, "x" * 1000, "x" * 1001, "long_word"),
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


def test_repetition_counts_only_what_repeats() -> None:
    limits = dataclasses.replace(OPEN, min_words_for_repetition=1)
    assert prose_reason("one two three four five", limits) is None
    assert prose_reason("one two one two three four five six seven eight", limits) == "top_2gram"
    assert prose_reason(prose(3, 200), limits) is None
    tail = " ".join(words(9, 40))
    assert prose_reason(f"{prose(3, 60)} {tail} {prose(4, 30)} {tail}", limits) == "duplicate_5grams"


def test_short_texts_are_not_measured_for_repetition() -> None:
    text = "Pope Pius IX\n\nPope Pius IX was head of the Catholic Church until his death in February 1878."
    assert prose_reason(text, dataclasses.replace(OPEN, min_words_for_repetition=1)) == "top_3gram"
    assert prose_reason(text, dataclasses.replace(OPEN, min_words_for_repetition=19)) is None


def test_ngram_measures_agree_with_a_plain_count() -> None:
    generator = np.random.default_rng(0)
    for n in (2, 3, 5):
        tokens = generator.integers(0, 4, 60)
        lengths = generator.integers(1, 9, 60)
        ngrams = [tuple(tokens[i : i + n].tolist()) for i in range(60 - n + 1)]
        hashes = np.array([hash(ngram) & (2**63 - 1) for ngram in ngrams], np.uint64)
        most = max(map(ngrams.count, ngrams))
        top = [i for i, ngram in enumerate(ngrams) if ngrams.count(ngram) == most]
        expected = most * max(int(lengths[i : i + n].sum()) for i in top) if most > 1 else 0
        # The same n-gram may stand over words of other lengths here; the first occurrence is what counts.
        firsts = [i for i in top if ngrams.index(ngrams[i]) == i]
        assert top_ngram_characters(hashes, lengths, n) in {
            expected,
            most * max(int(lengths[i : i + n].sum()) for i in firsts),
        }
        covered = {i + k for i, ngram in enumerate(ngrams) if ngram in ngrams[:i] for k in range(n)}
        assert duplicate_characters(hashes, lengths, n) == sum(int(lengths[i]) for i in covered)


def code(text: str, origin: str = "file.py", **change: object) -> str | None:
    document = Document("id", 0, "code", origin, "MIT", "", text)
    return code_reason(document, dataclasses.replace(OPEN_CODE, **change))  # type: ignore[arg-type]


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
