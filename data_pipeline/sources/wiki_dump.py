"""Dumps of MediaWiki wikis, such as those of Wikipedia: XML files of all pages, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

from common.errors import UserError
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, Skipped
from data_pipeline.sources.config import WikipediaDump
from data_pipeline.sources.opening import ArchiveError, matching_files, open_plain, shown
from data_pipeline.sources.wikitext import Site, is_disambiguation, is_redirect, plain_text

_PACKAGES = ("mwxml", "mwparserfromhell")
# What mwxml raises for a page that is XML but not a page: numbers that are none, a missing title, an unknown element.
_BAD_PAGE = (ValueError, TypeError, AttributeError)
_MOST_RECORDS = 16  # of `max_record_bytes`: no more of a dump is read for one revision, with its escapes and comments


def plan(source: WikipediaDump, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """One part a file, with what tells whether it changed, or the packages that read it.

    Raises:
        UserError: a pattern matches no file, or a package is not installed.
    """
    try:
        versions = [version(package) for package in _PACKAGES]
    except PackageNotFoundError as error:
        raise UserError(f"a Wikipedia dump needs the {error.name} package: pip install -e '.[data]'") from error
    return [
        ((name,), f"{name} {state} {versions}")
        for name, (state, _) in matching_files(source.patterns, source.name).items()
    ]


def read(
    source: WikipediaDump, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined | Skipped]:
    """The articles of a dump: title, blank line, plain text. Redirects and the like are counted, and not listed.

    A dump that is cut off or damaged gives every page before the damage, then one record that says where it ends.
    """
    for name in items:
        dump = _Dump(source, number, name, config)
        try:
            yield from dump.read()
        except ArchiveError as error:
            yield dump.set_aside(error.reason)
        except OSError as error:
            yield dump.set_aside("unreadable_file", error.strerror or str(error))
        except ParseError as error:
            yield dump.set_aside("invalid_xml", str(error).partition("...")[0][:100])
        except _TooLong:
            yield dump.set_aside("too_large")


@dataclass
class _Page:
    """What a dump says of a page; `reason` is why its text is not read."""

    title: str
    position: str
    reason: str = ""
    revision: str = ""
    wikitext: str = ""


class _TooLong(Exception):
    """A page or revision without an end."""


class _Bounded:
    """A file that refuses to be read much further than a revision may be long: the XML parser holds a whole one."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit = file, limit
        self._since = 0

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read1(size)  # what comes before damage, and not nothing
        self._since += len(data)
        if self._since > self._limit:
            raise _TooLong
        return data

    def begin_record(self) -> None:
        self._since = 0


class _Dump:
    """Reads one dump in bounded memory."""

    def __init__(self, source: WikipediaDump, number: int, name: str, config: CollectionConfig) -> None:
        self.source, self.number, self.name, self.config = source, number, name, config
        self.position = "the beginning"  # the page that was read last
        self.pages = self.wiki = ""  # what a page's URL begins with, and the wiki's name
        self.site = Site()

    def set_aside(self, reason: str, detail: str = "") -> Quarantined:
        where = f"after {self.position}" + (f", {detail}" if detail else "")
        return Quarantined(self.number, shown(self.name), where, reason)

    def read(self) -> Iterator[Document | Quarantined | Skipped]:
        from mwxml.element_iterator import ElementIterator
        from mwxml.errors import MalformedXML

        with open_plain(self.name) as opened:
            if not opened.peek(1):
                yield Quarantined(self.number, shown(self.name), "whole file", "empty")
                return
            file = _Bounded(opened, _MOST_RECORDS * self.config.max_record_bytes)
            root = ElementIterator.from_file(file)
            if root.tag != "mediawiki":
                yield Quarantined(self.number, shown(self.name), "whole file", "not_a_dump")
                return
            for element in root:
                file.begin_record()
                page: _Page | Quarantined | None = None
                try:
                    if element.tag == "siteinfo":
                        self._begin(element)
                    elif element.tag == "page":
                        page = self._page(element, file)
                    element.complete()  # raises where the dump ends within the page
                except (MalformedXML, *_BAD_PAGE):
                    page = self.set_aside("invalid_page")
                root.element.clear()  # which would keep an empty element of every page
                if isinstance(page, _Page):
                    self.position = page.position
                    yield self._record(page)
                elif page is not None:
                    yield page
            next(root.pointer, None)  # raises where more follows, such as another dump

    def _begin(self, element: Any) -> None:
        from mwxml.iteration.site_info import SiteInfo

        info = SiteInfo.from_element(element)
        start, wiki, _ = (info.base or "").partition("/wiki/")
        self.pages = start + wiki if wiki else start.rpartition("/")[0] + "/"
        self.wiki = info.dbname or ""
        self.site = Site.of((space.id, space.name or "") for space in info.namespaces or ())

    def _page(self, element: Any, file: _Bounded) -> _Page:
        from mwxml import Page

        page = Page.from_element(element)
        found = _Page(str(page.title), f"page {page.id} ({page.title})")
        if page.namespace not in self.source.namespaces:
            found.reason = "other_namespace"
        elif page.redirect:
            found.reason = "redirect"
        else:
            for revision in page:  # the last one is the latest; most dumps have no other
                file.begin_record()
                content = revision.slots.contents.get("main")
                found.revision = str(revision.id)
                found.wikitext = (content and content.text) or ""
                found.reason = "" if content and content.model in (None, "wikitext") else "not_wikitext"
        return found

    def _record(self, page: _Page) -> Document | Quarantined | Skipped:
        reason = page.reason or _why_no_article(page.wikitext)
        if reason:
            return Skipped(reason)
        if len(page.wikitext) > self.config.max_record_bytes:
            return Quarantined(self.number, shown(self.name), page.position, "too_large")
        text = plain_text(page.wikitext, self.site)
        if not text:
            return Skipped("no_text")
        return Document(
            id="/".join(part for part in (self.source.name, self.wiki, page.title) if part),
            source=self.number,
            kind="wiki",
            origin=self.pages + quote(page.title.replace(" ", "_")),
            licence=self.source.licence,
            revision=page.revision,
            text=f"{page.title}\n\n{text}",
        )


def _why_no_article(wikitext: str) -> str:
    if not wikitext:
        return "no_text"
    if is_redirect(wikitext):
        return "redirect"
    return "disambiguation" if is_disambiguation(wikitext) else ""
