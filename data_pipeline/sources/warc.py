"""Pages from web archives in the WARC format (ISO 28500): .warc, .warc.gz, .warc.zst, and .wet files of plain text.

warcio reads the records. Where one begins and ends is found here, because warcio stops at the first damage, and takes
a record of any size into memory.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, Skipped
from data_pipeline.sources.config import WarcFiles
from data_pipeline.sources.html import UnreadablePage, is_page, page_text, site_of
from data_pipeline.sources.members import Member, members
from data_pipeline.sources.opening import (
    ArchiveError,
    is_remote,
    matching_files,
    open_plain,
    open_raw,
    require,
    shown,
)

_PAGES = frozenset(("response", "resource", "conversion"))  # other types describe how the pages were fetched
_MOST_HEADER = 65_536  # bytes


def plan(source: WarcFiles, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """One part a file.

    Raises:
        UserError: a pattern matches no file, or a package is missing.
    """
    for package in ("trafilatura", "warcio"):
        require(package, "a WarcFiles source")
    files = matching_files(source.patterns, source.name)
    return [((name,), repr((name, state))) for name, (state, _) in files.items()]


def read(
    source: WarcFiles, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined | Skipped]:
    """The pages of some archives. Records that are no pages are counted by their reason."""
    for name in items:
        reader = _Reader(source, number, name, config)
        try:
            yield from reader.read()
        except ArchiveError as error:
            yield reader.set_aside(f"after record {reader.records}", error.reason)
        except OSError as error:
            yield reader.set_aside(error.strerror or str(error), "unreadable_file")
        for reason, count in sorted(reader.no_pages.items()):
            yield Skipped(reason, count)


class _Reader:
    """Reads one file in bounded memory."""

    def __init__(self, source: WarcFiles, number: int, name: str, config: CollectionConfig) -> None:
        self.source, self.number, self.name, self.config = source, number, name, config
        self.origin = shown(name if is_remote(name) else Path(name).as_posix())
        self.records = 0  # that have begun
        self.no_pages: Counter[str] = Counter()
        self._cut = False  # whether the stream ended inside a record

    def read(self) -> Iterator[Document | Quarantined]:
        with open_raw(self.name) as raw:
            found = members(raw)
            if found is not None:
                yield from self._members(found)
                return
        with open_plain(self.name) as file:
            yield from self._records(file)
        if self._cut:
            yield self.set_aside(f"record {self.records}", "truncated_record")

    def _members(self, found: Iterator[Member]) -> Iterator[Document | Quarantined]:
        """The records of a compressed file, which has one in each member, or more."""
        for member in found:
            yield from self._records(io.BufferedReader(member))
            if member.damage:
                yield self.set_aside(f"byte {member.start}", member.damage)
            elif self._cut:
                yield self.set_aside(f"record {self.records}", "truncated_record")

    def _records(self, file: io.BufferedReader) -> Iterator[Document | Quarantined]:
        """The records of a stream. After a damaged one, it goes on with the next line that begins like a record."""
        self._cut = damaged = False
        while True:
            line, skipped = _next_record(file)
            if damaged or skipped:
                yield self.set_aside(f"after record {self.records - damaged}", "damaged_record")
            if not line:
                return
            self.records += 1
            head = _head(file, line)
            kind, length = _kind_and_length(head)
            damaged = length is None and bool(file.peek(1))
            if length is None:
                self._cut = not damaged
                continue
            wanted = kind in _PAGES and length <= self.config.max_record_bytes + _MOST_HEADER
            block = file.read(length) if wanted else b""
            self._cut = len(block) < length if wanted else not _skip(file, length)
            damaged = file.peek(1)[:1] not in b"\r\n"  # the length is wrong
            if self._cut or damaged or kind not in _PAGES:
                continue
            if not wanted:
                yield self.set_aside(f"record {self.records}", "too_large")
            elif (record := self._page(head, block)) is not None:
                yield record

    def _page(self, head: bytes, block: bytes) -> Document | Quarantined | None:
        """The page in a record; None where nobody would look for text in it, as in an image, which is only counted."""
        from warcio.exceptions import ArchiveLoadFailed
        from warcio.recordloader import ArcWarcRecordLoader

        position = f"record {self.records}"
        try:
            record = ArcWarcRecordLoader(verify_http=False).parse_record_stream(io.BytesIO(head + block), None, "warc")
        except (ArchiveLoadFailed, EOFError, ValueError, AttributeError):  # the last where there is no address
            return self.set_aside(position, "damaged_record")
        url = record.rec_headers.get_header("WARC-Target-URI") or ""
        reason = _no_page(record, url)
        if reason:
            self.no_pages[reason] += 1
            return None
        content = _content(record, self.config.max_record_bytes + 1)
        if len(content) > self.config.max_record_bytes:
            return self.set_aside(f"{position}, {url}", "too_large")
        try:
            text = page_text(content, _content_type(record))
        except UnreadablePage as error:
            return self.set_aside(f"{position}, {url}", error.reason)
        if text is None:
            return self.set_aside(f"{position}, {url}", "no_text")
        return Document(
            id=f"{self.source.name}/{self.origin}#record{self.records}",
            source=self.number,
            kind="prose",
            origin=url or f"{self.origin}#record{self.records}",
            licence=self.source.licence,
            revision=record.rec_headers.get_header("WARC-Date") or "",
            text=text,
            group=site_of(url),
        )

    def set_aside(self, position: str, reason: str) -> Quarantined:
        return Quarantined(self.number, self.origin, position, reason)


def _next_record(file: io.BufferedReader) -> tuple[bytes, bool]:
    """The first line of the next record, empty at the end, and whether anything stood before it."""
    skipped = False
    while line := file.readline(_MOST_HEADER):
        if line.startswith(b"WARC/"):
            break
        skipped = skipped or bool(line.strip())
    return line, skipped


def _head(file: io.BufferedReader, line: bytes) -> bytes:
    """The header of a record, with the blank line that ends it."""
    head = line
    while line.strip() and len(head) < _MOST_HEADER:
        line = file.readline(_MOST_HEADER)
        if not line:
            break
        head += line
    return head


def _kind_and_length(head: bytes) -> tuple[str, int | None]:
    """Type and bytes of a record; None where the header is torn or says no length."""
    from warcio.recordloader import ArcWarcRecordLoader
    from warcio.statusandheaders import StatusAndHeadersParser, StatusAndHeadersParserException

    try:
        headers = StatusAndHeadersParser(ArcWarcRecordLoader.WARC_TYPES).parse(io.BytesIO(head))
    except (StatusAndHeadersParserException, EOFError):
        return "", None
    length = headers.get_header("Content-Length") or ""
    whole = head.endswith((b"\n\n", b"\r\n\r\n", b"\n\r\n"))
    kind = (headers.get_header("WARC-Type") or "").lower()
    return kind, int(length) if whole and length.isascii() and length.isdigit() and len(length) < 16 else None


def _skip(file: io.BufferedReader, length: int) -> bool:
    """Whether there were so many bytes."""
    while length:
        read = len(file.read(min(length, io.DEFAULT_BUFFER_SIZE)))
        if not read:
            return False
        length -= read
    return True


def _no_page(record: Any, url: str) -> str:
    """Why nobody would look for text in a record; "" for a page."""
    from warcio.bufferedreaders import BufferedReader

    if url.partition("?")[0].endswith("/robots.txt"):
        return "robots_txt"
    if record.http_headers is not None:
        status = record.http_headers.get_statuscode()
        if status != "200":
            return f"http_{status}" if len(status) == 3 and status.isdigit() else "invalid_http"
        if _encoding(record) not in {"", "identity", *BufferedReader.get_supported_decompressors()}:
            return "unknown_encoding"
    return "" if is_page(_content_type(record)) else "not_html"


def _content(record: Any, limit: int) -> bytes:
    """At most `limit` bytes of the content, without what HTTP wrapped it in."""
    from warcio.bufferedreaders import BufferedReader, ChunkedDataReader

    stream = record.raw_stream
    if record.http_headers is not None:
        if (record.http_headers.get_header("Transfer-Encoding") or "").lower() == "chunked":
            stream = ChunkedDataReader(stream)
        # One after the other: together they would decompress a whole chunk, whatever it expands to.
        if _encoding(record) not in {"", "identity"}:
            stream = BufferedReader(stream, decomp_type=_encoding(record))
    content: bytes = stream.read(limit)
    return content


def _encoding(record: Any) -> str:
    return (record.http_headers.get_header("Content-Encoding") or "").strip().lower()


def _content_type(record: Any) -> str:
    return (record.http_headers or record.rec_headers).get_header("Content-Type") or ""
