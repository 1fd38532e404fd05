"""Local and remote files: plain text, Markdown, HTML, source code, JSON lines, CSV and Parquet, compressed or not."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined
from data_pipeline.sources.config import TextFiles
from data_pipeline.sources.html import UnreadablePage, html_to_text
from data_pipeline.sources.opening import (
    ArchiveError,
    is_remote,
    matching_files,
    open_plain,
    open_raw,
    plain_suffix,
    require,
    shown,
    utf8,
)
from data_pipeline.sources.source_tree import CODE, in_parts

_HTML = frozenset((".html", ".htm", ".xhtml"))
_TABLES = {".csv": ",", ".tsv": "\t"}
_ROWS_AT_ONCE = 256  # of a Parquet file, which bounds memory, as does what is read of it at once
_PARQUET_BYTES = 1 << 20
T = TypeVar("T")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what stands for a byte in the error handler "surrogateescape"
_MOST_READ_AGAIN = 4  # of `max_record_bytes`, and of the file so far: for rows of CSV that are never closed


def plan(source: TextFiles, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """The files that match, in parts of about `shard_bytes`, with what tells whether they changed.

    Raises:
        UserError: a pattern matches no file, or a format needs a package that is not installed.
    """
    files = matching_files(source.patterns, source.name)
    for name in files:
        _check_packages(name)
    sizes = ((name, size) for name, (_, size) in files.items())
    parts = [tuple(name for name, _ in part) for part in in_parts(sizes, config.shard_bytes)]
    return [(part, repr([(name, files[name][0]) for name in part])) for part in parts]


def read(
    source: TextFiles, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """The documents of some files. Whatever is wrong with a part of one, the rest of it is still read."""
    for name in items:
        reader = _Reader(source, number, name, config)
        try:
            yield from reader.read()
        except ArchiveError as error:
            yield reader.set_aside(f"after {reader.position or 'the beginning'}", error.reason)
        except OSError as error:
            yield reader.set_aside(error.strerror or str(error), "unreadable_file")


def _popped(items: deque[T]) -> Iterator[T]:
    while items:
        yield items.popleft()


def _check_packages(name: str) -> None:
    needed = {".parquet": "pyarrow", **dict.fromkeys(_HTML, "trafilatura")}.get(plain_suffix(name))
    if needed:
        require(needed, shown(name))


class _Reader:
    """Reads one file in bounded memory."""

    def __init__(self, source: TextFiles, number: int, name: str, config: CollectionConfig) -> None:
        self.source, self.number, self.name, self.config = source, number, name, config
        self.suffix = plain_suffix(name)
        self.origin = shown(name if is_remote(name) else Path(name).as_posix())
        self.code = self.suffix in CODE
        self.position = ""  # of what was read last

    def read(self) -> Iterator[Document | Quarantined]:
        """At least one record, so that no file goes uncounted."""
        record = None
        for record in self._records():
            yield record
        if record is None:
            yield self.set_aside("whole file", "empty")

    def _records(self) -> Iterator[Document | Quarantined]:
        if self.suffix == ".parquet":
            yield from self._parquet()
            return
        with open_plain(self.name) as opened:
            file = utf8(opened)
            if not file.peek(1):
                return
            if self.suffix in {".jsonl", ".ndjson"}:
                yield from self._json_lines(file)
            elif self.suffix in _TABLES:
                yield from self._table(file, _TABLES[self.suffix])
            elif self.suffix in _HTML:
                yield self._html(file)
            elif self.code:
                yield self._whole(file)
            else:
                yield from self._plain_text(file)

    def _json_lines(self, file: IO[bytes]) -> Iterator[Document | Quarantined]:
        for position, line in self._lines(file):
            if isinstance(line, Quarantined):
                yield line
                continue
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                yield self.set_aside(position, "invalid_json")
                continue
            if isinstance(value, dict):
                yield from self._fields(value.get(self.source.text_field), position)
            else:
                yield self.set_aside(position, "not_an_object")

    def _table(self, file: IO[bytes], delimiter: str) -> Iterator[Document | Quarantined]:
        """The rows of a CSV file, of which the first names the columns."""
        csv.field_size_limit(2 * self.config.max_record_bytes)
        column: int | None = None
        for position, row in self._csv_rows(file, delimiter):
            if isinstance(row, Quarantined):
                yield row
                continue
            self.position = position
            if column is None and self.source.text_field not in row:
                yield self.set_aside("whole file", "no_text_field")
                return
            if column is None:
                column = row.index(self.source.text_field)
            elif row:
                record = self._field(row[column] if column < len(row) else None, position)
                damaged = isinstance(record, Document) and _NOT_UTF8.search(record.text)
                yield self.set_aside(position, "invalid_utf8") if damaged else record

    def _csv_rows(self, file: IO[bytes], delimiter: str) -> Iterator[tuple[str, list[str] | Quarantined]]:
        """Rows with the positions of their first lines. One that cannot be read costs only its first line.

        The lines that a quotation mark which is never closed had joined to it are read again, as rows of their own.
        Once too many were, no row may go on in another line: the work stays in proportion to the file.
        """
        lines = self._lines(file, "surrogateescape")
        again: deque[tuple[str, str | Quarantined]] = deque()
        credit = _MOST_READ_AGAIN * self.config.max_record_bytes  # characters that may still be read again
        while True:
            taken: list[tuple[str, str | Quarantined]] = []
            given = self._row_lines(chain(_popped(again), lines), taken, joined=credit > 0)
            try:
                # Strict, because what follows on a closed quotation mark may be another row, joined to this one.
                row = next(csv.reader(given, delimiter=delimiter, strict=True), [])
            except csv.Error:
                again.extendleft(reversed(taken[1:]))
                credit -= sum(len(text) for _, text in taken[1:] if isinstance(text, str))
                yield taken[0][0], self.set_aside(taken[0][0], "invalid_row")
                continue
            if not taken:
                return
            position, line = taken[0]
            yield position, line if isinstance(line, Quarantined) else row
            credit += len(line) if isinstance(line, str) else 0

    def _row_lines(
        self, lines: Iterator[tuple[str, str | Quarantined]], taken: list[tuple[str, str | Quarantined]], joined: bool
    ) -> Iterator[str]:
        """Lines for one row, as many as are asked for and a record may have; all of them are noted in `taken`."""
        size = 0
        for position, line in lines:
            taken.append((position, line))
            if isinstance(line, Quarantined):
                return
            yield line
            size += len(line)
            if not joined or size > self.config.max_record_bytes:
                return

    def _parquet(self) -> Iterator[Document | Quarantined]:
        import pyarrow
        import pyarrow.parquet

        field = self.source.text_field
        with open_raw(self.name) as raw:
            try:
                file = pyarrow.parquet.ParquetFile(raw, buffer_size=_PARQUET_BYTES, pre_buffer=False)
                columns = file.schema_arrow.names
            except (pyarrow.ArrowException, OSError):
                yield self.set_aside("whole file", "damaged_parquet")
                return
            if field not in columns:
                yield self.set_aside("whole file", "no_text_field")
                return
            row = 0
            for group in range(file.num_row_groups):
                try:
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[field]):
                        for value in batch.column(0).to_pylist():
                            row += 1
                            yield from self._fields(value, f"row {row}")
                except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
                    yield self.set_aside(f"row group {group}, after row {row}", "damaged_parquet")

    def _plain_text(self, file: IO[bytes]) -> Iterator[Document | Quarantined]:
        """Documents of about `max_document_bytes`, cut at blank lines; a file below that is one document.

        A line that cannot be read ends a document: no text says what stands on both sides of it in one breath.
        """
        limit = self.config.max_document_bytes
        lines: list[str] = []
        size, first = 0, ""
        for position, line in chain(self._lines(file), [("", None)]):
            if isinstance(line, str):
                first = first or position
                lines.append(line)
                size += len(line)
                if size < limit and (size < limit * 3 // 4 or line.strip()):
                    continue
            if any(map(str.strip, lines)):
                yield self._document("".join(lines), f"part {first}")
            lines, size, first = [], 0, ""
            if isinstance(line, Quarantined):
                yield line

    def _html(self, file: IO[bytes]) -> Document | Quarantined:
        content = file.read(self.config.max_record_bytes + 1)
        if len(content) > self.config.max_record_bytes:
            return self.set_aside("whole file", "too_large")
        try:
            text = html_to_text(content)
        except UnreadablePage as error:
            return self.set_aside("whole file", error.reason)
        return self._document(text, "") if text else self.set_aside("whole file", "no_text")

    def _whole(self, file: IO[bytes]) -> Document | Quarantined:
        content = file.read(self.config.max_record_bytes + 1)
        if len(content) > self.config.max_record_bytes:
            return self.set_aside("whole file", "too_large")
        try:
            return self._document(content.decode("utf-8-sig"), "")
        except UnicodeDecodeError as error:
            return self.set_aside(f"byte {error.start}", "invalid_encoding")

    def _raw_lines(self, file: IO[bytes]) -> Iterator[tuple[str, bytes | None]]:
        """Lines with their positions, None for one too long. At most `max_record_bytes` of a line are ever held."""
        limit = self.config.max_record_bytes
        number = 0
        while content := file.readline(limit + 1):
            number += 1
            self.position = f"line {number}"
            if len(content) <= limit or content.endswith(b"\n"):
                yield self.position, content
                continue
            while content and not content.endswith(b"\n"):
                content = file.readline(limit)
            yield self.position, None

    def _lines(self, file: IO[bytes], errors: str = "strict") -> Iterator[tuple[str, str | Quarantined]]:
        """Decoded lines with their positions. `errors` is the error handler of the codec."""
        for number, (position, content) in enumerate(self._raw_lines(file)):
            if content is None:
                yield position, self.set_aside(position, "line_too_long")
                continue
            if b"\0" in content:
                yield position, self.set_aside(position, "nul_byte")
                continue
            try:
                yield position, content.decode("utf-8-sig" if number == 0 else "utf-8", errors)
            except UnicodeDecodeError as error:
                yield position, self.set_aside(f"{position}, byte {error.start}", "invalid_utf8")

    def _fields(self, value: Any, position: str) -> Iterator[Document | Quarantined]:
        """One document of a text, and one each of a list of texts, which stay on one side of the split."""
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            for number, text in enumerate(value, 1):
                yield self._document(text, f"{position}, text {number}", f"{self.source.name}/{self._at(position)}")
        else:
            yield self._field(value, position)

    def _field(self, value: Any, position: str) -> Document | Quarantined:
        if not isinstance(value, str):
            return self.set_aside(position, "no_text")
        return self._document(value, position)

    def _at(self, position: str) -> str:
        return f"{self.origin}#{position.replace(' ', '')}" if position else self.origin

    def _document(self, text: str, position: str, group: str = "") -> Document:
        origin = self._at(position)
        return Document(
            id=f"{self.source.name}/{origin}",
            source=self.number,
            kind="code" if self.code else "prose",
            origin=origin,
            licence=self.source.licence,
            revision="",
            text=text,
            group=group,
        )

    def set_aside(self, position: str, reason: str) -> Quarantined:
        return Quarantined(self.number, self.origin, position, reason)
