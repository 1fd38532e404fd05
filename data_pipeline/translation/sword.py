"""Verses of the Bibles that Debian packages for the SWORD library, read from the package as data.

A module of the kind zText has three files a testament: `bzz` holds compressed blocks, `bzs` where each block begins,
`bzv` where each verse lies in them. Verses have no names there: the versification says which comes when.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from pathlib import Path, PurePosixPath

from common.errors import UserError
from data_pipeline.sources import deb
from data_pipeline.sources.opening import ArchiveError

Place = tuple[str, int, int]
"""OSIS name of the book, chapter, verse."""

_TESTAMENTS = ("ot", "nt")
_BLOCK, _VERSE = struct.Struct("<III"), struct.Struct("<IIH")  # offset, size, size unpacked; block, offset, size
_FIRST = 2  # entries before those of the first book
_LARGEST = 32_000_000  # bytes of a file in the package, and of a block unpacked

_LEFT_OUT = re.compile(r'<note\b.*?</note>|<title(?! canonical="true").*?</title>|<speaker\b.*?</speaker>', re.DOTALL)
_STRONG = re.compile(r"[GH]\d+")
# Tags stand between words without a space, but also before a full stop or after an opening mark.
_BETWEEN_WORDS = re.compile(r"(?<=[\w,;:.!?”’)])(?:<[^>]*>)+(?=[\w¡¿“‘(])")
_TAG = re.compile(r"<[^>]*>")


def read_module(package: Path, versification: str) -> dict[Place, str]:
    """The verses of the one module in a package, in its order, as OSIS markup.

    Args:
        versification: one of those that pysword knows, such as "kjv".

    Raises:
        UserError: pysword is not installed, or the package is damaged or holds another kind of module.
    """
    files: dict[str, bytes] = {}
    try:
        for member, file in deb.members(package, "data"):
            if member.size <= _LARGEST:
                files[PurePosixPath(member.name).name] = file.read()
        return {
            place: text
            for testament in _TESTAMENTS
            for place, text in _testament(files, testament, _chapters(versification, testament)).items()
        }
    except (ArchiveError, KeyError, IndexError, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"{package} holds no readable Bible in the format zText ({error}); delete it and run again"
        ) from error


def plain_text(markup: str) -> str:
    """A verse on one line: without notes, headings of the editors and pilcrows; titles of psalms stay."""
    text = _LEFT_OUT.sub(" ", markup)
    text = _TAG.sub("", _BETWEEN_WORDS.sub(" ", text))
    return " ".join(html.unescape(text).replace("¶", " ").split())


def strong_numbers(markup: str) -> frozenset[str]:
    """The numbers in Strong's dictionary of the Hebrew or Greek words that a verse translates."""
    return frozenset(_STRONG.findall(_LEFT_OUT.sub(" ", markup)))


def _chapters(versification: str, testament: str) -> list[tuple[str, list[int]]]:
    """Each book with the number of verses in its chapters."""
    try:
        from pysword.canons import canons
    except ImportError as error:
        raise UserError("reading Bibles needs the pysword package: pip install -e '.[translation]'") from error
    return [(osis, verses) for _, osis, _, verses in canons[versification][testament]]


def _testament(files: dict[str, bytes], name: str, books: list[tuple[str, list[int]]]) -> dict[Place, str]:
    packed = files[f"{name}.bzz"]
    blocks = [
        zlib.decompressobj().decompress(packed[start : start + size], _LARGEST)
        for start, size, _ in _BLOCK.iter_unpack(files[f"{name}.bzs"])
    ]
    entries = list(_VERSE.iter_unpack(files[f"{name}.bzv"]))
    verses: dict[Place, str] = {}
    number = _FIRST
    for book, chapters in books:
        number += 1  # the book's introduction
        for chapter, count in enumerate(chapters, 1):
            number += 1  # the chapter's heading
            for verse in range(1, count + 1):
                block, start, size = entries[number]
                number += 1
                if size:
                    verses[book, chapter, verse] = blocks[block][start : start + size].decode()
    return verses
