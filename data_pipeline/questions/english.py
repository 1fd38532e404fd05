"""English sentences about Pokémon."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.questions.wording import Template, Wording

_STATS = {
    "hp": "HP",
    "attack": "Attack",
    "defense": "Defense",
    "special_attack": "Special Attack",
    "special_defense": "Special Defense",
    "speed": "Speed",
}
_TYPES = (
    "normal fire water grass electric ice fighting poison ground flying psychic bug rock ghost dragon dark steel fairy"
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")

_TEMPLATES = {
    "description": Template(
        ("Describe {name}", "What is {name}?", "Tell me about {name}", "Who is {name}?"),
        (
            "{name} is a Pokémon of type {type} from the {generation}, with the number {number} in the National "
            "Pokédex; it is {height} tall and weighs {weight}, and {ability_phrase}.",
            "{name}, number {number} in the National Pokédex, is a Pokémon of type {type} that appeared in the "
            "{generation}; it is {height} tall and weighs {weight}, and {ability_phrase}.",
        ),
        statement=True,
    ),
    "statistics": Template(
        (
            "What are the base stats of {name}?",
            "Which base stats does {name} have?",
            "Tell me the base stats of {name}",
        ),
        ("The base stats of {name} are {stat_list}; they add up to {total} points.",),
        statement=True,
    ),
    "type": Template(
        ("What type is {name}?", "What type of Pokémon is {name}?", "Which type does {name} have?"),
        (
            "{name} is a Pokémon of type {fact}.",
            "{name} is of type {fact}.",
        ),
    ),
    "height": Template(
        ("How tall is {name}?", "What is the height of {name}?", "What height does {name} have?"),
        ("{name} is {fact} tall.", "The height of {name} is {fact}."),
    ),
    "weight": Template(
        ("How much does {name} weigh?", "What is the weight of {name}?", "How heavy is {name}?"),
        ("{name} weighs {fact}.", "The weight of {name} is {fact}."),
    ),
    "generation": Template(
        (
            "Which generation is {name} from?",
            "In which generation did {name} appear?",
            "What generation does {name} belong to?",
        ),
        ("{name} is a Pokémon of the {fact}.", "{name} appeared in the {fact}."),
    ),
    "number": Template(
        (
            "What is the number of {name} in the National Pokédex?",
            "Which number does {name} have in the National Pokédex?",
            "Under which number does the National Pokédex list {name}?",
        ),
        ("{name} is number {fact} in the National Pokédex.",),
    ),
    "hidden_ability": Template(
        (
            "What is the hidden ability of {name}?",
            "Which hidden ability does {name} have?",
            "What is the name of the hidden ability of {name}?",
        ),
        ("The hidden ability of {name} is {fact}.",),
    ),
    "total": Template(
        (
            "What do the base stats of {name} add up to?",
            "What is the sum of the base stats of {name}?",
            "How many points do the base stats of {name} add up to?",
        ),
        ("The base stats of {name} add up to {fact} points.",),
    ),
}
_ONE_ABILITY = Template(
    ("What is the ability of {name}?", "Which ability does {name} have?", "What is the ability of {name} called?"),
    ("The ability of {name} is {fact}.", "{name} has the ability {fact}."),
)
_SEVERAL_ABILITIES = Template(
    (
        "What are the abilities of {name}?",
        "Which abilities can {name} have?",
        "What are the abilities of {name} called?",
    ),
    ("The possible abilities of {name} are {fact}.",),
)


def _join(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _stat_value(name: str, value: int) -> str:
    return f"{value} {_STATS[name]}"


def _ability_phrase(count: int, names: str, hidden: str | None) -> str:
    known = f"its possible abilities are {names}," if count > 1 else f"its ability is {names}"
    return known.rstrip(",") if hidden is None else f"{known} and its hidden ability is {hidden}"


def _stat_template(stat: str) -> Template:
    return Template(
        (
            f"What is the base {stat} of {{name}}?",
            f"Which base {stat} does {{name}} have?",
            f"How high is the base {stat} of {{name}}?",
        ),
        (f"The base {stat} of {{name}} is {{fact}}.", f"{{name}} has a base {stat} of {{fact}}."),
    )


ENGLISH = Wording(
    types={name: name.capitalize() for name in _TYPES.split()},
    generations=tuple(f"{ordinal} generation" for ordinal in _ORDINALS),
    decimal_point=".",
    join=_join,
    stat_value=_stat_value,
    ability_phrase=_ability_phrase,
    templates=_TEMPLATES,
    stat_templates={name: _stat_template(stat) for name, stat in _STATS.items()},
    one_ability=_ONE_ABILITY,
    several_abilities=_SEVERAL_ABILITIES,
)
