"""Encoding documents and packing them, in a mixed order, into the token shards that training reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
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

OVER_TARGET = "over_target_tokens"
_NOT_PROVENANCE = {"text", "source", "split"}


@dataclass(frozen=True)
class EncodeArgument:
    path: Path
    tokenizer: Path


@dataclass(frozen=True)
class ArrangeArgument:
    encoded: list[Path]  # the .tokens files of the encode stage, in order
    split: str
    config: ShardConfig


@dataclass(frozen=True)
class PackArgument:
    encoded: list[Path]  # as above
    layout: Path  # of the arrange stage
    first: int  # its rows from this one
    stop: int  # to before this one
    vocab_size: int
    has_bos: bool
    sources: tuple[str, ...]


def encode_shard(task: str, directory: Path, argument: EncodeArgument) -> Counts:
    """Ids of every document, in the order of the intermediate shard.

    Each is followed by the end-of-text id, and where the tokenizer has one, begins with the beginning-of-text id.
    """
    tokenizer = Tokenizer(argument.tokenizer)
    begins = [tokenizer.bos_id] if tokenizer.has_bos else []
    dtype = token_dtype(tokenizer.vocab_size)
    counts, index = Counts(), []
    with (
        atomic_write(directory / f"{task}.tokens", "wb") as tokens,
        atomic_write(directory / f"{task}.documents.jsonl", "wb") as provenance,
    ):
        for batch in batches(read_documents(argument.path)):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                stored = np.concatenate([begins, ids, [tokenizer.eos_id]]).astype(np.int64)
                assert stored.max() < tokenizer.vocab_size
                tokens.write(stored.astype(dtype).tobytes())
                fields = {key: value for key, value in vars(document).items() if key not in _NOT_PROVENANCE}
                line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
                provenance.write(line)
                words = len(document.text.split())
                held_out = document.split == "val"
                index.append((len(stored), len(line), document.byte_count, document.source, words, held_out))
                counts.documents_in += 1
                counts.documents_out += 1
    with atomic_write(directory / f"{task}.index.npy", "wb") as file:
        np.save(file, np.array(index, np.int64).reshape(-1, 6))
    return counts


def arrange_split(task: str, directory: Path, argument: ArrangeArgument) -> Counts:
    """Mix the documents of one split, keep as many as are wanted, and say where each shard begins and ends.

    `layout.npy` has a row a document, (documents, 8) int64: encoded shard, start among its tokens, start of the line in
    its provenance, tokens, bytes of the line, bytes of the text, source, words. About 190 bytes a document are in use.
    """
    config, rows = argument.config, _mixed(argument)
    total, kept = np.cumsum(rows[:, 3]), len(rows)
    if config.target_tokens is not None and argument.split == "train":
        kept = min(kept, int(np.searchsorted(total, config.target_tokens)) + 1)
    with atomic_write(directory / f"{task}.layout.npy", "wb") as file:
        np.save(file, rows[:kept])
    left_out = len(rows) - kept
    if left_out:
        (directory / "dropped").mkdir()
        with atomic_write(directory / "dropped" / f"{task}.jsonl") as dropped:
            for line in _lines(argument.encoded, rows[kept:]):
                dropped.write(json.dumps({**json.loads(line), "reason": OVER_TARGET}, ensure_ascii=False) + "\n")
    details = {"ends": shard_ends(total[:kept], config.max_tokens)}
    counts = Counts(len(rows), kept, dropped=Counter({OVER_TARGET: left_out} if left_out else {}), details=details)
    counts.bytes_in, counts.bytes_out = int(rows[:, 5].sum()), int(rows[:kept, 5].sum())
    return counts


def _mixed(argument: ArrangeArgument) -> np.ndarray:
    """All rows of the layout, in their final order."""
    tables = [np.empty((0, 8), np.int64)]
    for shard, path in enumerate(argument.encoded):
        index = np.load(path.with_suffix(".index.npy"))
        starts = np.cumsum(index[:, :2], axis=0) - index[:, :2]
        table = np.column_stack([np.full(len(index), shard), starts, index[:, :5]])
        tables.append(table[index[:, 5] == (argument.split == "val")])
    rows = np.concatenate(tables)
    # Sorting by a mixed counter shuffles the same way on every machine and with every version of numpy.
    seed = np.uint64(stable_hash("order", argument.config.seed, argument.split))
    return rows[np.argsort(mix64(np.arange(len(rows), dtype=np.uint64) ^ seed), kind="stable")]


def shard_ends(total: np.ndarray, max_tokens: int) -> list[int]:
    """Where shards of at most `max_tokens`, or of one longer document, end, given the running sum of tokens."""
    ends: list[int] = []
    before = 0
    while (first := ends[-1] if ends else 0) < len(total):
        ends.append(max(first + 1, int(np.searchsorted(total, before + max_tokens, side="right"))))
        before = int(total[ends[-1] - 1])
    return ends


def pack_shard(task: str, directory: Path, argument: PackArgument) -> Counts:
    """Write one finished token shard, and the pieces that it uses; the task has its name, such as "train_00000"."""
    rows = np.load(argument.layout, mmap_mode="r")[argument.first : argument.stop]
    licences: Counter[str] = Counter()
    use = PieceCounter(argument.vocab_size)
    with ShardWriter(directory, task, token_dtype(argument.vocab_size)) as writer:
        for ids, size, source, words, fields in _documents(argument, rows):
            fields = {"id": fields.pop("id"), "source": argument.sources[source], **fields}
            licences[fields["licence"]] += 1
            writer.add(ids, size, source, fields)
            use.add(source, ids[argument.has_bos : -1], words)
    with atomic_write(directory / f"{task}.pieces.npy", "wb") as file:
        np.save(file, use.table())
    details = {
        "tokens": writer.tokens,
        "words": {str(source): words for source, words in sorted(use.words.items())},
        "by_source": writer.by_source(),
        "licences": dict(sorted(licences.items())),
    }
    return Counts(len(rows), len(rows), details=details)


def _documents(argument: PackArgument, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int, int, int, dict[str, str]]]:
    """Ids, bytes, source, words and provenance of the documents in some rows of a layout."""
    dtype = token_dtype(argument.vocab_size)
    for row, line in zip(rows, _lines(argument.encoded, rows), strict=True):
        shard, start, _, tokens, _, size, source, words = row.tolist()
        ids = np.frombuffer(_read(argument.encoded[shard], start * dtype.itemsize, tokens * dtype.itemsize), dtype)
        yield ids, size, source, words, json.loads(line)


def _lines(encoded: list[Path], rows: np.ndarray) -> Iterator[bytes]:
    """The lines of provenance of the documents in some rows of a layout."""
    paths = [path.with_suffix(".documents.jsonl") for path in encoded]
    for row in rows:
        yield _read(paths[row[0]], int(row[2]), int(row[4]))


def _read(path: Path, start: int, count: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(count)
