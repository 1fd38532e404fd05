"""A question whose answer can be checked, and the split that keeps some back."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One question, or one instruction, with its answer."""

    question: str
    answer: str
    fact: str
    """Short text that a right answer contains; empty for a statement."""
    kind: str
    subject: str
    input: str = ""
    """The text that an instruction is about; then the answer follows from it."""
    statement: bool = False
    """Tells facts of the subject, and so is always trained on."""


def states(text: str, fact: str) -> bool:
    """Whether `text` contains `fact` as a whole: "10,4 m" does not state "0,4 m", nor "Fuego/Volador" "Fuego"."""
    return re.search(rf"(?<![\w/])(?<!\d[.,]){re.escape(fact)}(?![\w/]|[.,]\d)", text) is not None


def generator(seed: int, *names: str) -> random.Random:
    """A generator of random numbers for one decision, which does not depend on any other decision."""
    return random.Random("\n".join((str(seed), *names)))


def sample(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of the items, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    places = generator(seed, "sample").sample(range(len(items)), limit)
    return [items[place] for place in sorted(places)]


def split(questions: Iterable[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Divide into questions to train on and questions held out.

    Held out is a kind of question about a subject, in all its phrasings, of which the first is kept. A model can know
    the answer: a statement about the subject, which is trained on, tells the fact; or the input that stands beside the
    question does. Another question is never held out.
    """
    groups: dict[tuple[str, str, str], list[Question]] = defaultdict(list)
    told: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        groups[question.subject, question.kind, question.input].append(question)
        if question.statement:
            told[question.subject].append(question.answer)
    train, held_out = [], []
    for names, group in groups.items():
        first = group[0]
        known = bool(first.input) or any(states(text, first.fact) for text in told[first.subject])
        if known and not first.statement and generator(seed, "split", *names).random() < fraction:
            held_out.append(first)
        else:
            train += group
    return train, held_out
