"""Licences: what metadata declare, and which texts of well-known licences stand in a file.

Recognised by the sentences that no other licence has, with names from the SPDX licence list. The layout does not
matter: a text is compared as its words alone, so comment marks, line ends and punctuation are nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Protocol

UNKNOWN = "unknown"
_HEADER_CHARACTERS = 4_000  # of a source file: where its licence stands, if anywhere
_MOST_CHARACTERS = 200_000  # of a licence file: some bundle dozens
_IDENTIFIER = r"\(*[\w.+:-]*\w\+?\)*"
_SPDX = re.compile(
    rf"SPDX-License-Identifier:[ \t]*({_IDENTIFIER}(?:[ \t]+(?:AND|OR|WITH)[ \t]+{_IDENTIFIER})*)", re.ASCII
)
_FILE_NAME = re.compile(r"(?:^|[-_.])(?:un)?(?:licen[cs]e|copying)(?:[-_.]|$)", re.IGNORECASE)


# Names that metadata spell out; those of Mozilla and Eclipse have no "general" and no "GNU" in them.
_SPELLED = re.compile(
    r"\b(?:(?P<affero>affero)|(?P<lesser>lesser|library)|general|gnu)(?:\s+general)?\s+public\s+licen[cs]e",
    re.IGNORECASE,
)


class Fields(Protocol):
    """The header of a distribution's metadata, as `importlib.metadata` and `email` give it."""

    def get_all(self, name: str) -> list[str] | None: ...


def _gnu(match: re.Match[str]) -> str:
    family = {"affero": "AGPL", "lesser": "LGPL", "library": "LGPL"}.get(match["family"] or "", "GPL")
    version = match["titled"] or match["before"] or match["after"]
    return f"{family}-{version if '.' in version else version + '.0'}" if version else family


def _bsd(match: re.Match[str]) -> str:
    if "advertising materials mentioning" in match.string:
        return "BSD-4-Clause"
    return "BSD-3-Clause" if "endorse or promote products" in match.string else "BSD-2-Clause"


def _isc(match: re.Match[str]) -> str:
    return "ISC" if match[1] else "0BSD"


def _creative_commons(match: re.Match[str]) -> str:
    short = {"noncommercial": "-NC", "sharealike": "-SA", "noderivatives": "-ND", "noderivs": "-ND"}
    return "CC-BY" + "".join(short[word] for word in match["terms"].split()) + f"-{match['version']}"


# What stands in the words of a text, and the name that it has then: a template, or a function of the match.
_TEXTS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"to deal in the software without restriction", "MIT"),
        (r"apache license version 2\.0|apache org licenses terms and conditions for use", "Apache-2.0"),
        (r"redistribution and use in source and binary forms", _bsd),
        (
            r"gnu (?:(?P<family>affero|lesser|library) )?general public license "
            r"(?:version (?P<titled>[\d.]+) (?:\d+ )?(?:june|february|november) \d{4}"
            r"|(?:(?:version|v) (?P<before>[\d.]+) )?as published by the free software foundation"
            r"(?: either)?(?: version (?P<after>[\d.]+))?)",
            _gnu,
        ),
        (r"gnu free documentation license version (1\.[123])", r"GFDL-\1"),
        (r"mozilla public license (?:version|v) ([12]\.[01])", r"MPL-\1"),
        (r"eclipse public license (?:version|v) ([12]\.0)", r"EPL-\1"),
        (r"distribute this software for any purpose with or without fee is hereby granted( provided)?", _isc),
        (r"altered source versions must be plainly marked as such", "Zlib"),
        (r"boost software license version 1\.0", "BSL-1.0"),
        (r"this is free and unencumbered software released into the public domain", "Unlicense"),
        (r"cc0 1\.0 universal", "CC0-1.0"),
        (
            r"attribution(?P<terms>(?: noncommercial| sharealike| noderivatives| noderivs)*) (?P<version>\d\.\d) "
            r"(?:international|unported|generic)",
            _creative_commons,
        ),
        (r"psf license agreement for python|python software foundation license version 2", "PSF-2.0"),
        (r"the artistic license 2\.0", "Artistic-2.0"),
        (r"business source license 1\.1", "BUSL-1.1"),
        (r"server side public license version 1", "SSPL-1.0"),
    )
)


def recognise(text: str) -> str:
    """The licence that `text` names at its beginning by an SPDX tag, or contains; "unknown" where there is none.

    Which of several licences in one text holds for what is not known, so all of them are named, joined by AND.
    """
    text = text[:_MOST_CHARACTERS]
    tag = _SPDX.search(text, 0, _HEADER_CHARACTERS)
    if tag:
        return tag[1]
    words = " ".join(re.findall(r"[a-z0-9]+(?:\.[0-9]+)*", text.lower()))
    found = {
        match.expand(name) if isinstance(name, str) else name(match)
        for pattern, name in _TEXTS
        for match in pattern.finditer(words)
    }
    return _joined(found)


def recognise_header(text: str) -> str:
    """The licence that the beginning of a source file names or contains, else "unknown"."""
    return recognise(text[:_HEADER_CHARACTERS])


def recognise_all(texts: Iterable[str]) -> str:
    """The licences of all licence files of one place, as `recognise` names them."""
    return _joined({licence for text in texts if (licence := recognise(text)) != UNKNOWN})


def is_licence_file(name: str) -> bool:
    """Whether a file is called like one that holds a licence: LICENSE, COPYING.LESSER, MIT-LICENSE.txt and so on."""
    return _FILE_NAME.search(name) is not None


def nearest(path: PurePosixPath, by_directory: Mapping[str, str]) -> str:
    """The licence that holds for `path`: that of the closest directory above it which has one."""
    return next((by_directory[str(above)] for above in path.parents if str(above) in by_directory), UNKNOWN)


def declared(fields: Fields) -> str:
    """What a distribution's metadata declare: an SPDX expression, classifiers or a licence field; else "unknown"."""
    expression = _field(fields, "License-Expression")
    if expression:
        return expression
    names = [value.rpartition(" :: ")[2] for value in fields.get_all("Classifier") or [] if "License ::" in value]
    if names:
        return " OR ".join(names)
    words = _field(fields, "License")
    # Some put the whole licence text into the field: where it is not a known one, its first line is the title.
    first = words.splitlines()[0].strip() if words else ""
    if first.upper() in {"", "UNKNOWN"}:
        return UNKNOWN
    recognised = recognise(words) if first != words else UNKNOWN
    return recognised if recognised != UNKNOWN else first[:80]


def refusal(licence: str, refused: Iterable[str]) -> str | None:
    """Why text under `licence` is not taken: it contains one of the words `refused`, whatever their case; else None.

    A GNU licence whose name is spelled out contains its abbreviation.
    """
    names = f"{licence}\n{_SPELLED.sub(_abbreviation, licence)}".lower()
    if not any(word.lower() in names for word in refused):
        return None
    return "unknown_licence" if licence == UNKNOWN else "refused_licence"


def _abbreviation(match: re.Match[str]) -> str:
    return "AGPL" if match["affero"] else "LGPL" if match["lesser"] else "GPL"


def _field(fields: Fields, name: str) -> str:
    values = fields.get_all(name) or [""]
    return str(values[0]).strip()


def _joined(licences: set[str]) -> str:
    return " AND ".join(sorted(licences)) or UNKNOWN
