"""Web pages by their addresses. Each is fetched once into `downloads/web/` and read from there ever after.

A page lies there under a hash of its URL: `<key>.body` as it came, and `<key>.json` with its address after redirects,
date, type and sha256. A page that failed for good has its reason there; what may pass, as a timeout, is tried again by
the next run. Deleting the files, or `refresh`, has a page fetched anew.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

from common.errors import UserError
from common.files import atomic_write, only_process_in, read_json, sha256_of, write_json
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined
from data_pipeline.sources.config import WebPages
from data_pipeline.sources.fetching import Fetcher, FetchError
from data_pipeline.sources.html import UnreadablePage, page_text, site_of
from data_pipeline.sources.opening import require, shown
from data_pipeline.sources.source_tree import in_parts

_HOSTS_AT_ONCE = 16
_NEVER_ASKED = frozenset(("not_http", "invalid_url"))
_RECORDED = frozenset(("final_url", "content_type", "bytes", "sha256"))


def plan(source: WebPages, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """The pages in parts of about `shard_bytes`, fetched where they are not there yet; an item is (URL, body, record).

    Raises:
        UserError: the list cannot be read or is empty, a package is missing, or no host could be reached at all.
    """
    for package in ("trafilatura", "urllib3", "protego"):
        require(package, "a WebPages source")
    urls = _urls(source)
    pages = {url: _Page(downloads / "web", url) for url in urls}
    missing = [page for page in pages.values() if source.refresh or page.record is None]
    reasons = _fetch_all(source, missing, downloads / "web") if missing else {}
    _check_network(source, pages.values(), reasons)
    items = ((url, str(page.body), page.record or {"reason": reasons[url]}) for url, page in pages.items())
    sizes = ((item, item[2].get("bytes", 0)) for item in items)
    parts = [tuple(item for item, _ in part) for part in in_parts(sizes, config.shard_bytes)]
    return [(part, _state(part)) for part in parts]


def read(
    source: WebPages, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """One document a page: its title, a blank line, and the text."""
    for url, body, record in items:
        try:
            if record["reason"]:
                raise UnreadablePage(record["reason"])
            text = page_text(Path(body).read_bytes(), record["content_type"])
        except UnreadablePage as error:
            yield Quarantined(number, url, "whole page", error.reason)
            continue
        except OSError:
            yield Quarantined(number, url, "whole page", "unreadable_file")
            continue
        if text is None:
            yield Quarantined(number, url, "whole page", "no_text")
            continue
        yield Document(
            id=f"{source.name}/{url}",
            source=number,
            kind="prose",
            origin=record["final_url"],
            licence=source.licence,
            revision=f"sha256:{record['sha256']}",  # and not the date, so that a page fetched again is the same
            text=text,
            group=site_of(record["final_url"]),
        )


class _Page:
    """A page's files."""

    def __init__(self, directory: Path, url: str) -> None:
        key = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.url, self.body, self.description = url, directory / f"{key}.body", directory / f"{key}.json"
        self.record = self._stored()

    def _stored(self) -> dict[str, Any] | None:
        """What is known of the page; None where it has to be fetched."""
        try:
            record: dict[str, Any] = read_json(self.description)
            whole = record["reason"] or (record.keys() >= _RECORDED and sha256_of(self.body) == record["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if whole else None

    def fetch(self, fetcher: Fetcher) -> str:
        """Fetch and store the page. Returns the reason where there is none."""
        record: dict[str, Any] = {"url": self.url, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        try:
            answer = fetcher.get(self.url)
        except FetchError as error:
            if error.lasting:
                write_json(self.description, {**record, "reason": error.reason})
                self.record = self._stored()
            return error.reason
        with atomic_write(self.body, "wb") as file:
            file.write(answer.content)
        facts = {
            "final_url": answer.url,
            "status": answer.status,
            "content_type": answer.headers.get("Content-Type", ""),
            "bytes": len(answer.content),
            "sha256": hashlib.sha256(answer.content).hexdigest(),
        }
        write_json(self.description, {**record, "reason": "", **facts})
        self.record = self._stored()
        return ""


def _urls(source: WebPages) -> list[str]:
    """The addresses in their order, each once, without the fragments that only a browser needs."""
    lines: tuple[str, ...] | list[str] = source.urls if isinstance(source.urls, tuple) else []
    if isinstance(source.urls, str):
        try:
            content = Path(source.urls).read_text(encoding="utf-8-sig", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"source {source.name!r}: cannot read {source.urls}: {error.strerror}") from error
        lines = content.split("\n")
    wanted = [shown(line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
    if not wanted:
        raise UserError(f"source {source.name!r}: {source.urls or '`urls`'} names no page; give one URL a line")
    return list(dict.fromkeys(_without_fragment(url) for url in wanted))


def _check_network(source: WebPages, pages: Iterable[_Page], reasons: dict[str, str]) -> None:
    """Raises UserError: there is no page at all, because no host could be reached."""
    if any(page.record and not page.record["reason"] for page in pages):
        return
    if set(reasons.values()) - _NEVER_ASKED == {"unreachable"}:
        url = next(page.url for page in pages if reasons.get(page.url) == "unreachable")
        raise UserError(
            f"source {source.name!r}: no host could be reached, that of {url} among them; check the network and run "
            "the command again"
        )


def _without_fragment(url: str) -> str:
    try:
        return urldefrag(url).url
    except ValueError:  # set aside when it is fetched
        return url


def _fetch_all(source: WebPages, pages: list[_Page], directory: Path) -> dict[str, str]:
    """Fetch pages, a thread a host. Returns the reasons of those that failed, by URL."""
    by_host: dict[str, list[_Page]] = {}
    for page in pages:
        by_host.setdefault(_host(page.url), []).append(page)
    fetcher, reasons = Fetcher(source), dict[str, str]()

    def fetch(group: list[_Page]) -> None:
        for page in group:
            reasons[page.url] = page.fetch(fetcher)

    with only_process_in(directory), ThreadPoolExecutor(_HOSTS_AT_ONCE) as threads:
        try:
            waiting = {threads.submit(fetch, group) for group in by_host.values()}
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                _report(source, len(pages), list(reasons.values()), finished=not waiting)
        except BaseException:
            fetcher.stop()
            raise
    return {url: reason for url, reason in reasons.items() if reason}


def _report(source: WebPages, pages: int, reasons: list[str], finished: bool) -> None:
    """One line that counts the pages as they come, or only at the end where a line cannot be overwritten."""
    if not finished and not sys.stdout.isatty():
        return
    line = f"        {source.name}: {len(reasons):,} of {pages:,} pages asked for, {sum(map(bool, reasons)):,} failed"
    print(f"\r{line}" if sys.stdout.isatty() else line, end="\n" if finished else "", flush=True)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _state(items: Iterable[tuple[str, str, dict[str, Any]]]) -> str:
    known = ("reason", "final_url", "content_type", "sha256")
    return repr([(url, [record.get(name, "") for name in known]) for url, _, record in items])
