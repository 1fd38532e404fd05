"""Spanish sentences about Pokémon.

Creatures and abilities have the names of the Spanish games; an ability without one here keeps its English name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_pipeline.questions.abilities import SPANISH_ABILITIES
from data_pipeline.questions.wording import Template, Wording

_TYPES = {
    "normal": "Normal",
    "fire": "Fuego",
    "water": "Agua",
    "grass": "Planta",
    "electric": "Eléctrico",
    "ice": "Hielo",
    "fighting": "Lucha",
    "poison": "Veneno",
    "ground": "Tierra",
    "flying": "Volador",
    "psychic": "Psíquico",
    "bug": "Bicho",
    "rock": "Roca",
    "ghost": "Fantasma",
    "dragon": "Dragón",
    "dark": "Siniestro",
    "steel": "Acero",
    "fairy": "Hada",
}
_STATS = {
    "hp": "PS",
    "attack": "Ataque",
    "defense": "Defensa",
    "special_attack": "Ataque Especial",
    "special_defense": "Defensa Especial",
    "speed": "Velocidad",
}
_NAMES = {
    "brute-bonnet": "Furioseta",
    "flutter-mane": "Melenaleteo",
    "gouging-fire": "Flamariete",
    "great-tusk": "Colmilargo",
    "iron-boulder": "Ferromole",
    "iron-bundle": "Ferrosaco",
    "iron-crown": "Ferrotesta",
    "iron-hands": "Ferropalmas",
    "iron-jugulis": "Ferrocuello",
    "iron-leaves": "Ferroverdor",
    "iron-moth": "Ferropolilla",
    "iron-thorns": "Ferropúas",
    "iron-treads": "Ferrodada",
    "iron-valiant": "Ferropaladín",
    "raging-bolt": "Electrofuria",
    "roaring-moon": "Bramaluna",
    "sandy-shocks": "Pelarena",
    "scream-tail": "Colagrito",
    "slither-wing": "Reptalada",
    "type-null": "Código Cero",
    "walking-wake": "Ondulagua",
}
_ORDINALS = ("primera", "segunda", "tercera", "cuarta", "quinta", "sexta", "séptima", "octava", "novena")

_TEMPLATES = {
    "description": Template(
        ("Describe a {name}", "¿Qué es {name}?", "Descríbeme a {name}", "Háblame de {name}", "¿Quién es {name}?"),
        (
            "{name} es un Pokémon de tipo {type} de la {generation}, con el número {number} de la Pokédex Nacional, "
            "que mide {height} y pesa {weight}; {ability_phrase}.",
            "{name}, el número {number} de la Pokédex Nacional, es un Pokémon de tipo {type} que apareció en la "
            "{generation}, mide {height} y pesa {weight}; {ability_phrase}.",
        ),
        statement=True,
    ),
    "statistics": Template(
        (
            "¿Cuáles son las estadísticas base de {name}?",
            "¿Qué estadísticas base tiene {name}?",
            "Dime las estadísticas base de {name}",
        ),
        ("Las estadísticas base de {name} son {stat_list}; en total suman {total} puntos.",),
        statement=True,
    ),
    "type": Template(
        (
            "¿De qué tipo es {name}?",
            "¿Qué tipo de Pokémon es {name}?",
            "¿Cuál es el tipo de {name}?",
            "¿A qué tipo pertenece {name}?",
        ),
        ("{name} es un Pokémon de tipo {fact}.", "{name} es de tipo {fact}."),
    ),
    "height": Template(
        ("¿Cuánto mide {name}?", "¿Qué altura tiene {name}?", "¿Cuál es la altura de {name}?"),
        ("{name} mide {fact}.", "La altura de {name} es de {fact}."),
    ),
    "weight": Template(
        ("¿Cuánto pesa {name}?", "¿Qué peso tiene {name}?", "¿Cuál es el peso de {name}?"),
        ("{name} pesa {fact}.", "El peso de {name} es de {fact}."),
    ),
    "generation": Template(
        (
            "¿De qué generación es {name}?",
            "¿En qué generación apareció {name}?",
            "¿A qué generación pertenece {name}?",
        ),
        ("{name} es un Pokémon de la {fact}.", "{name} apareció en la {fact}."),
    ),
    "number": Template(
        (
            "¿Qué número tiene {name} en la Pokédex Nacional?",
            "¿Cuál es el número de {name} en la Pokédex Nacional?",
            "¿Con qué número figura {name} en la Pokédex Nacional?",
        ),
        ("{name} es el número {fact} de la Pokédex Nacional.", "{name} tiene el número {fact} en la Pokédex Nacional."),
    ),
    "hidden_ability": Template(
        (
            "¿Cuál es la habilidad oculta de {name}?",
            "¿Qué habilidad oculta tiene {name}?",
            "¿Cómo se llama la habilidad oculta de {name}?",
        ),
        ("La habilidad oculta de {name} es {fact}.",),
    ),
    "total": Template(
        (
            "¿Cuánto suman las estadísticas base de {name}?",
            "¿Cuál es la suma de las estadísticas base de {name}?",
            "¿Cuántos puntos suman las estadísticas base de {name}?",
        ),
        ("Las estadísticas base de {name} suman {fact} puntos.",),
    ),
}
_ONE_ABILITY = Template(
    ("¿Cuál es la habilidad de {name}?", "¿Qué habilidad tiene {name}?", "¿Cómo se llama la habilidad de {name}?"),
    ("La habilidad de {name} es {fact}.", "{name} tiene la habilidad {fact}."),
)
_SEVERAL_ABILITIES = Template(
    (
        "¿Cuáles son las habilidades de {name}?",
        "¿Qué habilidades puede tener {name}?",
        "¿Cómo se llaman las habilidades de {name}?",
    ),
    ("Las habilidades posibles de {name} son {fact}.",),
)


def _join(names: Sequence[str]) -> str:
    """ "y" becomes "e" before the sound of i, but not before the diphthong of "hielo"."""
    if len(names) < 2:
        return "".join(names)
    conjunction = "e" if re.match(r"h?[ií](?!e)", names[-1].lower()) else "y"
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def _stat_value(name: str, value: int) -> str:
    return f"{value} PS" if name == "hp" else f"{value} de {_STATS[name]}"


def _ability_phrase(count: int, names: str, hidden: str | None) -> str:
    known = f"sus habilidades posibles son {names}," if count > 1 else f"su habilidad es {names}"
    return known.rstrip(",") if hidden is None else f"{known} y su habilidad oculta es {hidden}"


def _stat_template(name: str) -> Template:
    stat = _STATS[name]
    if name == "hp":
        return Template(
            (
                "¿Cuántos PS base tiene {name}?",
                "¿Cuáles son los PS base de {name}?",
                "¿Con cuántos PS base cuenta {name}?",
            ),
            ("{name} tiene {fact} PS base.", "Los PS base de {name} son {fact}."),
        )
    article = "la" if stat.startswith(("Defensa", "Velocidad")) else "el"
    return Template(
        (
            f"¿Cuál es {article} {stat} base de {{name}}?",
            f"¿Cuánto vale {article} {stat} base de {{name}}?",
            f"¿Qué {stat} base tiene {{name}}?",
        ),
        (
            f"{article.capitalize()} {stat} base de {{name}} es {{fact}}.",
            f"{{name}} tiene {{fact}} de {stat} base.",
        ),
    )


SPANISH = Wording(
    types=_TYPES,
    generations=tuple(f"{ordinal} generación" for ordinal in _ORDINALS),
    decimal_point=",",
    join=_join,
    stat_value=_stat_value,
    ability_phrase=_ability_phrase,
    templates=_TEMPLATES,
    stat_templates={name: _stat_template(name) for name in _STATS},
    one_ability=_ONE_ABILITY,
    several_abilities=_SEVERAL_ABILITIES,
    names=_NAMES,
    abilities=SPANISH_ABILITIES,
)
