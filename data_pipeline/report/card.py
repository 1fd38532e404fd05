"""The facts that a dataset card of the Hugging Face hub states at its head: licences, languages, size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.report.facts import Facts

# Names of the hub that differ from the lower-case SPDX identifier or that licence texts use instead of one.
_LICENCES = {
    "mit license": "mit",
    "apache software license": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "bsd license": "bsd",
}
_KNOWN = frozenset(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 odc-by odbl gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 agpl-3.0 "
    "mpl-2.0 isc zlib unlicense gfdl bsl-1.0".split()
)
_SIZES = ((3, "1K"), (4, "10K"), (5, "100K"), (6, "1M"), (7, "10M"), (8, "100M"), (9, "1B"), (10, "10B"))


def front_matter(facts: Facts) -> dict[str, Any]:
    """Values of the YAML head, ready for JSON, which is YAML."""
    licences = hub_licences(facts.manifest["licences"])
    return {
        "license": licences[0] if len(licences) == 1 else licences,
        "language": languages(facts),
        "size_categories": [size_category(facts.total["documents"])],
        "task_categories": ["text-generation"],
        "pretty_name": facts.manifest["name"],
    }


def hub_licences(licences: dict[str, int]) -> list[str]:
    """The hub's names for licences, the most frequent first; "other" stands for all that it has no name for."""
    found: dict[str, int] = {}
    for licence, documents in licences.items():
        name = _LICENCES.get(licence.lower(), licence.lower())
        name = name if name in _KNOWN else "other"
        found[name] = found.get(name, 0) + documents
    return sorted(found, key=lambda name: (name == "other", -found[name], name)) or ["other"]


def languages(facts: Facts) -> list[str]:
    """Codes of the languages that were found, else of those that the sources declare; "code" for source code."""
    found = [row["name"] for row in facts.languages if row["name"] and row["kept"]]
    if not found:
        declared = [source.get("language") for source in facts.manifest["config"]["sources"]]
        found = [language for language in dict.fromkeys(declared) if isinstance(language, str) and language]
    if facts.has_code:
        found.append("code")
    return found or ["und"]


def size_category(documents: int) -> str:
    """The hub's class of sizes."""
    if documents < 1000:
        return "n<1K"
    names = [name for _, name in _SIZES]
    place = min(len(str(documents)) - 1, _SIZES[-1][0]) - _SIZES[0][0]
    return f"{names[place]}<n<{names[place + 1]}" if place + 1 < len(names) else f"n>{names[-1]}"


def attribution(licences: dict[str, int]) -> dict[str, list[str]]:
    """Licences that ask for attribution, alone or beside others, and those of them that ask for sharing alike."""
    asking = [name for name in licences if re.search(r"\bcc[- ]by\b", name, re.IGNORECASE)]
    alike = [name for name in asking if re.search(r"\bcc[- ]by(-nc)?-sa\b", name, re.IGNORECASE)]
    return {"attribution": asking, "share_alike": alike}


def is_ours(path: Path, mark: str) -> bool:
    """Whether a card may be overwritten: there is none, or it has the mark of those that are made here."""
    return not path.is_file() or mark in path.read_text(encoding="utf-8", errors="replace")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def markdown(value: Any) -> str:
    """Text that stands in a Markdown table as it is: one line, and neither markup nor HTML."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word marks nothing, and names are full of them.
    return re.sub(r"([\\`*{}\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
