"""Which verses are held out with their books, and which others come too close to one of them to be learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from common.errors import UserError
from data_pipeline.dedup.minhash import shingles
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.verses import Verse

_SHINGLE_WORDS = 3


@dataclass(frozen=True)
class Split:
    """The verses of each part, in their order."""

    train: list[Verse]
    validation: list[Verse]
    test: list[Verse]
    too_close: dict[str, list[Verse]]
    """Verses of other books that were left out, by reason."""


def split(verses: Sequence[Verse], config: TranslationConfig) -> Split:
    """Hold out whole books, and leave out of the others what quotes or repeats one of their verses in any version.

    Raises:
        UserError: there is no such book, or no verse is left to train on.
    """
    known = {verse.book for verse in verses}
    for name in (*config.test_books, *config.validation_books):
        if name not in known:
            raise UserError(f"there is no book {name!r}; test_books and validation_books may name {', '.join(known)}")
    test = [verse for verse in verses if verse.book in config.test_books]
    validation = [verse for verse in verses if verse.book in config.validation_books]
    others = [verse for verse in verses if verse.book not in (*config.test_books, *config.validation_books)]
    reasons = [""] * len(others)
    for version in verses[0].texts if others else ():
        held_out = [verse.texts[version] for verse in (*test, *validation)]
        own = [verse.texts[version] for verse in others]
        quoting = _quoting(own, held_out, config.ngram_words)
        similar = _similar(own, held_out, config.max_similarity)
        for number in range(len(others)):
            if not reasons[number]:
                reasons[number] = "quotes" * bool(quoting[number]) or "similar" * bool(similar[number])
    train = [verse for verse, reason in zip(others, reasons, strict=True) if not reason]
    if not train:
        raise UserError("no verse is left to train on: hold out fewer books")
    too_close = {
        reason: [verse for verse, found in zip(others, reasons, strict=True) if found == reason]
        for reason in Counter(filter(None, reasons))
    }
    return Split(train, validation, test, too_close)


def _quoting(texts: Sequence[str], held_out: Sequence[str], words: int) -> np.ndarray:
    """Whether each text has a run of `words` words of a held-out one, (texts,) bool; a shorter text is one run."""
    own = shingles(texts, words)
    known = np.isin(np.concatenate(own), np.concatenate(shingles(held_out, words)))
    starts = np.cumsum([0, *map(len, own[:-1])])
    return np.logical_or.reduceat(known, starts)


def _similar(texts: Sequence[str], held_out: Sequence[str], least: float) -> np.ndarray:
    """Whether each text has at least that Jaccard similarity, in shingles, with a held-out one, (texts,) bool."""
    sets = [np.unique(own) for own in shingles([*texts, *held_out], _SHINGLE_WORDS)]
    sizes = np.array([len(own) for own in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    table = csr_matrix((np.ones(len(columns), np.int32), columns, np.append(0, np.cumsum(sizes))))
    shared = (table[: len(texts)] @ table[len(texts) :].T).tocoo()
    union = sizes[shared.row] + sizes[len(texts) + shared.col] - shared.data
    return np.bincount(shared.row[shared.data >= least * union], minlength=len(texts)) > 0
