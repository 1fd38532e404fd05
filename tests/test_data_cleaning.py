"""Cleaning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning import clean, close_holes
from data_pipeline.config import CleaningConfig
from data_pipeline.documents import Document


def cleaned(text: str, kind: str = "prose") -> tuple[str, str | None]:
    document = Document("id", 0, kind, "file", "CC0-1.0", "", text)
    reason = clean(document, CleaningConfig())
    return document.text, reason


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc\u2028d\u2029e\x85f\x0cg", "a\nb\nc\nd\ne\nf\ng"),
        ("tab\tstays, bell\x07 goes, \ufeffmark goes", "tab\tstays, bell goes, mark goes"),
        ("cafe\u0301", "café"),
        ("bar \u2581\u2581 bar", "bar __ bar"),
        ("trailing  \t\nspace \u00a0\nends ", "trailing\nspace\nends"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\n\n  indented first line\n\n", "  indented first line"),
        ("👩‍👩‍👧 שלום", "👩‍👩‍👧 שלום"),
    ],
)
def test_prose(raw: str, expected: str) -> None:
    assert cleaned(raw) == (expected, None)


def test_code_keeps_indentation_tabs_and_unicode_form() -> None:
    code = "def f():\n\tif x:\n\t    return 'cafe\u0301\u2028'\n\n\ndef g():  pass"
    assert cleaned(code.replace("\n", "\r\n") + "\x0c\r\n", "code") == (code, None)


def test_blank_documents_are_dropped() -> None:
    assert cleaned(" \n\x07\n\t ")[1] == "empty"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A chair ( ) is a seat", "A chair is a seat"),
        ("Aniline () is", "Aniline is"),
        ("Avogadro (, also, Italian: [x]; 1776) was", "Avogadro (Italian: [x]; 1776) was"),
        ("Bach ( , ; ) was", "Bach was"),
        ("Mount Fuji  is 3 km .", "Mount Fuji is 3 km."),
        ("the river ; the name", "the river; the name"),
        ("born (1809 ;  ) there", "born (1809) there"),
        ("keeps (this) and [that], 0, 1, ..., 9", "keeps (this) and [that], 0, 1, ..., 9"),
    ],
)
def test_holes_in_encyclopedia_text_are_closed(raw: str, expected: str) -> None:
    assert close_holes(raw) == expected
    assert cleaned(raw, "wiki") == (expected, None)


def test_spaces_before_marks_stay_in_other_prose() -> None:
    assert cleaned("Vraiment ; ( ) oui .") == ("Vraiment ; ( ) oui .", None)


def test_text_that_lost_its_formulas_is_dropped() -> None:
    text = "The result of  is , which by  equals . That is, the function  is applied to  ."
    assert cleaned(text, "wiki")[1] == "missing_formulas"
    assert cleaned(text, "prose")[1] is None
    assert cleaned(text + "\n" + "Whole sentences follow. " * 100, "wiki")[1] is None


@given(st.text(max_size=300), st.sampled_from(["prose", "code", "wiki"]))
def test_cleaning_twice_changes_nothing_more(text: str, kind: str) -> None:
    once, reason = cleaned(text, kind)
    if reason is None and kind != "wiki":
        assert cleaned(once, kind) == (once, None)
    assert "\u2581" not in once and "\r" not in once
