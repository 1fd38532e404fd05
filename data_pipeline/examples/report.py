"""What became of the records on their way to examples, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_pipeline.examples.records import Problem

_SHOWN = 10  # problems that are listed; all of them are in the report
_QUANTILES = {"shortest": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "longest": 1.0}


@dataclass(frozen=True)
class FileReport:
    path: str
    format: str
    split: str
    """What the file is for: "train", "validation", or "both" where a part of it is held out."""
    records: int


@dataclass(frozen=True)
class ExampleReport:
    """Counts are over training and validation together, where they do not name one."""

    files: tuple[FileReport, ...]
    records: int
    """What could be read and rendered."""
    train_examples: int
    validation_examples: int
    problems: tuple[Problem, ...]
    """What was set aside, with its place and the reason."""
    max_length: int
    truncated: int
    """Longer than `max_length` and cut at the end; those of which nothing was left to learn are counted too."""
    dropped: int
    """Of those cut, the ones of which nothing was left to learn."""
    divided: int
    """Documents longer than `max_length`, which became several examples."""
    duplicates: int
    """Training records that stand word for word in the validation set, and were dropped."""
    lengths: dict[str, int]
    """Quantiles of the length of a record in tokens, before anything is cut."""
    tokens: int
    """In the examples as they are trained on."""
    targets: int
    """Of these tokens, the ones that are learned."""
    notes: tuple[str, ...]
    """What the user should know and perhaps change."""

    @property
    def targets_share(self) -> float:
        return self.targets / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a JSON file."""
        return {**asdict(self), "targets_share": self.targets_share}

    def lines(self) -> list[str]:
        """A few lines for the console."""
        found = [f"{file.path}: {file.records:,} records ({file.format}, {file.split})" for file in self.files]
        found.append(
            f"{self.train_examples:,} examples to train on, {self.validation_examples:,} to validate; "
            f"{self.targets:,} of {self.tokens:,} tokens are learned ({self.targets_share:.0%})"
        )
        found.append("tokens in a record: " + ", ".join(f"{name} {length:,}" for name, length in self.lengths.items()))
        if self.truncated:
            lost = f" (dropped, because nothing to learn was left: {self.dropped:,})" if self.dropped else ""
            found.append(f"longer than {self.max_length:,} tokens and cut at the end: {self.truncated:,}{lost}")
        if self.divided:
            found.append(f"documents longer than {self.max_length:,} tokens, now several examples: {self.divided:,}")
        if self.duplicates:
            found.append(f"dropped from training, because they stand in the validation set: {self.duplicates:,}")
        found += self.notes
        if self.problems:
            found.append(f"set aside: {len(self.problems):,}")
            found += [f"  {problem}" for problem in self.problems[:_SHOWN]]
            if len(self.problems) > _SHOWN:
                found.append(f"  and {len(self.problems) - _SHOWN:,} more")
        return found


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Lengths that occur, from the shortest to the longest."""
    found = np.quantile(np.asarray(lengths), list(_QUANTILES.values()), method="nearest")
    return dict(zip(_QUANTILES, map(int, found), strict=True))
