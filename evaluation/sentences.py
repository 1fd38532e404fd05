"""Where a sentence of Spanish or English ends, by a regular expression that needs no data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from evaluation.diversity import split_words

Unit = Literal["sentences", "lines"]

# After a full stop and what closes behind it, but not after a title or an initial, and not before a small letter,
# because that full stop belongs to an abbreviation. A line break alone ends no sentence, an empty line does.
_TITLES = r"(?<!\b(?:Sr|Dr|Mr|Ms|St)\.)(?<!\b(?:Sra|Dra|Mrs)\.)(?<!\b[A-ZÁÉÍÓÚÑ]\.)"
_SENTENCE_END = re.compile(rf"(?:(?<=[.!?…])|(?<=[.!?…][\"'»”’)\]])){_TITLES}\s+(?=[^a-zà-öø-ÿ\s])|\n[^\S\n]*\n\s*")


def split_units(text: str, unit: Unit) -> list[str]:
    """The sentences or the lines of a text."""
    return split_sentences(text) if unit == "sentences" else split_lines(text)


def split_sentences(text: str) -> list[str]:
    """The sentences of a Spanish or English text; pieces without a word are left out."""
    return _with_words(piece for piece in _SENTENCE_END.split(text))


def split_lines(text: str) -> list[str]:
    """The lines of a text that have a word."""
    return _with_words(text.splitlines())


def _with_words(pieces: Iterable[str]) -> list[str]:
    return [" ".join(piece.split()) for piece in pieces if split_words(piece)]
