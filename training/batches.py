"""Curated data as training windows without replacement."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from data_pipeline.shards import Dataset, TokenStream
from data_pipeline.tokenizer import Tokenizer
from training.data import MicroBatch, ValidationSplit


class Batches:
    """Cuts a token stream into windows and visits each once an epoch, in an order fixed by seed and epoch."""

    def __init__(self, stream: TokenStream, context_length: int, seed: int) -> None:
        """Raises UserError when the stream is shorter than one window."""
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.windows_per_epoch = (len(stream) - 1) // context_length
        if self.windows_per_epoch < 1:
            raise UserError(
                f"the training split has {len(stream)} tokens, less than one window of {context_length} + 1; "
                "curate more data or lower --model.context-length"
            )
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def window(self, number: int) -> np.ndarray:
        """The global window `number`, (context_length + 1,) int64."""
        return self.stream.read(self.position(number), self.context_length + 1)

    def position(self, number: int) -> int:
        """The place in the stream, in tokens, where the global window `number` begins."""
        epoch, place = divmod(number, self.windows_per_epoch)
        if epoch != self._epoch:
            # A generator of its own: nothing else that draws random numbers can shift the order of the data.
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.windows_per_epoch)
            self._epoch = epoch
        return int(self._order[place]) * self.context_length

    def micro_batch(self, windows: range, sequence: int) -> MicroBatch:
        """These windows, cut into rows of `sequence` tokens: (windows * context_length / sequence, sequence)."""
        ids = torch.from_numpy(np.stack([self.window(number) for number in windows]))
        inputs, targets = ids[:, :-1].reshape(-1, sequence), ids[:, 1:].reshape(-1, sequence)
        return MicroBatch(inputs, targets, tokens=inputs.numel())

    def documents(self, windows: range) -> list[dict[str, Any]]:
        """Which documents these windows were cut from: number, first token and, where it is known, provenance."""
        index = self.stream.documents()
        numbers = {
            int(number)
            for start in map(self.position, windows)
            for number in range(
                int(np.searchsorted(index["start"], start, side="right")) - 1,
                int(np.searchsorted(index["start"], start + self.context_length + 1)),
            )
        }
        return [
            {"document": number, "first_token": int(index["start"][number]), **self.stream.provenance(number)}
            for number in sorted(numbers)
        ]


class CuratedData(Batches):
    """A dataset made by `python -m data_pipeline`: its training windows, and its validation split."""

    def __init__(self, dataset: Dataset, context_length: int, seed: int) -> None:
        """Raises UserError when the data are damaged, or shorter than one window."""
        super().__init__(dataset.split("train"), context_length, seed)
        self.dataset, self.tokenizer = dataset, Tokenizer(dataset.tokenizer_path)
        self.fingerprint, self.place = dataset.fingerprint, str(dataset.directory)
        if self.tokenizer.sha256 != dataset.tokenizer_sha256:
            raise UserError(
                f"{self.tokenizer.path} is not the tokenizer that {dataset.directory} was made with (sha256 differs "
                f"from manifest.json); make both again with: {dataset.recipe_command()}"
            )

    @cached_property
    def validation(self) -> ValidationSplit:
        """The validation split in disjoint windows of the context."""
        stream = self.dataset.split("val")
        rows = stream.scoring_windows(self.context_length, self.dataset.eos_id)
        return ValidationSplit(rows, len(stream), int(self.dataset.manifest["splits"]["val"]["bytes"]))

    def prompt(self, text: str) -> str:
        return text

    def report(self) -> list[str]:
        return []
