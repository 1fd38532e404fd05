"""The curated-data contract: token shards, their document index, and the manifest that describes them.

`train_00000.bin` holds little-endian uint16 (uint32 from 65,536 ids) token ids without a header; every document is
followed by the end-of-text id and never crosses a shard. `train_00000.index.npy` has one `INDEX_DTYPE` record a
document; `train_00000.documents.jsonl` has its provenance, a line a document in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_json

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
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); make it again with: {self.recipe_command()}") from error

    def recipe_command(self) -> str:
        return f"python -m data_pipeline configs/data/{self.directory.name}.py --out {self.directory}"

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

    def documents(self) -> np.ndarray:
        """The index of every shard, (documents,) of `INDEX_DTYPE`, with `start` counted over the whole stream."""
        tables = []
        for shard, first in zip(self.shards, self.starts, strict=False):
            table = np.load(shard.path.with_suffix(".index.npy"), allow_pickle=False)
            table["start"] += np.uint64(first)
            tables.append(table)
        return np.concatenate(tables) if tables else np.empty(0, INDEX_DTYPE)
