"""Encoding documents and packing them, in a mixed order, into the token shards that training reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_write
from data_pipeline.config import ShardConfig
from data_pipeline.documents import Counts, batches, read_documents, stable_hash
from data_pipeline.hashing import mix64
from data_pipeline.shards import ShardWriter, token_dtype
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.vocabulary_use import PieceCounter

_NOT_PROVENANCE = {"text", "source", "split"}


@dataclass(frozen=True)
class EncodeArgument:
    path: Path
    tokenizer: Path


@dataclass(frozen=True)
class PackArgument:
    encoded: list[Path]  # the .tokens files of the encode stage, in order
    split: str
    number: int
    config: ShardConfig
    vocab_size: int
    sources: tuple[str, ...]


def encode_shard(task: str, directory: Path, argument: EncodeArgument) -> Counts:
    """Ids of every document, each followed by the end-of-text id, in the order of the intermediate shard."""
    tokenizer = Tokenizer(argument.tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    counts, index, use = Counts(), [], PieceCounter(tokenizer.vocab_size)
    with (
        atomic_write(directory / f"{task}.tokens", "wb") as tokens,
        atomic_write(directory / f"{task}.documents.jsonl", "wb") as provenance,
    ):
        for batch in batches(read_documents(argument.path)):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            use.add(batch, encoded)
            for document, ids in zip(batch, encoded, strict=True):
                stored = np.append(ids, tokenizer.eos_id)
                assert stored.max() < tokenizer.vocab_size
                tokens.write(stored.astype(dtype).tobytes())
                fields = {key: value for key, value in vars(document).items() if key not in _NOT_PROVENANCE}
                line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
                provenance.write(line)
                index.append((len(stored), len(line), document.byte_count, document.source, document.split == "val"))
                counts.documents_in += 1
                counts.documents_out += 1
    with atomic_write(directory / f"{task}.index.npy", "wb") as file:
        np.save(file, np.array(index, np.int64).reshape(-1, 5))
    with atomic_write(directory / f"{task}.pieces.npy", "wb") as file:
        np.save(file, use.table())
    counts.details = {"words": {str(source): words for source, words in sorted(use.words.items())}}
    return counts


def pack_shard(task: str, directory: Path, argument: PackArgument) -> Counts:
    """Write one finished token shard; the task has the shard's name, such as "train_00000"."""
    layout = Layout(argument.encoded, argument.config, argument.split)
    rows = layout.rows[layout.shards()[argument.number]]
    licences: Counter[str] = Counter()
    with ShardWriter(directory, task, token_dtype(argument.vocab_size)) as writer:
        for ids, size, source, fields in _documents(argument, rows):
            fields = {"id": fields.pop("id"), "source": argument.sources[source], **fields}
            licences[fields["licence"]] += 1
            writer.add(ids, size, source, fields)
    details = {
        "tokens": writer.tokens,
        "by_source": writer.by_source(),
        "licences": dict(sorted(licences.items())),
    }
    return Counts(len(rows), len(rows), details=details)


def _documents(argument: PackArgument, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int, int, dict[str, str]]]:
    """Ids, bytes, source and provenance of the documents in some rows of a layout."""
    dtype = token_dtype(argument.vocab_size)
    lines = [path.with_suffix(".documents.jsonl") for path in argument.encoded]
    for shard, start, line, tokens, width, size, source in rows.tolist():
        ids = np.frombuffer(_read(argument.encoded[shard], start * dtype.itemsize, tokens * dtype.itemsize), dtype)
        yield ids, size, source, json.loads(_read(lines[shard], line, width))


def _read(path: Path, start: int, count: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(count)


class Layout:
    """The documents of one split in their final order, and how they fall into shards."""

    def __init__(self, encoded: Iterable[Path], config: ShardConfig, split: str) -> None:
        """Reads the index of every encoded shard; about 170 bytes a document are in use, 56 stay in memory.

        `rows` has (documents, 7): encoded shard, start among its tokens, start of the line in its provenance, tokens,
        bytes of the line, bytes of the text, source.
        """
        self.config = config
        tables = [np.empty((0, 7), np.int64)]
        for shard, path in enumerate(encoded):
            index = np.load(path.with_suffix(".index.npy"))
            starts = np.cumsum(index[:, :2], axis=0) - index[:, :2]
            table = np.column_stack([np.full(len(index), shard), starts, index[:, :4]])
            tables.append(table[index[:, 4] == (split == "val")])
        rows = np.concatenate(tables)
        # Sorting by a mixed counter shuffles the same way on every machine and with every version of numpy.
        seed = np.uint64(stable_hash("order", config.seed, split))
        self.rows: np.ndarray = rows[np.argsort(mix64(np.arange(len(rows), dtype=np.uint64) ^ seed), kind="stable")]

    def shards(self) -> list[slice]:
        """Ranges of documents, each of at most `max_tokens` tokens or of one longer document."""
        result: list[slice] = []
        first = total = 0
        for position, tokens in enumerate(self.rows[:, 3].tolist()):
            if position > first and total + tokens > self.config.max_tokens:
                result.append(slice(first, position))
                first, total = position, 0
            total += tokens
        return [*result, slice(first, len(self.rows))] if len(self.rows) else result
