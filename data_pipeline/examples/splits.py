"""Which records are held out for validation, decided by what they ask, so that no question stands on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from common.errors import UserError
from data_pipeline.examples.records import Record


def held_out(records: Sequence[Record], fraction: float, seed: int) -> list[bool]:
    """Whether each record is held out: about `fraction` of all questions, at least one.

    Each question is drawn by a hash of its own, so it stays on its side when others are added.
    """
    questions = _shuffled_questions(records, seed)
    drawn = sum(int.from_bytes(digest[:8], "big") < fraction * 2**64 for digest, _ in questions)
    return _among(records, questions[: min(max(drawn, 1), len(questions) - 1)])


def in_fold(records: Sequence[Record], folds: int, fold: int, seed: int) -> list[bool]:
    """Whether each record is in part `fold` of `folds`; each question is in one, and they are equally large.

    Raises:
        UserError: there are fewer different questions than folds.
    """
    questions = _shuffled_questions(records, seed)
    if len(questions) < folds:
        raise UserError(
            f"{folds} folds need as many different examples, and there are {len(questions)}; "
            f"use at most {len(questions)} folds"
        )
    return _among(records, questions[fold::folds])


def _shuffled_questions(records: Sequence[Record], seed: int) -> list[tuple[bytes, bytes]]:
    """Every question once, as (hash that the seed changes, question), in the order of the hashes."""
    key = str(seed).encode()
    return sorted(
        (hashlib.blake2b(question, key=key).digest(), question) for question in {record.question for record in records}
    )


def _among(records: Sequence[Record], questions: Sequence[tuple[bytes, bytes]]) -> list[bool]:
    chosen = {question for _, question in questions}
    return [record.question in chosen for record in records]
