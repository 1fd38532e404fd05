"""Pairs of sentences that differ in one form, of which one is right, made from templates (BLiMP, Warstadt et al. 2020).

The words are frequent ones, so that a small model may know them; what is measured is whether it knows the grammar.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "es"]


@dataclass(frozen=True)
class Pair:
    """Two sentences; `good` is grammatical."""

    kind: str
    good: str
    bad: str


Maker = Callable[[random.Random], tuple[str, str]]

_EN_NOUNS = (
    ("king", "kings"), ("river", "rivers"), ("city", "cities"), ("house", "houses"), ("book", "books"),
    ("man", "men"), ("woman", "women"), ("child", "children"), ("tree", "trees"), ("country", "countries"),
    ("ship", "ships"), ("school", "schools"), ("church", "churches"), ("mountain", "mountains"),
)  # fmt: skip
_EN_PLACES = ("in the north", "near the sea", "of the people", "in the war", "at the border", "under the law")
_EN_ADJECTIVES = ("old", "great", "small", "important", "famous", "new", "known")
_EN_VERBS = (("see", "saw", "seen"), ("take", "took", "taken"), ("give", "gave", "given"), ("know", "knew", "known"),
             ("write", "wrote", "written"), ("choose", "chose", "chosen"), ("break", "broke", "broken"))  # fmt: skip
_EN_PEOPLE = (("The king", "himself", "herself"), ("The queen", "herself", "himself"), ("The man", "himself", "itself"),
              ("The woman", "herself", "himself"), ("The people", "themselves", "himself"),
              ("The kings", "themselves", "himself"))  # fmt: skip

# Singular, plural, whether feminine.
_ES_NOUNS = (
    ("río", "ríos", False), ("libro", "libros", False), ("pueblo", "pueblos", False), ("reino", "reinos", False),
    ("barco", "barcos", False), ("templo", "templos", False), ("hijo", "hijos", False), ("camino", "caminos", False),
    ("casa", "casas", True), ("ciudad", "ciudades", True), ("guerra", "guerras", True), ("isla", "islas", True),
    ("tierra", "tierras", True), ("iglesia", "iglesias", True), ("obra", "obras", True), ("puerta", "puertas", True),
)  # fmt: skip
_ES_PLACES = ("del norte", "de la región", "del país", "de los reyes", "de la costa", "del mundo")
_ES_ADJECTIVES = (("antiguo", "antigua"), ("pequeño", "pequeña"), ("famoso", "famosa"), ("nuevo", "nueva"),
                  ("largo", "larga"), ("conocido", "conocida"))  # fmt: skip


def minimal_pairs(language: Language, count: int, seed: int = 0) -> list[Pair]:
    """`count` different pairs of each kind, the same for equal seeds."""
    pairs = []
    for kind, make in MAKERS[language].items():
        drawn = random.Random(f"{seed} {language} {kind}")
        found: dict[tuple[str, str], None] = {}
        for _ in range(100 * count):  # where there are fewer pairs than that, all of them are found
            found[make(drawn)] = None
            if len(found) == count:
                break
        pairs += [Pair(kind, good, bad) for good, bad in found]
    return pairs


def _en_verb(drawn: random.Random) -> tuple[str, str]:
    """Number of the verb, whatever stands between it and its subject."""
    noun, plural, adjective = drawn.choice(_EN_NOUNS), drawn.random() < 0.5, drawn.choice(_EN_ADJECTIVES)
    place = drawn.choice(("", f" {drawn.choice(_EN_PLACES)}"))
    right, wrong = drawn.choice((("is", "are"), ("was", "were"), ("has been", "have been")))
    right, wrong = (wrong, right) if plural else (right, wrong)
    subject = f"The {noun[plural]}{place}"
    return f"{subject} {right} {adjective}.", f"{subject} {wrong} {adjective}."


def _en_determiner(drawn: random.Random) -> tuple[str, str]:
    noun, plural = drawn.choice(_EN_NOUNS), drawn.random() < 0.5
    single, several = drawn.choice((("this", "these"), ("that", "those"), ("one", "many"), ("each", "several")))
    right, wrong = (several, single) if plural else (single, several)
    end = f"{noun[plural]} {drawn.choice(_EN_PLACES)}."
    start = drawn.choice(("They know", "He found", "She saw", "We have"))
    return f"{start} {right} {end}", f"{start} {wrong} {end}"


def _en_participle(drawn: random.Random) -> tuple[str, str]:
    _, past, participle = drawn.choice(_EN_VERBS)
    noun, plural = drawn.choice(_EN_NOUNS), drawn.random() < 0.5
    start = f"The {noun[plural]} {drawn.choice(('have', 'had') if plural else ('has', 'had'))} been"
    end = f"{drawn.choice(_EN_PLACES)}."
    return f"{start} {participle} {end}", f"{start} {past} {end}"


def _en_reflexive(drawn: random.Random) -> tuple[str, str]:
    who, right, wrong = drawn.choice(_EN_PEOPLE)
    verb, end = drawn.choice(("saw", "called", "made", "gave", "found")), drawn.choice(_EN_PLACES)
    return f"{who} {verb} {right} {end}.", f"{who} {verb} {wrong} {end}."


def _article(feminine: bool, plural: bool) -> str:
    return (("el", "los"), ("la", "las"))[feminine][plural]


def _es_article(drawn: random.Random) -> tuple[str, str]:
    """Gender of the article."""
    single, several, feminine = drawn.choice(_ES_NOUNS)
    plural = drawn.random() < 0.5
    noun, place = (several if plural else single), drawn.choice(_ES_PLACES)
    start = drawn.choice(("Es sobre", "Se encuentra en", "Habla de", "Fue por"))
    right, wrong = (f"{start} {_article(gender, plural)} {noun} {place}." for gender in (feminine, not feminine))
    return _contracted(right), _contracted(wrong)


def _contracted(text: str) -> str:
    return text.replace(" de el ", " del ")


def _es_adjective(drawn: random.Random) -> tuple[str, str]:
    """Gender of an adjective behind the verb, whatever stands between it and its noun."""
    single, several, feminine = drawn.choice(_ES_NOUNS)
    plural, forms = drawn.random() < 0.5, drawn.choice(_ES_ADJECTIVES)
    place = drawn.choice(("", f" {drawn.choice(_ES_PLACES)}"))
    subject = f"{_article(feminine, plural).capitalize()} {several if plural else single}{place}"
    verb = drawn.choice(("son", "eran") if plural else ("es", "era"))
    right, wrong = (f"{subject} {verb} muy {forms[gender]}{'s' * plural}." for gender in (feminine, not feminine))
    return right, wrong


def _es_verb(drawn: random.Random) -> tuple[str, str]:
    single, several, feminine = drawn.choice(_ES_NOUNS)
    plural, forms = drawn.random() < 0.5, drawn.choice(_ES_ADJECTIVES)
    right, wrong = drawn.choice((("es", "son"), ("era", "eran"), ("fue", "fueron"), ("está", "están")))
    right, wrong = (wrong, right) if plural else (right, wrong)
    subject = f"{_article(feminine, plural).capitalize()} {several if plural else single} {drawn.choice(_ES_PLACES)}"
    end = f"{forms[feminine]}{'s' * plural}."
    return f"{subject} {right} {end}", f"{subject} {wrong} {end}"


def _es_number(drawn: random.Random) -> tuple[str, str]:
    """Number of the noun behind its article."""
    single, several, feminine = drawn.choice(_ES_NOUNS)
    plural, place = drawn.random() < 0.5, drawn.choice(_ES_PLACES)
    start = f"{drawn.choice(('Vieron', 'Tienen', 'Muestra', 'Destruyó'))} {_article(feminine, plural)}"
    right, wrong = (several, single) if plural else (single, several)
    return f"{start} {right} {place}.", f"{start} {wrong} {place}."


MAKERS: dict[Language, dict[str, Maker]] = {
    "en": {
        "subject and verb": _en_verb,
        "determiner and noun": _en_determiner,
        "participle": _en_participle,
        "reflexive": _en_reflexive,
    },
    "es": {
        "gender of the article": _es_article,
        "gender of the adjective": _es_adjective,
        "subject and verb": _es_verb,
        "article and number": _es_number,
    },
}
