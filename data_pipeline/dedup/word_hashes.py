"""Hashes of all words of many texts at once, straight from their UTF-8.

A word is what `\\w+` matches in lower-case text. Nothing here runs once a character or once a word: the bytes are
classified by a table, and words are read eight bytes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.hashing import mix64
from data_pipeline.quality.lines import IN_WORD, character_classes

_CHUNK = 8  # bytes of a word that are read at once
_ORDER = np.uint64(0x9E3779B97F4A7C15)  # odd
_ALL = ~np.uint64(0)
_NOT_ASCII = np.uint64(0x8080808080808080)
_UNKNOWN = 2
_CLASSES = bytes(int(chr(byte).isalnum() or chr(byte) == "_") if byte < 128 else _UNKNOWN for byte in range(256))
_ASCII = bytes(range(128))


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the lower-case words of all texts, (words,) uint64, and where each text begins, (texts + 1,)."""
    encoded = list(map(_encoded, texts))
    buffer = b"\n".join((b"", *encoded, bytes(_CHUNK)))
    starts, ends = word_borders(buffer)
    borders = np.cumsum([1, *(len(text) + 1 for text in encoded)])
    return hash_words(buffer, starts, ends), np.searchsorted(starts, borders)


def _encoded(text: str) -> bytes:
    """UTF-8 of the text, in lower case where that changes more than ASCII letters."""
    encoded = text.encode()
    if not text.isascii():
        beyond = encoded.translate(None, _ASCII).decode()  # a few characters, where lower() would go through them all
        if beyond != beyond.lower():
            return text.lower().encode()
    return encoded


def word_borders(buffer: bytes) -> tuple[np.ndarray, np.ndarray]:
    """First byte of each word of UTF-8 text, and the byte after its last, (words,) each.

    `buffer` begins and ends with bytes that are in no word.
    """
    inside = np.frombuffer(buffer.translate(_CLASSES), np.uint8)
    if not buffer.isascii():
        inside = inside.copy()
        _classify(np.frombuffer(buffer, np.uint8), inside)
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    return edges[0::2], edges[1::2]


def _classify(codes: np.ndarray, inside: np.ndarray) -> None:
    """Fill in `inside` for the bytes of all characters beyond ASCII."""
    leads = np.flatnonzero(codes >= 0xC0)  # where each such character begins
    first = codes[leads].astype(np.uint32)
    sizes = 2 + (first >= 0xE0) + (first >= 0xF0)
    points = first & (0x7F >> sizes)
    for following in (1, 2, 3):
        longer = sizes > following
        points[longer] = points[longer] << np.uint32(6) | (codes[leads[longer] + following] & 0x3F)
    classes = (character_classes()[points] & IN_WORD > 0).astype(np.uint8)
    for following in range(4):
        longer = sizes > following
        inside[leads[longer] + following] = classes[longer]


def hash_words(buffer: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """One hash a word, whatever the case of its ASCII letters, (words,) uint64; `buffer` ends with a chunk to spare."""
    chunks: np.ndarray = np.ndarray((len(buffer) - _CHUNK + 1,), "<u8", buffer, strides=(1,))  # one at every byte
    lengths = ends - starts
    hashes = mix64(_lowered(chunks[starts], lengths))
    longer, done = np.flatnonzero(lengths > _CHUNK), _CHUNK
    while len(longer):
        left = lengths[longer] - done
        hashes[longer] = mix64(hashes[longer] * _ORDER + _lowered(chunks[starts[longer] + done], left))
        longer, done = longer[left > _CHUNK], done + _CHUNK
    return hashes


def _lowered(chunks: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The first `lengths` bytes of each chunk; lower case, where they are ASCII."""
    # ASCII letters differ from capitals in the bit 0x20; digits have it, and "_" becomes a byte that is in no word.
    lowered = chunks & _NOT_ASCII
    lowered ^= _NOT_ASCII
    lowered >>= np.uint64(2)
    lowered |= chunks
    beyond = _ALL << (lengths.view(np.uint64) << np.uint64(3))  # nothing where the word fills the chunk
    lowered &= ~beyond
    return lowered
