"""Paragraphs: what stands between blank lines. They are equal when their words are, whatever their case and spaces."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import atomic_write
from data_pipeline.dedup.minhash import exact_key
from data_pipeline.documents import Document, write_row

# One record a paragraph, 20 bytes on disk: of 10^9 paragraphs two different ones share a key once in 40 corpora.
RECORD = np.dtype([("key", "<u8"), ("document", "<u4"), ("position", "<u4"), ("bytes", "<u4")])
_BLANK_LINES = re.compile(r"(\n(?:[^\S\n]*\n)+)")
_EXAMPLES = 100  # removed paragraphs that are shown of each shard, those that took most bytes
_EXAMPLE_CHARACTERS = 300


def paragraph_records(documents: Sequence[Document], first: int, min_characters: int) -> np.ndarray:
    """The paragraphs of prose that are long enough, (paragraphs,) of RECORD; documents count from `first`."""
    rows = [
        (exact_key(paragraph)[0], number, position, len(paragraph.encode()))
        for number, document in enumerate(documents, first)
        if document.kind != "code"
        for position, paragraph in enumerate(_BLANK_LINES.split(document.text)[::2])
        if len(paragraph) >= min_characters
    ]
    return np.array(rows, RECORD)


class Removal:
    """Takes paragraphs out of texts, counts them, and keeps examples."""

    def __init__(self) -> None:
        self._documents = 0
        self._count: Counter[int] = Counter()  # by key, as the next two
        self._bytes: Counter[int] = Counter()
        self._first: dict[int, dict[str, str]] = {}

    def edited(self, document: Document, positions: Sequence[int]) -> str:
        """The text without the paragraphs at `positions`; what stays keeps the blank lines before it."""
        parts = _BLANK_LINES.split(document.text)
        for position in positions:
            paragraph = parts[2 * position]
            key = exact_key(paragraph)[0]
            self._count[key] += 1
            self._bytes[key] += len(paragraph.encode())
            self._first.setdefault(key, {"example": paragraph[:_EXAMPLE_CHARACTERS], "document": document.id})
        self._documents += 1
        gone = set(positions)
        stay = [position for position in range(len(parts[::2])) if position not in gone]
        gaps = ["", *(parts[2 * position - 1] for position in stay[1:])]
        return "".join(gap + parts[2 * position] for gap, position in zip(gaps, stay, strict=False))

    def details(self) -> dict[str, int]:
        return {
            "edited_documents": self._documents,
            "removed_paragraphs": self._count.total(),
            "removed_paragraph_bytes": self._bytes.total(),
        }

    def write_examples(self, path: Path) -> None:
        """A row for each of the paragraphs that took most bytes: its key, how often it went, and its beginning."""
        most = sorted(self._bytes, key=lambda key: (-self._bytes[key], key))[:_EXAMPLES]
        with atomic_write(path) as file:
            for key in most:
                counts = {"key": f"{key:016x}", "count": self._count[key], "bytes": self._bytes[key]}
                write_row(file, {**counts, **self._first[key]})
