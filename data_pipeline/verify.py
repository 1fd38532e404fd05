"""`python -m data_pipeline.verify data/NAME`: read a curated dataset from scratch and check all that it promises.

Takes less than a minute for 100 MB of text. Ends with status 1 and says what is wrong where a promise is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import sha256_of
from data_pipeline.checks import (
    Check,
    Contamination,
    DocumentCheck,
    ExactDuplicates,
    Groups,
    Leaks,
    Published,
    Tokens,
    Totals,
)
from data_pipeline.documents import read_rows
from data_pipeline.manifest import SHARD_FILE, fingerprint_of
from data_pipeline.shards import INDEX_DTYPE, Dataset
from data_pipeline.tokenizer import Tokenizer

_SHOWN = 10  # problems of each check
# What tokenizers that normalise text are known to change: case, accents, forms of Unicode, spaces, rare characters.
_PROBE = "  Ünïts:\tÇa  cafe\u0301 ﬁne ½ ①　“Ａ” …\n\n ὠ 漢字 👩‍👧 "


@dataclass(frozen=True)
class Command:
    """Check a curated dataset: files, counts, tokens, duplicates, leaks into the validation split, contamination."""

    directory: Annotated[str, tyro.conf.Positional]
    """The dataset, such as data/mini."""


class Files(Check):
    """Files are those that the manifest lists, bit for bit, and each index fits its shard."""

    name = "files"

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        listed: dict[str, str] = dataset.manifest.get("files", {})
        self.examined = f"{len(listed)} files"
        for name, expected in listed.items():
            path = dataset.directory / name
            if not path.is_file():
                self.report(f"{name} is missing")
            elif sha256_of(path) != expected:
                self.report(f"{name} is not what was published: its sha256 is another")
        for path in sorted(dataset.directory.iterdir()):
            if SHARD_FILE.fullmatch(path.name) and path.name not in listed:
                self.report(f"{path.name} is not listed in manifest.json")
        if listed.get(dataset.tokenizer_path.name) != dataset.tokenizer_sha256:
            self.report("the sha256 of the tokenizer is given in two ways")
        for split in dataset.manifest["splits"].values():
            for shard in split["shards"]:
                if listed.get(shard["file"]) != shard["sha256"]:
                    self.report(f"the sha256 of {shard['file']} is given in two ways")
        if fingerprint_of(listed) != dataset.fingerprint:
            self.report("the fingerprint is not that of the token shards")

    def documents(self, dataset: Dataset, tokenizer: Tokenizer) -> Iterator[Published]:
        """All documents that can be read, those of the validation split first."""
        for split in ("val", "train"):
            for entry in dataset.manifest["splits"][split]["shards"]:
                path = dataset.directory / entry["file"]
                try:
                    yield from self._shard(split, path, np.dtype(dataset.manifest["dtype"]), tokenizer)
                except (OSError, ValueError, EOFError) as error:
                    self.report(f"{path.name} cannot be read to its end: {error}")

    def _shard(self, split: str, path: Path, dtype: np.dtype, tokenizer: Tokenizer) -> Iterator[Published]:
        index = np.load(path.with_suffix(".index.npy"), allow_pickle=False)
        if index.dtype != INDEX_DTYPE:
            raise ValueError(f"its index has records of {index.dtype}")
        ends = np.cumsum(index["tokens"].astype(np.int64))
        held = path.stat().st_size / dtype.itemsize
        if (index["start"] != ends - index["tokens"]).any() or held != (ends[-1] if len(ends) else 0):
            self.report(f"{path.name}: the documents of its index do not follow one another to its end")
        rows = read_rows(path.with_suffix(".documents.jsonl"))
        for number, record in enumerate(index):
            row = next(rows, None)
            if not isinstance(row, dict):
                raise ValueError(f"it has {len(index)} documents, but the provenance of {number}")
            start, count = int(record["start"]), int(record["tokens"])
            if start + count > held:
                raise ValueError(f"document {number} would end after it")
            ids = np.fromfile(path, dtype, count, offset=start * dtype.itemsize).astype(np.int64)
            text = tokenizer.decode(ids[(ids < tokenizer.vocab_size) & (ids != tokenizer.eos_id)].tolist())
            source, size = int(record["source"]), int(record["bytes"])
            yield Published(split, path.stem, number, source, size, ids, text, row)
        if next(rows, None) is not None:
            self.report(f"{path.stem}.documents.jsonl has more lines than there are documents")


def verify(directory: str | Path) -> list[Check]:
    """Check the dataset in `directory`; whatever is wrong with it is among the `problems` of the checks.

    Raises:
        UserError: there is no dataset in `directory`, or its manifest cannot be read.
    """
    dataset = Dataset(directory)
    try:
        files = Files(dataset)
        try:
            tokenizer = Tokenizer(dataset.tokenizer_path)
        except UserError as error:
            files.report(str(error))
            return [files]
        if (tokenizer.vocab_size, tokenizer.eos_id) != (dataset.vocab_size, dataset.eos_id):
            files.report("the manifest's vocabulary and end-of-text id are not those of the tokenizer")
        checks = _checks(dataset, tokenizer)
        for document in files.documents(dataset, tokenizer):
            for check in checks:
                check.add(document)
        for check in checks:
            check.finish()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{dataset.directory / 'manifest.json'} is damaged ({error!r}); make it again with: "
            f"{dataset.recipe_command()}"
        ) from error
    return [files, *checks]


def _checks(dataset: Dataset, tokenizer: Tokenizer) -> list[DocumentCheck]:
    config = dataset.manifest["config"]
    return [
        Totals(dataset.manifest),
        Tokens(dataset.vocab_size, dataset.eos_id, tokenizer.decode(tokenizer.encode(_PROBE)) == _PROBE),
        ExactDuplicates(),
        Leaks(config["deduplication"]["shingle_words"], config["split"]["leak_threshold"]),
        Groups(),
        Contamination(dataset.directory, config),
    ]


def summary(checks: Sequence[Check]) -> str:
    """A short table for people, and what is wrong."""
    lines = []
    for check in checks:
        state = f"{check.wrong:,} wrong" if check.wrong else "ok"
        lines.append(f"{check.name:<18}{check.examined:<52} {state}")
    for check in checks:
        lines += [f"{check.name}: {problem}" for problem in check.problems[:_SHOWN]]
        if check.wrong > _SHOWN:
            lines.append(f"{check.name}: and {check.wrong - _SHOWN:,} more")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Parse `DIRECTORY`, check, and print a table; the process ends with status 1 where a promise is broken."""
    command = tyro.cli(Command, args=list(argv), prog="python -m data_pipeline.verify")
    checks = verify(command.directory)
    print(summary(checks))
    if any(check.wrong for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
