"""What a run trains on, whatever it is made from: rows addressed by one global number, and rows to validate on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_pipeline.tokenizer import Tokenizer
from model.functions import IGNORE

Row = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, each (time,), IGNORE where nothing is predicted."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees."""

    inputs: Tensor
    """(rows, time) int64."""
    targets: Tensor
    """(rows, time) int64, IGNORE where no loss is wanted."""
    tokens: int
    """Inputs that are no padding."""
    documents: Tensor | None = None
    """(rows, time) int64: where rows hold several texts, the number of each; they do not see each other."""
    learned: Tensor | None = None
    """(positions,) int64: the only ones, in rows * time, that have targets; None where all have."""

    @property
    def losses(self) -> int:
        """How many losses its sum has."""
        return int((self.targets != IGNORE).sum()) if self.learned is None else len(self.learned)

    def to(self, device: torch.device) -> MicroBatch:
        """The same where `device` can use it; a GPU fetches it by itself, out of pinned memory."""
        inputs, targets, documents, learned = (
            None if tensor is None else _to(tensor, device)
            for tensor in (self.inputs, self.targets, self.documents, self.learned)
        )
        assert inputs is not None and targets is not None
        return MicroBatch(inputs, targets, self.tokens, documents, learned)


class Rows(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Row: ...


@dataclass(frozen=True)
class ValidationSplit:
    """Rows that are validated on, every target once."""

    rows: Rows
    targets: int
    text_bytes: int
    """UTF-8 bytes of the text that the targets stand for."""

    def thinned(self, tokens: int | None) -> ValidationSplit:
        """About `tokens` targets of it, in rows spread evenly; all with None. The bytes are in proportion."""
        if tokens is None or tokens >= self.targets:
            return self
        count = max(1, round(len(self.rows) * tokens / self.targets))
        rows = [self.rows[number * len(self.rows) // count] for number in range(count)]
        targets = sum(int((wanted != IGNORE).sum()) for _, wanted in rows)
        return ValidationSplit(rows, targets, round(self.text_bytes * targets / self.targets))


class TrainingData(Protocol):
    """Data as the loop sees them. A window is a row of training data, numbered on through all epochs.

    The position in the data is a single number, the windows consumed so far over all processes. It does not depend
    on batch size or process count, so a resumed run may change both.
    """

    tokenizer: Tokenizer
    fingerprint: str
    """Changes when the training data do."""
    place: str
    """Where the data are, for messages."""
    windows_per_epoch: int

    @property
    def validation(self) -> ValidationSplit | None:
        """None where nothing is held out."""

    def micro_batch(self, windows: range, sequence: int) -> MicroBatch:
        """Windows as rows, on the CPU; curated ones are cut into rows of `sequence` tokens."""

    def position(self, window: int) -> int:
        """Where a window lies in the data as they are stored: a token of the stream, or a row."""

    def documents(self, windows: range) -> list[dict[str, Any]]:
        """What these windows were made from, as plain values."""

    def prompt(self, text: str) -> str | list[int]:
        """What to continue, given the prompt `text` of the config."""

    def report(self) -> list[str]:
        """Lines for the console on what was read, where there is something to say."""


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device) if device.type != "cuda" else tensor.pin_memory().to(device, non_blocking=True)
