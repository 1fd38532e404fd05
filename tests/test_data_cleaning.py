"""Cleaning."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning import clean, close_holes
from data_pipeline.config import CleaningConfig
from data_pipeline.documents import Document


def cleaned(text: str, kind: str = "prose", repairs: Counter[str] | None = None) -> tuple[str, str | None]:
    document = Document("id", 0, kind, "file", "CC0-1.0", "", text)
    reason = clean(document, CleaningConfig(), Counter() if repairs is None else repairs)
    return document.text, reason


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc\u2028d\u2029e\x85f\x0cg", "a\nb\nc\nd\ne\nf\ng"),
        ("tab\tstays, bell\x07 goes, \ufeffmark goes", "tab\tstays, bell goes, mark goes"),
        ("cafe\u0301", "café"),
        ("bar \u2581\u2581 bar", "bar __ bar"),
        ("\u00e2\u2013\u0081hello", "_hello"),  # a bar again once its encoding is repaired
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
        ("born (1809\n ) in [ , ; ] (: Ulm) and\n ( / ) died", "born (1809) in (Ulm) and died"),
        ("a , ; ) b (,;c )", "a ,) b (;c)"),
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


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The cafÃ© sells crÃ¨me brÃ»lÃ©e.", "The café sells crème brûlée."),
        ("Itâ€™s broken â€œtwiceâ€\x9d.", "It’s broken “twice”."),
        ("São Paulo, Ångström, ½ × 3 — “fine”", "São Paulo, Ångström, ½ × 3 — “fine”"),
        ("HÃ SÆN", "HÃ SÆN"),
    ],
)
def test_mojibake_is_undone_and_nothing_else(raw: str, expected: str) -> None:
    repairs: Counter[str] = Counter()
    assert cleaned(raw, repairs=repairs) == (expected, None)
    assert repairs["repaired_encodings"] == (raw != expected)
    assert cleaned(raw, "code")[0] == raw


def test_boilerplate_lines_go() -> None:
    buttons = "Read more\n» Subscribe now!\n© 2024 A. Company, all rights reserved\n12 comments"
    text = f"A title\n{buttons}\nIt reads more than that."
    repairs: Counter[str] = Counter()
    assert cleaned(text, repairs=repairs) == ("A title\nIt reads more than that.", None)
    assert repairs["boilerplate_lines"] == 4
    assert cleaned("# Read more", "code")[0] == "# Read more"


PERSONAL = [
    ("Write to jane.doe+x@mail.some-where.co.uk, please.", "Write to <EMAIL>, please."),
    ("Write to <jane@host.org>.", "Write to <<EMAIL>>."),
    ("user@example.com and a@b and @name and x@y.z1 stay", None),
    (
        "The server 8.8.8.8 answers; 192.168.0.1 and 127.0.0.1 are local.",
        "The server <IP_ADDRESS> answers; 192.168.0.1 and 127.0.0.1 are local.",
    ),
    ("version 8.8.4.4, v1.2.3.4, torch==9.8.7.6, 8.8.8.8.8, 300.1.1.1", None),
    ('version = "1.2.3.4", "version": "1.2.3.4", Version: 4.0.0.0, releases (1.2.3.4)', None),
    ("see Section 5.6.7.8 and OID 8.5.4.3; NAME_OID = '8.5.4.3', or 2.5.4.3, \"1.3.6.1\", 2.5.29.17", None),
    ("Avoid 8.8.8.8. A new release. 8.8.4.4 too", "Avoid <IP_ADDRESS>. A new release. <IP_ADDRESS> too"),
    ("at 2001:4860:4860::8888 now", "at <IP_ADDRESS> now"),
    ("it is 12:30:45, key a:b:c:d, ::1, fe80::1", None),
    ("Call +44 20 7946 0958 or (212) 555-0123 or 212-555-0123.", "Call <PHONE> or <PHONE> or <PHONE>."),
    ("in 1990-2000, 10 000 000 000, 978-3-16-148410-0, 2024-01-02 03:04", None),
]


@pytest.mark.parametrize(("raw", "expected"), PERSONAL)
def test_personal_data_is_masked(raw: str, expected: str | None) -> None:
    repairs: Counter[str] = Counter()
    for kind in ("prose", "code"):
        assert cleaned(raw, kind, repairs)[0] == (expected or raw)
    assert bool(sum(repairs.values())) == (expected is not None)


# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "xoxb-" + "123456789012-abcdefABCDEF",
    "AIza" + "Sy" + "a1B2c" * 6 + "xyz",
    "sk_live_" + "0a1B2c3D" * 3,
    "hf_" + "AbCd" * 9,
    "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTYifQ" + "." + "SflKxwRJSMeKKF2QT4",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_masked(secret: str) -> None:
    repairs: Counter[str] = Counter()
    assert cleaned(f'key = "{secret}"\nname = "other"', "code", repairs)[0] == 'key = "<KEY>"\nname = "other"'
    assert repairs == {"secrets": 1}


def test_private_keys_are_masked() -> None:
    key = "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "MIIEpAIBAAKCAQEA\n" * 20 + "-----END RSA PRIVATE " + "KEY-----"
    assert cleaned(f"before\n{key}\nafter", "code")[0] == "before\n<KEY>\nafter"


def test_masking_can_be_switched_off() -> None:
    text = f"jane@host.org {SECRETS[0]}"
    document = Document("id", 0, "prose", "file", "CC0-1.0", "", text)
    clean(document, replace(CleaningConfig(), mask_personal=False, mask_secrets=False), Counter())
    assert document.text == text


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 200_000, "a@" * 100_000, "a." * 100_000, "@" * 200_000, "1." * 100_000, "a:" * 100_000, "1 " * 100_000),
        *(
            "+1 " * 70_000,
            "eyJ" * 70_000,
            "-----BEGIN PRIVATE " + "KEY-----" + "A" * 200_000,
            "Ã" * 100_000,
            "( " * 100_000,
        ),
    ],
    ids=lambda text: repr(text[:6]),
)
def test_no_text_takes_long(text: str) -> None:
    """Against the time of as much harmless text: patterns that go back and forth would take thousands of times that."""

    def seconds(content: str) -> float:
        started = time.process_time()
        for kind in ("prose", "wiki", "code"):
            cleaned(content, kind)
        return time.process_time() - started

    usual = max(seconds("Some words of a harmless text. " * (len(text) // 31)), 0.02)
    assert seconds(text) < 200 * usual
