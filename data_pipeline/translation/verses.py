"""The same verse in three Bibles, although they do not number all verses alike."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import sha256_of
from data_pipeline.sources import debian
from data_pipeline.sources.config import DebianPackages
from data_pipeline.translation.config import Version
from data_pipeline.translation.sword import Place, plain_text, read_module, strong_numbers

_ALIKE, _SURE = 0.3, 0.5  # shared Strong numbers: the verse of the same number; the best of another number
_LONGER = 3  # times as many words: then one of the two holds more than this verse
_MOST_OTHERS = 5  # words that may be more in any case


@dataclass(frozen=True)
class Module:
    """A Bible as Debian packages it."""

    package: str
    sha256: str
    versification: str


MODULES: dict[Version, Module] = {
    "es": Module("sword-text-sparv=2.60-1", "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf", "kjv"),
    "en": Module("sword-text-web=426.0-1", "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1", "nrsva"),
    "kjv": Module("sword-text-kjv=14.3-1", "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57", "kjv"),
}


@dataclass(frozen=True)
class Verse:
    """One verse; chapter and number are those of the English Bibles."""

    book: str
    chapter: int
    number: int
    texts: dict[Version, str]

    @property
    def name(self) -> str:
        """Such as "Ruth 1:16"."""
        return f"{self.book} {self.chapter}:{self.number}"


def read_verses(downloads: Path) -> tuple[list[Verse], Counter[str]]:
    """All verses that stand in the three Bibles, and how many were left out, by reason.

    The packages are looked for in `downloads`, or downloaded into it.

    Raises:
        UserError: a package cannot be downloaded, or is not the one that is expected.
    """
    source = DebianPackages(tuple(module.package for module in MODULES.values()), name="Bibles")
    packages = debian.find(source, downloads / "debian")
    markup: dict[Version, dict[Place, str]] = {}
    for (version, module), package in zip(MODULES.items(), packages, strict=True):
        path = Path(package.path)
        found = sha256_of(path)
        if found != module.sha256:
            raise UserError(f"the sha256 of {path} is {found}, not {module.sha256}; delete it and run again")
        markup[version] = read_module(path, module.versification)
    return aligned(markup)


def aligned(markup: Mapping[Version, Mapping[Place, str]]) -> tuple[list[Verse], Counter[str]]:
    """The verses of the King James Version with what translates the same in the others.

    World English Bible and King James Version number alike. The Reina-Valera divides some chapters otherwise (Jonah 2
    begins a verse earlier), which the Strong numbers of its words tell: they are those of the Hebrew and Greek text.
    """
    spanish = _spanish_places(markup["es"], markup["kjv"])
    verses, left_out = [], Counter[str]()
    for place, text in markup["kjv"].items():
        if place not in spanish:
            left_out["no Spanish verse that surely is the same"] += 1
            continue
        if place not in markup["en"]:
            left_out["not in the World English Bible"] += 1
            continue
        texts: dict[Version, str] = {
            "es": plain_text(markup["es"][spanish[place]]),
            "en": plain_text(markup["en"][place]),
            "kjv": plain_text(text),
        }
        if _differ_in_length(texts):
            left_out["one version holds much more than another"] += 1
            continue
        verses.append(Verse(*place, texts))
    return verses, left_out


def _spanish_places(spanish: Mapping[Place, str], english: Mapping[Place, str]) -> dict[Place, Place]:
    """Where each English verse stands in Spanish: under its own number, or where most Strong numbers are the same."""
    own = {place: strong_numbers(text) for place, text in spanish.items()}
    books: dict[str, list[Place]] = defaultdict(list)
    for place in own:
        books[place[0]].append(place)
    found: dict[Place, Place] = {}
    for place, text in english.items():
        numbers = strong_numbers(text)
        if place in own and _shared(own[place], numbers) >= _ALIKE:
            found[place] = place
            continue
        best = max(books[place[0]], key=lambda other: _shared(own[other], numbers), default=None)
        if best is not None and _shared(own[best], numbers) >= _SURE:
            found[place] = best
    taken = Counter(found.values())
    return {place: other for place, other in found.items() if taken[other] == 1 or place == other}


def _shared(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _differ_in_length(texts: Mapping[Version, str]) -> bool:
    words = [len(re.findall(r"\w+", text)) for text in texts.values()]
    return max(words) > _LONGER * min(words) + _MOST_OTHERS
