"""Opening files wherever they are, decompressed by what they hold and not by what they are called."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.errors import UserError

COMPRESSED = frozenset((".gz", ".bz2", ".xz", ".zst"))
# A text is never a thousandth of its size; an archive made to fill a disk is.
MOST_EXPANSION = 1000
SMALL = 10_000_000
COMPRESSED_BYTES = 8192  # compressed bytes taken at a time, as they may become a thousand times as many


class ArchiveError(OSError):
    """A compressed file that cannot be read to its end; `reason` is short, for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_remote(name: str) -> bool:
    return "://" in name


def require(package: str, needed_by: str) -> None:
    """Raises UserError: an optional package, one of the `data` extra, is not installed."""
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(f"{needed_by} needs the {package} package: pip install -e '.[data]'") from error


def matching_files(patterns: Iterable[str], source: str) -> dict[str, tuple[str, int]]:
    """The files that match any of the patterns, by name: a text that tells whether one has changed, and its bytes.

    Raises:
        UserError: a pattern matches no file; `source` is named.
    """
    files: dict[str, tuple[str, int]] = {}
    for pattern in patterns:
        matched = matching(pattern)
        if not matched:
            where = "" if is_remote(pattern) else f" in {Path.cwd()}"
            raise UserError(f"source {source!r}: no file matches {pattern!r}{where}")
        files.update((name, (state, size)) for name, state, size in matched)
    return dict(sorted(files.items()))


def matching(pattern: str) -> list[tuple[str, str, int]]:
    """The files that match, each with a text that tells whether it has changed, and its bytes.

    `pattern` is a name, a glob pattern (`**` crosses directories), or either behind a URL that fsspec knows.
    """
    if not is_remote(pattern):
        found = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
        statuses = [(name, Path(name).stat()) for name in found]
        return [(name, f"{status.st_size} {status.st_mtime_ns}", status.st_size) for name, status in statuses]
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(pattern)
        names = sorted(files.glob(path)) if glob.has_magic(path) else [path] * files.isfile(path)
        return [(files.unstrip_protocol(name), str(files.ukey(name)), int(files.size(name) or 0)) for name in names]
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot look for {pattern}: {error}") from error


def plain_suffix(name: str) -> str:
    """The suffix that tells the format, without that of the compression."""
    path = PurePosixPath(name.replace("\\", "/").lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def shown(name: str) -> str:
    """A file name as text that can be written anywhere, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def open_raw(name: str) -> IO[bytes]:
    """The file as it is. Raises OSError."""
    if not is_remote(name):
        return open(name, "rb")
    import fsspec

    file: IO[bytes] = fsspec.open(name, "rb").open()
    return file


def open_plain(name: str) -> io.BufferedReader:
    """The file without its compression. Raises OSError, now or while reading."""
    return decompressed(open_raw(name))


def decompressed(file: IO[bytes]) -> io.BufferedReader:
    """What `file` holds without its compression, if it has one. Raises OSError, now or while reading."""
    raw: Any = _Guarded(file, file)
    buffered = io.BufferedReader(raw)
    start = buffered.peek(6)[:6]
    for magic, decompressor in _FORMATS.items():
        if start.startswith(magic):
            return io.BufferedReader(_Guarded(decompressor(buffered), file))
    return buffered


class _Guarded(io.RawIOBase):
    """What a decompressor gives, with one kind of error, and an end to archives that expand without one."""

    def __init__(self, source: Any, file: IO[bytes]) -> None:
        self._source, self._file = source, file
        # One read of what lies below and not as many as fill the buffer: what comes before damage is not lost.
        self._read = getattr(source, "read1", source.read)
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._read(len(buffer))
        except EOFError as error:
            raise ArchiveError("truncated_archive") from error
        except damage() as error:
            if self._source is self._file:
                raise
            raise ArchiveError("damaged_archive") from error
        self._given += len(data)
        if self._source is not self._file and self._given > SMALL:
            read = self._file.tell()
            if self._given > MOST_EXPANSION * read:
                raise ArchiveError("expands_too_much")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def damage() -> tuple[type[BaseException], ...]:
    """What the decompressors raise."""
    errors: tuple[type[BaseException], ...] = (OSError, zlib.error, lzma.LZMAError)
    zstandard = sys.modules.get("zstandard")
    return errors if zstandard is None else (*errors, zstandard.ZstdError)


class _Zstandard:
    """Reads one frame after another. The package's own reader takes a missing end for the end."""

    def __init__(self, file: IO[bytes]) -> None:
        require("zstandard", "a .zst file")
        import zstandard

        self._new = zstandard.ZstdDecompressor().decompressobj
        self._file = file
        self._frame: Any = None  # the frame that is being read
        self._waiting = b""  # compressed
        self._ready = b""

    def read(self, size: int) -> bytes:
        while not self._ready:
            data = self._waiting or self._file.read(COMPRESSED_BYTES)
            self._waiting = b""
            if not data:
                if self._frame is not None:
                    raise EOFError
                return b""
            self._frame = self._frame or self._new()
            self._ready = self._frame.decompress(data)
            if self._frame.eof:
                self._waiting, self._frame = self._frame.unused_data, None
        given, self._ready = self._ready[:size], self._ready[size:]
        return given


_FORMATS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _Zstandard,
}
