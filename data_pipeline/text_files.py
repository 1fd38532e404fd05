"""The user's own text: plain text, Markdown and source files, and JSON lines."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from common.errors import UserError
from data_pipeline.config import CollectionConfig, TextFiles
from data_pipeline.documents import Document, Quarantined

_CODE = frozenset((".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".hpp", ".rs", ".go", ".rb", ".sh", ".sql"))
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def plan(source: TextFiles, config: CollectionConfig) -> list[tuple[tuple[Any, ...], str]]:
    """The files that match, in parts of about `shard_bytes`, with their sizes and times.

    Raises:
        UserError: a pattern matches no file.
    """
    files: set[str] = set()
    for pattern in source.patterns:
        matched = [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not matched:
            raise UserError(f"source {source.name!r}: no file matches {pattern!r} in {Path.cwd()}")
        files.update(matched)
    parts: list[tuple[tuple[Any, ...], str]] = []
    group: list[str] = []
    state: list[tuple[str, int, int]] = []
    for name in sorted(files):
        if group and sum(size for _, size, _ in state) > config.shard_bytes:
            parts.append((tuple(group), repr(state)))
            group, state = [], []
        status = Path(name).stat()
        group.append(name)
        state.append((name, status.st_size, status.st_mtime_ns))
    return [*parts, (tuple(group), repr(state))]


def read(
    source: TextFiles, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined]:
    """The documents of some files. Whatever is wrong with a line, the rest of its file is still read."""
    for name in items:
        reader = _Reader(source, number, name, config)
        try:
            yield from reader.read()
        except OSError as error:
            yield Quarantined(number, name, error.strerror or "", "unreadable_file")


class _Reader:
    """Reads one file in bounded memory."""

    def __init__(self, source: TextFiles, number: int, name: str, config: CollectionConfig) -> None:
        self.source, self.number, self.name, self.config = source, number, name, config
        self.code = Path(name).suffix.lower() in _CODE

    def read(self) -> Iterator[Document | Quarantined]:
        suffix = Path(self.name).suffix.lower()
        with open(self.name, "rb") as file:
            if not file.peek(1):
                yield self._set_aside("whole file", "empty")
            elif suffix in {".jsonl", ".ndjson"}:
                yield from self._json_lines(file)
            elif self.code:
                yield self._whole(file)
            elif file.peek(2)[:2] in _UTF16:
                yield self._whole(file, "utf-16")
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
                yield self._set_aside(position, "invalid_json")
                continue
            if not isinstance(value, dict):
                yield self._set_aside(position, "not_an_object")
            elif not isinstance(value.get(self.source.text_field), str):
                yield self._set_aside(position, "no_text")
            else:
                yield self._document(value[self.source.text_field], position)

    def _plain_text(self, file: IO[bytes]) -> Iterator[Document | Quarantined]:
        """Documents of about `max_document_bytes`, cut at blank lines; a file below that is one document."""
        lines: list[str] = []
        size, first = 0, ""
        for position, line in self._lines(file):
            if isinstance(line, Quarantined):
                yield line
                continue
            first = first or position
            lines.append(line)
            size += len(line)
            limit = self.config.max_document_bytes
            if size >= limit or (size >= limit * 3 // 4 and not line.strip()):
                yield self._document("".join(lines), f"part {first}")
                lines, size, first = [], 0, ""
        if lines and "".join(lines).strip():
            yield self._document("".join(lines), f"part {first}")

    def _whole(self, file: IO[bytes], encoding: str = "utf-8-sig") -> Document | Quarantined:
        content = file.read(self.config.max_record_bytes + 1)
        if len(content) > self.config.max_record_bytes:
            return self._set_aside("whole file", "too_large")
        try:
            return self._document(content.decode(encoding), "")
        except UnicodeDecodeError as error:
            return self._set_aside(f"byte {error.start}", "invalid_encoding")

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[str, str | Quarantined]]:
        """Decoded lines with their positions. At most `max_record_bytes` of a line are ever held."""
        limit = self.config.max_record_bytes
        number = 0
        while content := file.readline(limit + 1):
            number += 1
            position = f"line {number}"
            if len(content) > limit and not content.endswith(b"\n"):
                while content and not content.endswith(b"\n"):
                    content = file.readline(limit)
                yield position, self._set_aside(position, "line_too_long")
                continue
            if b"\0" in content:
                yield position, self._set_aside(position, "nul_byte")
                continue
            try:
                yield position, content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield position, self._set_aside(f"{position}, byte {error.start}", "invalid_utf8")

    def _document(self, text: str, position: str) -> Document:
        origin = f"{Path(self.name).as_posix()}#{position.replace(' ', '')}" if position else Path(self.name).as_posix()
        return Document(
            id=f"{self.source.name}/{origin}",
            source=self.number,
            kind="code" if self.code else "prose",
            origin=origin,
            licence=self.source.licence,
            revision="",
            text=text,
        )

    def _set_aside(self, position: str, reason: str) -> Quarantined:
        return Quarantined(self.number, self.name, position, reason)
