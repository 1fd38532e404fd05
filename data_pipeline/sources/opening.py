"""Opening files wherever they are, decompressed by what they hold and not by what they are called."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.errors import UserError

COMPRESSED = frozenset((".gz", ".bz2", ".xz", ".zst"))
# A text is never a thousandth of its size; an archive made to fill a disk is.
MOST_EXPANSION = 1000
SMALL = 10_000_000
COMPRESSED_BYTES = 8192  # compressed bytes taken at a time, as they may become a thousand times as many
ZSTANDARD_BYTES = 256  # of Zstandard: four bytes may become 128 KiB


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

    `pattern` is a name, a glob pattern (`**` crosses directories), or either behind a URL that fsspec knows. A file
    that is called like the pattern itself, as `report[1].txt`, is what is meant.

    Raises:
        UserError: a remote file system cannot be asked.
    """
    if not is_remote(pattern):
        names = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
        found = sorted(filter(os.path.isfile, names))
        return [(name, local_state(name), os.stat(name).st_size) for name in found]
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(pattern)
        names = [path] * files.isfile(path) or (sorted(files.glob(path)) if glob.has_magic(path) else [])
        return [(files.unstrip_protocol(name), str(files.ukey(name)), int(files.size(name) or 0)) for name in names]
    except Exception as error:  # every file system has kinds of its own
        raise UserError(f"cannot look for {pattern}: {type(error).__name__}: {error}") from error


def local_state(name: str) -> str:
    """A text that tells whether a file has changed, or may be read now though it could not be before."""
    status = os.stat(name)
    return f"{status.st_size} {status.st_mtime_ns}" + ("" if os.access(name, os.R_OK) else " unreadable")


def plain_suffix(name: str) -> str:
    """The suffix that tells the format, without that of the compression."""
    path = PurePosixPath(name.replace("\\", "/").lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def shown(name: str) -> str:
    """A file name as text that can be written anywhere, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def open_raw(name: str) -> IO[bytes]:
    """The file as it is.

    Raises:
        OSError: a local file cannot be opened; or, while reading, be read.
        UserError: a remote one cannot, now or while reading.
    """
    if not is_remote(name):
        return open(name, "rb")
    import fsspec

    with _reaching(name):
        file = fsspec.open(name, "rb").open()
    raw: Any = _Remote(name, file)
    return io.BufferedReader(raw)


def open_plain(name: str) -> io.BufferedReader:
    """The file without its compression. Raises the errors of `open_raw`, and ArchiveError while reading."""
    return decompressed(open_raw(name))


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """A network that fails is no property of the file: the run ends, so that its next start reads the file again."""
    try:
        yield
    except Exception as error:  # every file system has kinds of its own, and not all are OSError
        raise UserError(
            f"cannot read {name}: {type(error).__name__}: {error}. See that it can be reached, and run the "
            "same command again: it goes on with this file"
        ) from error


class _Remote(io.RawIOBase):
    """A file behind a network, whose every failure is a UserError."""

    def __init__(self, name: str, file: Any) -> None:
        self._name, self._file = name, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _reaching(self._name):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _reaching(self._name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def decompressed(file: IO[bytes]) -> io.BufferedReader:
    """What `file` holds without its compression, if it has one. Raises OSError, now or while reading."""
    raw: Any = _Guarded(file, file)
    buffered = io.BufferedReader(raw)
    start = buffered.peek(_LONGEST_MAGIC)
    for magic, decompressor in _FORMATS.items():
        if magic.match(start):
            return io.BufferedReader(_Guarded(decompressor(buffered), file))
    return buffered


def utf8(file: io.BufferedReader) -> io.BufferedReader:
    """`file`, or its text in UTF-8 where a mark at its beginning says that it is UTF-16."""
    raw: Any = _FromUtf16(file)
    return io.BufferedReader(raw) if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else file


class _FromUtf16(io.RawIOBase):
    """Text in UTF-16 as UTF-8. What is damaged becomes bytes that are not UTF-8, for the reader to find."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        converted = b""
        while not converted:
            data = self._file.read1(len(buffer) // 2)  # two bytes become at most three
            if not data:
                converted = b"\xff" if self._decoder.getstate()[0] else b""
                self._decoder.reset()
                break
            converted = self._decoder.decode(data).encode("utf-8", "surrogatepass")
        buffer[: len(converted)] = converted
        return len(converted)


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
        self._ready = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._ready:
            data = self._waiting or self._file.read(ZSTANDARD_BYTES)
            self._waiting = b""
            if not data:
                if self._frame is not None:
                    raise EOFError
                return b""
            self._frame = self._frame or self._new()
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._waiting, self._frame = self._frame.unused_data, None
        given, self._ready = self._ready[:size], self._ready[size:]
        return bytes(given)


_FORMATS: dict[re.Pattern[bytes], Callable[[IO[bytes]], Any]] = {
    re.compile(rb"\x1f\x8b"): lambda file: gzip.GzipFile(fileobj=file),
    # A text may begin with BZh: what follows are the first bytes of a block, or of the end where there is none.
    re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"): bz2.BZ2File,
    re.compile(rb"\xfd7zXZ\x00"): lzma.LZMAFile,
    re.compile(rb"\x28\xb5\x2f\xfd"): _Zstandard,
}
_LONGEST_MAGIC = 10  # bytes
