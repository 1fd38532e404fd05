"""Encoding documents and packing them, in a mixed order, into the token shards that training reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_write
from data_pipeline.config import ShardConfig
from data_pipeline.documents import Counts, batches, read_documents, read_rows, stable_hash, write_row
from data_pipeline.hashing import mix64
from data_pipeline.shards import ShardWriter, token_dtype
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.vocabulary_use import PieceCounter


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
        atomic_write(directory / f"{task}.documents.jsonl") as provenance,
    ):
        for batch in batches(read_documents(argument.path)):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            use.add(batch, encoded)
            for document, ids in zip(batch, encoded, strict=True):
                stored = np.append(ids, tokenizer.eos_id)
                assert stored.max() < tokenizer.vocab_size
                tokens.write(stored.astype(dtype).tobytes())
                index.append((len(stored), document.byte_count, document.source, document.split == "val"))
                fields = {key: value for key, value in vars(document).items() if key not in {"text", "source"}}
                write_row(provenance, fields)
                counts.documents_in += 1
                counts.documents_out += 1
    with atomic_write(directory / f"{task}.index.npy", "wb") as file:
        np.save(file, np.array(index, np.int64).reshape(-1, 4))
    with atomic_write(directory / f"{task}.pieces.npy", "wb") as file:
        np.save(file, use.table())
    counts.details = {"words": {str(source): words for source, words in sorted(use.words.items())}}
    return counts


def pack_shard(task: str, directory: Path, argument: PackArgument) -> Counts:
    """Write one finished token shard; the task has the shard's name, such as "train_00000"."""
    layout = Layout(argument.encoded, argument.config, argument.split)
    rows = layout.rows[layout.shards()[argument.number]]
    dtype = token_dtype(argument.vocab_size)
    writer = ShardWriter(directory, task, dtype)
    provenance = _provenance(argument.encoded, rows)
    licences: Counter[str] = Counter()
    for shard, position, start, tokens, size, source in rows[:, :6].tolist():
        ids = np.fromfile(argument.encoded[shard], dtype, count=tokens, offset=start * dtype.itemsize)
        fields = provenance[shard, position]
        fields.pop("split")
        fields = {"id": fields.pop("id"), "source": argument.sources[source], **fields}
        licences[fields["licence"]] += 1
        writer.add(ids, size, source, fields)
    details = {
        "files": writer.close(),
        "tokens": writer.tokens,
        "by_source": writer.by_source(),
        "licences": dict(sorted(licences.items())),
    }
    return Counts(len(rows), len(rows), details=details)


class Layout:
    """The documents of one split in their final order, and how they fall into shards."""

    def __init__(self, encoded: Iterable[Path], config: ShardConfig, split: str) -> None:
        """Reads the index of every encoded shard; 60 bytes a document stay in memory."""
        self.config = config
        tables = []
        for shard, path in enumerate(encoded):
            index = np.load(path.with_suffix(".index.npy"))
            starts = np.cumsum(index[:, 0]) - index[:, 0]
            columns = [np.full(len(index), shard), np.arange(len(index)), starts, *index.T]
            tables.append(np.stack(columns, axis=1))
        rows = np.concatenate(tables) if tables else np.empty((0, 7), np.int64)
        rows = rows[rows[:, 6] == (split == "val")]
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


def _provenance(encoded: list[Path], rows: np.ndarray) -> dict[tuple[int, int], dict[str, str]]:
    """The provenance lines of the documents in `rows`, by encoded shard and position."""
    wanted: dict[int, set[int]] = {}
    for shard, position in rows[:, :2].tolist():
        wanted.setdefault(shard, set()).add(position)
    found = {}
    for shard, positions in sorted(wanted.items()):
        for position, fields in enumerate(read_rows(encoded[shard].with_suffix(".documents.jsonl"))):
            if position in positions:
                found[shard, position] = fields
    return found
