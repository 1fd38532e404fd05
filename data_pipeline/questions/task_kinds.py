"""Small tasks on one text each, whose only right answer follows from the text: how they are asked for, and answered."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_pipeline.questions.config import Language

BLANK = "___"
MOST_SENTENCES = 4

_MOST_WORDS = 10  # that are counted
_LONGEST_CAPITALS = 80  # characters
_YEAR = re.compile(r"(?<!\w)(1\d{3}|20[0-2]\d)(?!\w)")
# Only words and commas, so that they can be counted in one way only; and sentences with one full stop each.
_PLAIN = re.compile(r"[A-ZÀ-Þ][^\W\d_]*(?:,? [^\W\d_]+)*\.")
_COUNTABLE = re.compile(r"[A-ZÀ-Þ][^.:!?¿¡]*\.")
_LANGUAGES: dict[Language, dict[str, str]] = {
    "es": {"en": "inglés", "es": "español", "fr": "francés"},
    "en": {"en": "English", "es": "Spanish", "fr": "French"},
}


@dataclass(frozen=True)
class Text:
    """One or more sentences of one lead section."""

    sentences: tuple[str, ...]
    language: str
    title: str
    """Of the article."""

    @property
    def text(self) -> str:
        """The sentences together."""
        return " ".join(self.sentences)

    @property
    def words(self) -> list[str]:
        """Without punctuation."""
        return re.findall(r"\w+", self.text)


Made = tuple[str, str] | None
"""The text that the instruction is about, and the answer; None where a text does not suit."""


@dataclass(frozen=True)
class Task:
    """How a task is asked for, and made of a text in the language of the instruction."""

    instructions: Mapping[Language, tuple[str, ...]]
    make: Callable[[Text, Language, random.Random], Made]
    answers: Callable[[Language], tuple[str, ...]] = lambda language: ()
    """Answers that should be equally frequent; none where there is no end of answers."""


def _sentence(text: Text, language: Language) -> bool:
    """Whether it is one plain sentence in that language."""
    return text.language == language and len(text.sentences) == 1 and _PLAIN.fullmatch(text.text) is not None


def _capitals(text: Text, language: Language, drawn: random.Random) -> Made:
    fits = _sentence(text, language) and len(text.text) <= _LONGEST_CAPITALS
    return (text.text, text.text.upper()) if fits else None


def _first_word(text: Text, language: Language, drawn: random.Random) -> Made:
    return (text.text, text.words[0]) if _sentence(text, language) else None


def _last_word(text: Text, language: Language, drawn: random.Random) -> Made:
    return (text.text, text.words[-1]) if _sentence(text, language) else None


def _count_words(text: Text, language: Language, drawn: random.Random) -> Made:
    fits = _sentence(text, language) and len(text.words) <= _MOST_WORDS
    return (text.text, str(len(text.words))) if fits else None


def _year(text: Text, language: Language, drawn: random.Random) -> Made:
    years, numbers = _YEAR.findall(text.text), re.findall(r"\d+", text.text)
    fits = text.language == language and len(text.sentences) == len(years) == len(numbers) == 1
    return (text.text, years[0]) if fits else None


def _missing_word(text: Text, language: Language, drawn: random.Random) -> Made:
    """Two sentences that are alike but for one word."""
    places = list(re.finditer(r"\w{4,}", text.text))
    if not places or not _sentence(text, language):
        return None
    place = drawn.choice(places)
    return f"{text.text}\n{text.text[: place.start()]}{BLANK}{text.text[place.end() :]}", place[0]


def _count_sentences(text: Text, language: Language, drawn: random.Random) -> Made:
    fits = text.language == language and all(_COUNTABLE.fullmatch(sentence) for sentence in text.sentences)
    return (text.text, str(len(text.sentences))) if fits else None


def _language(text: Text, language: Language, drawn: random.Random) -> Made:
    return (text.text, _LANGUAGES[language][text.language]) if len(text.sentences) == 1 else None


TASKS: dict[str, Task] = {
    "count_words": Task(
        {
            "es": ("¿Cuántas palabras tiene el texto?", "Cuenta las palabras del texto.", "Di el número de palabras."),
            "en": ("How many words does the text have?", "Count the words of the text.", "Give the number of words."),
        },
        _count_words,
    ),
    "year": Task(
        {
            "es": ("¿Qué año se menciona en el texto?", "Di el año que aparece en el texto.", "Extrae el año."),
            "en": ("Which year is mentioned in the text?", "Give the year in the text.", "Extract the year."),
        },
        _year,
    ),
    "capitals": Task(
        {
            "es": ("Escribe el texto en mayúsculas.", "Pasa el texto a mayúsculas.", "Repite el texto en mayúsculas."),
            "en": (
                "Write the text in capital letters.",
                "Turn the text into capital letters.",
                "Repeat the text in upper case.",
            ),
        },
        _capitals,
    ),
    "first_word": Task(
        {
            "es": ("¿Cuál es la primera palabra del texto?", "Di la primera palabra.", "¿Con qué palabra empieza?"),
            "en": ("What is the first word of the text?", "Give the first word.", "Which word does it begin with?"),
        },
        _first_word,
    ),
    "last_word": Task(
        {
            "es": ("¿Cuál es la última palabra del texto?", "Di la última palabra.", "¿Con qué palabra termina?"),
            "en": ("What is the last word of the text?", "Give the last word.", "Which word does it end with?"),
        },
        _last_word,
    ),
    "missing_word": Task(
        {
            "es": (
                "¿Qué palabra falta en la segunda oración?",
                "Completa la segunda oración como la primera: ¿qué palabra falta?",
                "Di la palabra que falta en la segunda línea.",
            ),
            "en": (
                "Which word is missing from the second sentence?",
                "Complete the second sentence like the first: which word is missing?",
                "Give the word that the second line lacks.",
            ),
        },
        _missing_word,
    ),
    "count_sentences": Task(
        {
            "es": (
                "¿Cuántas oraciones tiene el texto?",
                "Cuenta las oraciones del texto.",
                "Di el número de oraciones.",
            ),
            "en": (
                "How many sentences does the text have?",
                "Count the sentences of the text.",
                "Give the number of sentences.",
            ),
        },
        _count_sentences,
        answers=lambda language: tuple(str(number + 1) for number in range(MOST_SENTENCES)),
    ),
    "language": Task(
        {
            "es": (
                "¿En qué idioma está el texto: inglés, español o francés?",
                "Di si el texto está en inglés, español o francés.",
                "Identifica el idioma: inglés, español o francés.",
            ),
            "en": (
                "Which language is the text in: English, Spanish or French?",
                "Say whether the text is in English, Spanish or French.",
                "Identify the language: English, Spanish or French.",
            ),
        },
        _language,
        answers=lambda language: tuple(_LANGUAGES[language].values()),
    ),
}
