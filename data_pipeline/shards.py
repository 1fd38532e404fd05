"""The curated-data contract: token shards, their document index, and the manifest that describes them.

`train_00000.bin` holds little-endian uint16 (uint32 for more than 65,536 ids) token ids without a header; every
document is followed by the end-of-text id and never crosses a shard. `train_00000.index.npy` has one `INDEX_DTYPE`
record a document; `train_00000.documents.jsonl` has its provenance, a line a document in the same order.
"""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import atomic_write, read_json

MANIFEST_KEYS = ("dtype", "vocab_size", "eos_id", "tokenizer", "sources", "splits", "fingerprint")
INDEX_DTYPE = np.dtype(
    [
        ("start", "<u8"),  # offset of the first token in the shard
        ("tokens", "<u4"),  # with the end-of-text id
        ("bytes", "<u4"),  # of the text in UTF-8, without the end-of-text id
        ("source", "<u2"),  # position in the manifest's `sources`
    ]
)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype of the contract that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class Shard:
    path: Path
    tokens: int


class Dataset:
    """A curated data directory, opened through its manifest."""

    def __init__(self, directory: str | Path) -> None:
        """Raises UserError when there is no whole dataset in `directory`; the message names the command to run."""
        self.directory = Path(directory)
        path = self.directory / "manifest.json"
        if not path.is_file():
            raise UserError(f"no curated data in {self.directory}; make it with: {self.recipe_command()}")
        try:
            self.manifest: dict[str, Any] = read_json(path)
            missing = [key for key in MANIFEST_KEYS if key not in self.manifest]
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); make it again with: {self.recipe_command()}") from error
        if missing:
            raise UserError(f"{path} has no {', '.join(missing)}; make it again with: {self.recipe_command()}")

    def recipe_command(self) -> str:
        """What to type to make this dataset; the config is named where there is one of the directory's name."""
        config = Path("configs/data") / f"{self.directory.name}.py"
        if (Path(__file__).parents[1] / config).is_file():
            return f"python -m data_pipeline {config} --out {self.directory}"
        return f"python -m data_pipeline CONFIG --out {self.directory} (configs are in configs/data)"

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def eos_id(self) -> int:
        return int(self.manifest["eos_id"])

    @property
    def tokenizer_sha256(self) -> str:
        return str(self.manifest["tokenizer"]["sha256"])

    @property
    def tokenizer_path(self) -> Path:
        return self.directory / str(self.manifest["tokenizer"]["file"])

    @property
    def fingerprint(self) -> str:
        """sha256 over every token shard's sha256: equal fingerprints mean equal training data."""
        return str(self.manifest["fingerprint"])

    @property
    def sources(self) -> list[str]:
        return [str(source["name"]) for source in self.manifest["sources"]]

    def split(self, name: str) -> TokenStream:
        """The tokens of split `name` ("train" or "val").

        Raises:
            UserError: a shard is missing or does not have the size that the manifest gives.
        """
        dtype = np.dtype(self.manifest["dtype"])
        shards = []
        for entry in self.manifest["splits"][name]["shards"]:
            path = self.directory / entry["file"]
            expected = int(entry["tokens"]) * dtype.itemsize
            found = path.stat().st_size if path.is_file() else -1
            if found != expected:
                state = "is missing" if found < 0 else f"has {found} bytes instead of {expected}"
                raise UserError(f"token shard {path} {state}; make it again with: {self.recipe_command()}")
            shards.append(Shard(path, int(entry["tokens"])))
        return TokenStream(shards, dtype)


