"""Sketches: what deduplication and the split need to know of every document, as arrays that stay on disk.

A document is known by its number: its place among all documents, shard after shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.files import atomic_write
from data_pipeline.config import DeduplicationConfig
from data_pipeline.dedup import minhash
from data_pipeline.dedup.evaluation_index import MATCH, EvaluationIndex
from data_pipeline.dedup.paragraphs import RECORD, paragraph_records
from data_pipeline.documents import Counts, batches, read_documents, stable_hash

_DOCUMENT = np.dtype(
    [("source", "<u2"), ("bytes", "<u8"), ("key", "<u8", 2), ("group", "<u8"), ("shingles", "<u8")],
)


@dataclass(frozen=True)
class SketchArgument:
    path: Path
    config: DeduplicationConfig
    evaluation: Path | None = None  # directory of the evaluation stage, where there is one


def sketch_shard(task: str, directory: Path, argument: SketchArgument) -> Counts:
    """Write ids, keys, band keys and shingle hashes of one shard's documents.

    Where they are wanted, paragraphs and n-grams of evaluation texts are written too: texts are read only once.
    """
    config = argument.config
    rows: list[np.ndarray] = []
    bands = [np.empty((0, config.bands), np.uint64)]
    paragraphs = [np.empty(0, RECORD)]
    index = EvaluationIndex(argument.evaluation) if argument.evaluation else None
    matches = [np.empty(0, MATCH)]
    count = 0
    with (
        atomic_write(directory / f"{task}.ids") as ids,
        atomic_write(directory / f"{task}.shingles.bin", "wb") as shingles,
    ):
        for batch in batches(read_documents(argument.path)):
            found = minhash.shingles([document.text for document in batch], config.shingle_words)
            signatures = minhash.sketch(found, config.bands * config.rows)
            bands.append(minhash.band_keys(signatures, config.bands, config.rows))
            row = np.zeros(len(batch), _DOCUMENT)
            row["source"] = [document.source for document in batch]
            row["bytes"] = [document.byte_count for document in batch]
            row["key"] = [minhash.exact_key(document.text) for document in batch]
            row["group"] = [stable_hash(document.group or document.whole) for document in batch]
            row["shingles"] = list(map(len, found))
            rows.append(row)
            if config.paragraphs:
                paragraphs.append(paragraph_records(batch, count, config.paragraph_characters))
            if index:
                matches.append(index.matches([document.text for document in batch], count))
            count += len(batch)
            for document, hashes in zip(batch, found, strict=True):
                ids.write(json.dumps(document.id) + "\n")
                shingles.write(hashes.tobytes())
    _save(directory / f"{task}.documents.npy", np.concatenate([np.empty(0, _DOCUMENT), *rows]))
    _save(directory / f"{task}.bands.npy", np.ascontiguousarray(np.concatenate(bands).T))  # a band is read at a time
    if config.paragraphs:
        _save(directory / f"{task}.paragraphs.npy", np.concatenate(paragraphs))
    if index:
        _save(directory / f"{task}.matches.npy", np.concatenate(matches))
    return Counts(count, count)


class Sketches:
    """The sketches of some shards; about 60 bytes a document are in memory, shingles and bands stay on disk."""

    def __init__(self, documents: Sequence[Path]) -> None:
        """`documents` are the `.documents.npy` files, in the order that numbers the documents."""
        self._stems = [path.with_name(path.name.removesuffix(".documents.npy")) for path in documents]
        shards = [np.load(path) for path in documents]
        self.documents = np.concatenate([np.empty(0, _DOCUMENT), *shards])
        self.first = np.cumsum([0, *map(len, shards)])  # document of each shard, and the end
        self._shingle_paths = [stem.with_name(f"{stem.name}.shingles.bin") for stem in self._stems]
        self._ends = np.concatenate([np.empty(0, np.int64), *(np.cumsum(shard["shingles"]) for shard in shards)])
        self._cached = lru_cache(maxsize=256)(self._read)

    def __len__(self) -> int:
        return len(self.documents)

    def band(self, number: int) -> np.ndarray:
        """The key of one band of every document, (documents,) uint64."""
        paths = [stem.with_name(f"{stem.name}.bands.npy") for stem in self._stems]
        return np.concatenate([np.empty(0, np.uint64), *(np.load(path, mmap_mode="r")[number] for path in paths)])

    def bands(self) -> int:
        """Number of bands."""
        stem = self._stems[0]
        return int(np.load(stem.with_name(f"{stem.name}.bands.npy"), mmap_mode="r").shape[0])

    def shingles(self, document: int) -> np.ndarray:
        """Sorted distinct shingle hashes of a document, (shingles,) uint64."""
        return self._cached(document)

    def _read(self, document: int) -> np.ndarray:
        # A plain read instead of a memory map: resident memory stays flat however many documents were visited.
        path = self._shingle_paths[int(np.searchsorted(self.first, document, side="right")) - 1]
        count = int(self.documents["shingles"][document])
        with open(path, "rb", buffering=0) as file:
            file.seek(8 * (int(self._ends[document]) - count))
            return np.unique(np.frombuffer(file.read(8 * count), np.uint64))

    def paragraphs(self) -> Iterator[np.ndarray]:
        """The long paragraphs of each shard, (paragraphs,) of RECORD, with documents that count from its first."""
        for stem in self._stems:
            yield np.load(stem.with_name(f"{stem.name}.paragraphs.npy"), mmap_mode="r")

    def matches(self) -> np.ndarray:
        """Which documents hold which n-grams of evaluation texts, (matches,) of MATCH."""
        found = [np.empty(0, MATCH)]
        for stem, start in zip(self._stems, self.first.tolist(), strict=False):
            rows = np.load(stem.with_name(f"{stem.name}.matches.npy"))
            rows["document"] += start
            found.append(rows)
        return np.concatenate(found)

    def ids(self, documents: Iterable[int]) -> dict[int, str]:
        """The ids of some documents, by number."""
        wanted = set(documents)
        found = {}
        for stem, start in zip(self._stems, self.first.tolist(), strict=False):
            with open(stem.with_name(f"{stem.name}.ids"), encoding="utf-8") as file:
                for number, line in enumerate(file, start):
                    if number in wanted:
                        found[number] = json.loads(line)
        return found

    def by_preference(self) -> np.ndarray:
        """All documents, the one to keep first: earlier source, then longer, then earlier, (documents,)."""
        table = self.documents
        return np.lexsort((np.arange(len(table)), -table["bytes"].astype(np.int64), table["source"]))


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path, "wb") as file:
        np.save(file, array)
