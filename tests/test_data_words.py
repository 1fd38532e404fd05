"""Words and sentences as the filters count them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.quality import words
from data_pipeline.quality.prose_signals import c4_lines, sentences
from data_pipeline.quality.words import WordTable, split_piece


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("word", "word"),
        ("word.", "word ."),
        ("ℂℂg.", "ℂ ℂ g ."),
        ("“(word),”", "“ ( word ) , ”"),
        ("well-known", "well - known"),
        ("1990–2000", "1990–2000"),
        ("don't", "do n't"),
        ("they’ll", "they ’ll"),
        ("dog's", "dog 's"),
        ("U.S.", "U.S."),
        ("USA.", "USA ."),
        ("e.g.,", "e.g. ,"),
        ("(Dr.", "( Dr."),
        ("3.14", "3.14"),
        ("1,000", "1,000"),
        ("end.Begin", "end . Begin"),
        ("$5", "$ 5"),
        ("10km", "10 km"),
        ("wait...", "wait ..."),
        ("and/or", "and/or"),
        ("either/neither", "either / neither"),
        ("https://example.org/a-b,c", "https://example.org/a-b,c"),
        ("self.call(argument)", "self.call(argument )"),
        ("--", "--"),
    ],
)
def test_pieces_are_cut_as_in_spacy(piece: str, expected: str) -> None:
    assert split_piece(piece) == expected.split()


@given(st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: "".join(text.split())).filter(bool))
def test_no_character_is_lost(piece: str) -> None:
    assert "".join(split_piece(piece)) == piece


# Characters that come close to what the rules look for: addresses, contractions, abbreviations, numbers with units.
ALPHABETS = (
    "ab.,'- \n1",
    "aB1.,:;-_'\"/?#@()+*^<>=~%$&|\\ s`C\x00!{}[]",
    "aéÉ«»“”’‘'s.,–—…ª²½µℂ中1 -/:=,ndtllmkKg/hU$S£\u00a0\u2028ß",
    "wo/and or'clkscC++.e.gtMrdDsS'’ll() ,:=-1",
    "km/h 10m=5,3-4^*+ab.cd@ef:/?#-",
)


TEXTS = st.sampled_from(ALPHABETS).flatmap(lambda characters: st.text(st.sampled_from(characters), max_size=30))


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=6))
def test_a_table_reads_texts_as_pieces_one_by_one(texts: list[str]) -> None:
    table = WordTable()
    table.read(["a a. b", "b-a"])  # what was read before changes the numbers only
    found = table.read(texts)
    names = {number: word for word, number in table.numbers.items()}
    expected = [[word for piece in text.split() for word in split_piece(piece)] for text in texts]
    assert found.counts.tolist() == list(map(len, expected))
    assert [names[number] for number in found.ids.tolist()] == [word for text in expected for word in text]
    assert found.lengths.tolist() == [len(word) for text in expected for word in text]


def test_plain_pieces_are_cut_without_the_rules_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(well-known), self.call(argument): 1990 __init__ key=value either/neither 'día' [1] 2-3 x<y"
    expected = [word for piece in text.split() for word in split_piece(piece)]
    monkeypatch.setattr(words, "split_piece", None)
    table = WordTable()
    found = table.read([text]).ids.tolist()
    assert [list(table.numbers)[number] for number in found] == expected
    with pytest.raises(TypeError):
        table.read(["don't"])


def test_a_table_forgets_before_it_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_FORGET_ABOVE", 3)
    table = WordTable()
    table.read(["one two three four"])
    found = table.read(["five six"])
    assert len(table) == 2 and found.lengths.tolist() == [4, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", 3),
        ("Mr. Smith of the U.S. saw 3.14 of it.", 1),
        ("He said “stop.” Then he left.", 2),
        ("No end", 1),
        ("Wait... what?", 1),
        ("What?! Yes.", 2),
        ("", 0),
    ],
)
def test_sentences(text: str, expected: int) -> None:
    assert sentences(WordTable().read(["Before. This.", text, "After."])).tolist() == [2, expected, 1]


def test_c4_keeps_lines_that_are_sentences() -> None:
    assert c4_lines("A whole line.\nno end here\nToo short.\nWait for it ...") == ["A whole line."]
    assert c4_lines("Please enable JavaScript now.\nWe use cookies here.\nA good line.[1]") == ["A good line."]
    assert c4_lines(f"A {'x' * 1001} word.") == []
    assert c4_lines("Some lorem ipsum text.") is None
    assert c4_lines("A brace { in it.") is None
