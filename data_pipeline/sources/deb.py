"""Debian packages as data: an `ar` archive of two compressed tar archives (deb(5)). Nothing is unpacked or run."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_pipeline.sources.opening import ArchiveError, decompressed

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_HEADER_END = b"`\n"
# tarfile holds a name or an extended header whole in memory, however long it says that it is.
_MOST_BETWEEN_FILES = 1_000_000


def members(path: Path, archive: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The plain files of one of the two archives, "control" or "data", in order, each readable until the next.

    Links, directories and devices are passed over. What is too long or endless ends in an error in bounded memory.

    Raises:
        ArchiveError: the package is damaged, truncated or hostile; what came before is good.
    """
    with open(path, "rb") as package:
        section = _section(package, f"{archive}.tar")
        with decompressed(section) as plain:
            stream: Any = _Stream(plain)
            try:
                with tarfile.open(fileobj=stream, mode="r|", errorlevel=0) as tar:
                    while (member := tar.next()) is not None:
                        tar.members.clear()  # type: ignore[attr-defined]  # which grows with every file
                        if member.issparse():
                            raise ArchiveError("sparse_file")
                        stream.left = member.size + _MOST_BETWEEN_FILES
                        file = tar.extractfile(member) if member.isreg() else None
                        if file is not None:
                            yield member, file
                while stream.read(_MOST_BETWEEN_FILES):  # to the checksum at the end
                    pass
            except (tarfile.TarError, ValueError) as error:  # ValueError: numbers that are none
                raise ArchiveError("damaged_archive") from error


class _Stream:
    """Reads until `left` bytes have been given; there has to be a new file within them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = _MOST_BETWEEN_FILES

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ArchiveError("long_header")
        return data


class _Section(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left, self._start = file, size, file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def tell(self) -> int:
        return self._file.tell() - self._start


def _section(package: IO[bytes], name: str) -> Any:
    """The member of the package whose name begins with `name`."""
    if package.read(len(_MAGIC)) != _MAGIC:
        raise ArchiveError("not_a_package")
    while header := package.read(_HEADER_BYTES):
        if len(header) < _HEADER_BYTES or not header.endswith(_HEADER_END):
            raise ArchiveError("damaged_archive")
        digits = header[48:58].strip()
        if not digits.isdigit():
            raise ArchiveError("damaged_archive")
        if header[:16].startswith(name.encode()):
            return _Section(package, int(digits))
        package.seek(int(digits) + int(digits) % 2, io.SEEK_CUR)
    raise ArchiveError("truncated_archive")
