"""Which verses are examples of translation, in which directions, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.errors import UserError

Version = Literal["es", "en", "kjv"]
"""es is the Reina-Valera of 1909, en the World English Bible, kjv the King James Version."""


@dataclass(frozen=True)
class TranslationConfig:
    """Verses that stand in three Bibles, aligned, for fine-tuning and for measuring translation."""

    test_books: tuple[str, ...] = ("Ruth", "Jonah", "Rom", "Phil", "Jas")
    """Books that nothing is learned from, by their OSIS names."""
    validation_books: tuple[str, ...] = ("Esth", "Col", "2Pet")
    """Books that training is validated on; nothing is learned from them either."""
    directions: tuple[tuple[Version, Version], ...] = (("es", "en"), ("es", "kjv"))
    """What is translated into what, to train on; validation and test are the first of these. In equal time,
    examples into Spanish cost more than they bring (docs/log.md)."""
    ngram_words: int = 13
    """A verse to train on that shares so many words in a row with a held-out one, in any version, is left out."""
    max_similarity: float = 0.5
    """So is one whose word trigrams have at least this Jaccard similarity with those of a held-out verse."""


def check(config: TranslationConfig) -> None:
    """Raises UserError for the first value that makes no sense, with its name and what it may be."""
    if both := set(config.test_books) & set(config.validation_books):
        raise UserError(f"{min(both)} is among test_books and validation_books; take it out of one of them")
    if not config.test_books or not config.validation_books:
        raise UserError("test_books and validation_books must each name a book")
    if not config.directions or any(source == target for source, target in config.directions):
        raise UserError("directions must name at least one pair of two different versions, such as es en")
    if config.ngram_words < 1:
        raise UserError(f"ngram_words is {config.ngram_words}; it must be at least 1")
    if not 0 < config.max_similarity <= 1:
        raise UserError(f"max_similarity is {config.max_similarity}; it must be above 0 and at most 1")
