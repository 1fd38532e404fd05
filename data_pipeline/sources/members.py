"""Compressed files of many members, as web archives are: where one is damaged, the others can still be read."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from data_pipeline.sources import opening
from data_pipeline.sources.opening import COMPRESSED_BYTES, MOST_EXPANSION, ZSTANDARD_BYTES, ArchiveError, require

_GZIP = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_ZSTANDARD = re.compile(rb"\x28\xb5\x2f\xfd")
_DICTIONARY = b"\x5d\x2a\x4d\x18"  # of all frames, in a frame of its own (IIPC, WARC-Zstandard 1.0)
_MOST_DICTIONARY = 10_000_000  # bytes
_LONGEST_MAGIC = 4


class Member(io.RawIOBase):
    """What one member holds. A damaged one ends early, and `damage` says why."""

    def __init__(self, file: IO[bytes], start: int, decompressor: Any, at_once: int) -> None:
        self.start = start  # in the compressed file, in bytes
        self.end: int | None = None  # once a whole member has been read to its end
        self.damage = ""
        self._file, self._decompressor, self._at_once = file, decompressor, at_once
        self._taken = self._given = 0
        self._ready = memoryview(b"")
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self.end is None and not self.damage:
            self._advance()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _advance(self) -> None:
        data = self._file.read(self._at_once)
        if not data:
            self.damage = "truncated_archive"
            return
        self._taken += len(data)
        try:
            self._ready = memoryview(self._decompressor.decompress(data))
        except opening.damage():
            self.damage = "damaged_archive"
            return
        self._given += len(self._ready)
        if self._decompressor.eof:
            self.end = self.start + self._taken - len(self._decompressor.unused_data)
        elif self._given > max(opening.SMALL, MOST_EXPANSION * self._taken):
            self.damage = "expands_too_much"


def members(file: IO[bytes]) -> Iterator[Member] | None:
    """The members of a gzip or Zstandard file, each to be read to its end before the next; None for other files.

    What is no member, between or after them, is given as a damaged one.

    Raises:
        ArchiveError: the dictionary of a Zstandard file is damaged.
        UserError: zstandard is needed and not installed.
    """
    magic = file.read(_LONGEST_MAGIC)
    if _GZIP.match(magic):
        return _each(file, 0, _GZIP, lambda: zlib.decompressobj(31), COMPRESSED_BYTES)
    if not _ZSTANDARD.match(magic) and magic != _DICTIONARY:
        return None
    require("zstandard", "a .zst file")
    import zstandard

    start, dictionary = 0, None
    if magic == _DICTIONARY:
        size = int.from_bytes(file.read(4), "little")
        content = file.read(min(size, _MOST_DICTIONARY))
        try:
            if _ZSTANDARD.match(content):
                unpacking = zstandard.ZstdDecompressor().decompressobj()
                content = unpacking.decompress(content) if size <= _MOST_DICTIONARY else b""
                if not unpacking.eof:
                    raise ArchiveError("damaged_archive")
            start, dictionary = 8 + size, zstandard.ZstdCompressionDict(content)
        except zstandard.ZstdError as error:
            raise ArchiveError("damaged_archive") from error
    new = zstandard.ZstdDecompressor(dict_data=dictionary).decompressobj
    return _each(file, start, _ZSTANDARD, new, ZSTANDARD_BYTES)


def _each(
    file: IO[bytes], start: int, magic: re.Pattern[bytes], new: Callable[[], Any], at_once: int
) -> Iterator[Member]:
    place: int | None = start
    while place is not None and _has_more(file, place):
        member = Member(file, place, new(), at_once)
        yield member
        place = member.end if member.end is not None else _find(file, magic, place + 1)


def _has_more(file: IO[bytes], place: int) -> bool:
    file.seek(place)
    return bool(file.read(1))


def _find(file: IO[bytes], magic: re.Pattern[bytes], place: int) -> int | None:
    """Where the next member seems to begin, at `place` or later."""
    file.seek(place)
    tail = b""
    while data := file.read(io.DEFAULT_BUFFER_SIZE):
        found = magic.search(tail + data)
        if found:
            return place - len(tail) + found.start()
        place += len(data)
        tail = (tail + data)[-(_LONGEST_MAGIC - 1) :]
    return None