class TokenStream:
    """The shards of one split as a single sequence of token ids."""

    def __init__(self, shards: list[Shard], dtype: np.dtype) -> None:
        self.shards = shards
        self.dtype = dtype
        self.starts = np.cumsum([0] + [shard.tokens for shard in shards])  # first token of each shard, and the end

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), (count,) int64; fewer at the end of the stream.

        Plain reads instead of a memory map: resident memory stays flat however much of the data was visited.
        """
        stop = min(start + count, len(self))
        parts = []
        while start < stop:
            number = int(np.searchsorted(self.starts, start, side="right")) - 1
            take = min(stop, int(self.starts[number + 1])) - start
            offset = (start - int(self.starts[number])) * self.dtype.itemsize
            parts.append(np.fromfile(self.shards[number].path, self.dtype, count=take, offset=offset))
            start += take
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def scoring_windows(self, context_length: int, eos_id: int) -> Windows:
        """Windows that predict every token of the stream exactly once; the first token is given `eos_id` as context."""
        return Windows(self, context_length, eos_id)

    def documents(self) -> np.ndarray:
        """The index of every shard, (documents,) of `INDEX_DTYPE`, with `start` counted over the whole stream."""
        tables = []
        for shard, first in zip(self.shards, self.starts, strict=False):
            table = np.load(shard.path.with_suffix(".index.npy"), allow_pickle=False)
            table["start"] += np.uint64(first)
            tables.append(table)
        return np.concatenate(tables) if tables else np.empty(0, INDEX_DTYPE)

    def provenance(self, number: int) -> dict[str, str]:
        """Where document `number` of the stream comes from; empty where the shard has no such record."""
        for shard in self.shards:
            count = len(np.load(shard.path.with_suffix(".index.npy"), mmap_mode="r", allow_pickle=False))
            if number < count:
                records = shard.path.with_suffix(".documents.jsonl")
                if not records.is_file():
                    return {}
                with open(records, encoding="utf-8") as lines:
                    line = next(itertools.islice(lines, number, None), "{}")
                return {key: str(value) for key, value in json.loads(line).items()}
            number -= count
        return {}


class Windows:
    """Disjoint windows over a whole stream, for scoring it: `windows[i]` is (inputs, targets), each (time,) int64.

    The last window may be shorter than the others.
    """

    def __init__(self, stream: TokenStream, context_length: int, eos_id: int) -> None:
        self.stream, self.context_length, self.eos_id = stream, context_length, eos_id

    def __len__(self) -> int:
        return -(-len(self.stream) // self.context_length)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        start = number * self.context_length
        targets = self.stream.read(start, self.context_length)
        before = self.stream.read(start - 1, 1) if start else np.array([self.eos_id], np.int64)
        return np.concatenate([before, targets[:-1]]), targets


class ShardWriter:
    """Writes one token shard with its index and provenance, which appear whole at the end of a `with` block."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype) -> None:
        """`name` is such as "train_00000"."""
        self.dtype = dtype
        self.tokens = 0
        self._paths = [directory / f"{name}{end}" for end in (".bin", ".index.npy", ".documents.jsonl")]
        self._index: list[tuple[int, int, int, int]] = []

    def __enter__(self) -> ShardWriter:
        with ExitStack() as files:
            self._ids, self._table = (files.enter_context(atomic_write(path, "wb")) for path in self._paths[:2])
            self._provenance = files.enter_context(atomic_write(self._paths[2]))
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._files.__exit__(*error)
            return
        with self._files:
            np.save(self._table, np.array(self._index, INDEX_DTYPE))

    def add(self, ids: np.ndarray, byte_count: int, source: int, provenance: dict[str, str]) -> None:
        """Append a document.

        Args:
            ids: its token ids with the end-of-text id, (tokens,).
            byte_count: bytes of its text in UTF-8.
            source: position in the manifest's `sources`.
            provenance: what `<name>.documents.jsonl` says of it.
        """
        self._ids.write(ids.astype(self.dtype, copy=False).tobytes())
        self._index.append((self.tokens, len(ids), byte_count, source))
        self._provenance.write(json.dumps(provenance, ensure_ascii=False) + "\n")
        self.tokens += len(ids)

    def by_source(self) -> dict[str, dict[str, int]]:
        """Documents, bytes and tokens of every source in the shard."""
        totals: dict[str, dict[str, int]] = {}
        for _, tokens, size, source in self._index:
            entry = totals.setdefault(str(source), {"documents": 0, "bytes": 0, "tokens": 0})
            entry["documents"] += 1
            entry["bytes"] += size
            entry["tokens"] += tokens
        return totals
