"""What a language says about a creature: names, formats of numbers, and sentences with places for facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from data_pipeline.questions.creatures import Creature

# Names of creatures that are spelt otherwise than in capitalised words without hyphens.
_NAMES = {
    "chi-yu": "Chi-Yu",
    "chien-pao": "Chien-Pao",
    "farfetchd": "Farfetch'd",
    "flabebe": "Flabébé",
    "hakamo-o": "Hakamo-o",
    "ho-oh": "Ho-Oh",
    "jangmo-o": "Jangmo-o",
    "kommo-o": "Kommo-o",
    "mime-jr": "Mime Jr.",
    "mr-mime": "Mr. Mime",
    "mr-rime": "Mr. Rime",
    "nidoran-f": "Nidoran♀",
    "nidoran-m": "Nidoran♂",
    "porygon-z": "Porygon-Z",
    "sirfetchd": "Sirfetch'd",
    "ting-lu": "Ting-Lu",
    "type-null": "Type: Null",
    "wo-chien": "Wo-Chien",
}
_ABILITIES = {
    "dragons-maw": "Dragon's Maw",
    "rks-system": "RKS System",
    "soul-heart": "Soul-Heart",
    "well-baked-body": "Well-Baked Body",
}


@dataclass(frozen=True)
class Template:
    """Ways of asking for a fact and of stating it; `{name}` and the like are filled in."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    statement: bool = False


@dataclass(frozen=True)
class Wording:
    """All that the sentences about creatures need to know of a language."""

    types: Mapping[str, str]
    generations: tuple[str, ...]
    decimal_point: str
    join: Callable[[Sequence[str]], str]
    """Puts the language's "and" before the last of several."""
    stat_value: Callable[[str, int], str]
    """A named statistic with its value, as in a list."""
    ability_phrase: Callable[[int, str, str | None], str]
    """How many abilities, their names, the name of the hidden one: the end of a sentence."""
    templates: Mapping[str, Template]
    """By kind of question."""
    stat_templates: Mapping[str, Template]
    """For single statistics, by their names."""
    one_ability: Template
    several_abilities: Template
    names: Mapping[str, str] = field(default_factory=dict)
    """Creatures that have another name in this language."""
    abilities: Mapping[str, str] = field(default_factory=dict)
    """Abilities that have another name in this language."""

    def name(self, identifier: str) -> str:
        """Of a creature."""
        return self.names.get(identifier) or _NAMES.get(identifier) or _title(identifier)

    def ability(self, identifier: str) -> str:
        return self.abilities.get(identifier) or _ABILITIES.get(identifier) or _title(identifier)

    def number(self, value: float) -> str:
        """With one decimal."""
        return f"{value:.1f}".replace(".", self.decimal_point)


def facts(creature: Creature, wording: Wording) -> dict[str, str]:
    """What can be said of a creature, by kind of question. Not every creature has a hidden ability."""
    values = {
        "type": "/".join(wording.types[name] for name in creature.types),
        "height": f"{wording.number(creature.height)} m",
        "weight": f"{wording.number(creature.weight)} kg",
        "generation": wording.generations[creature.generation - 1],
        "number": str(creature.number),
        "ability": wording.join([wording.ability(name) for name in creature.abilities]),
        "total": str(sum(creature.stats.values())),
    }
    if creature.hidden_ability is not None:
        values["hidden_ability"] = wording.ability(creature.hidden_ability)
    return values | {name: str(value) for name, value in creature.stats.items()}


def _title(identifier: str) -> str:
    words = identifier.replace("-", " ").title()
    return re.sub(r"(?<= )(Of|As|To)(?= )", lambda match: match[0].lower(), words)
