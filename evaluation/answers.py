"""Held-out questions from a file, and whether an answer to one is right."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from common.errors import UserError
from data_pipeline.examples.json_values import json_values
from data_pipeline.examples.records import Problem
from data_pipeline.questions.question import Question, states

_REQUIRED, _OPTIONAL = ("question", "answer", "fact"), ("kind", "subject", "input")
_TILDE = "\u0303"
_EDGES = " .,;:!?…¡¿\"'«»“”‘’`"


def read_questions(path: Path) -> tuple[list[Question], list[Problem]]:
    """The questions in a file of JSON lines, and the rows that are not such.

    A row has `question`, `answer` and `fact`, a short text that a right answer contains, and if it likes `kind`,
    `subject` and `input`, the text that the question is about.

    Raises:
        UserError: the file cannot be read, or holds no question.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name the held_out.jsonl that python -m data_pipeline wrote "
            "beside the training file"
        ) from error
    questions, problems = [], []
    for line, value, reason in json_values(text):
        reason = reason or _reason(value)
        if reason:
            problems.append(Problem(str(path), line, reason))
            continue
        names = {name: value[name] for name in (*_REQUIRED, *_OPTIONAL) if name in value}
        questions.append(Question(**{"kind": "", "subject": "", **names}))
    if not questions:
        example = '{"question": "...", "answer": "...", "fact": "..."}'
        found = f"; the first row: {problems[0]}" if problems else ""
        raise UserError(f"{path} holds no question; rows must look like {example}{found}")
    return questions, problems


def _reason(value: Any) -> str:
    """What is wrong with a row; nothing if it can be asked and checked."""
    if not isinstance(value, dict):
        return "no JSON object"
    names = (*_REQUIRED, *_OPTIONAL)
    for name in names:
        if name in value and not isinstance(value[name], str):
            return f"{name} is no text"
        if name in _REQUIRED and not normalised(value.get(name, "")):
            return f"it has no {name}"
    if any("\ud800" <= letter <= "\udfff" for name in names for letter in value.get(name, "")):
        return "it holds half a character, which cannot be written to a file"
    return ""


def normalised(text: str, keep_case: bool = False) -> str:
    """`text` without what does not make an answer wrong.

    Accents go, but not the tilde of ñ, which is another letter ("año", "ano"); so do upper case, white space beyond
    single spaces, and the quotation and punctuation marks around the whole.
    """
    letters = unicodedata.normalize("NFD", text if keep_case else text.casefold())
    kept = (letter for letter in letters if letter == _TILDE or unicodedata.category(letter) != "Mn")
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", "".join(kept))).strip(_EDGES)


def has_fact(answer: str, question: Question) -> bool:
    """Whether the fact stands in `answer` as a whole: "10,4 m" does not state "0,4 m", nor "lavanda" "lava".

    Both are normalised; upper case counts where the fact has nothing else, because then it was asked for. An answer
    that states other things as well, even wrong ones, has the fact: `is_exact` is the stricter measure.
    """
    keep = question.fact.isupper()
    return states(normalised(answer, keep), normalised(question.fact, keep))


def is_exact(answer: str, question: Question) -> bool:
    """Whether the whole answer is the one in the file, both normalised; upper case counts as in `has_fact`."""
    keep = question.answer.isupper()
    return normalised(answer, keep) == normalised(question.answer, keep)
