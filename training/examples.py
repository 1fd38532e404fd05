"""Examples to fine-tune on as training rows: one a row, or several packed into one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from data_pipeline.examples.dataset import ExampleOptions, ExampleSet, load_examples
from data_pipeline.examples.order import length_grouped, pack, shuffled
from data_pipeline.tokenizer import Tokenizer
from inference.asking import AskingStyle
from model.functions import IGNORE
from training.config import ExamplesConfig
from training.data import MicroBatch, Row, ValidationSplit

GROUP = (
    16  # examples that are sorted together by fifties of these; no matter of the batch, which a resumed run may change
)


class ExampleData:
    """Visits every example once an epoch. A window is one example, or a row into which several are packed."""

    def __init__(self, config: ExamplesConfig, tokenizer: Tokenizer, sequence: int, seed: int) -> None:
        """`sequence` is the length of the longest row. Raises UserError as `load_examples` does."""
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.max_length = sequence + 1  # the last token of an example is only ever predicted
        options = ExampleOptions(**{name: getattr(config, name) for name in asdict(ExampleOptions())})
        self.loaded = load_examples(config.files, tokenizer, replace(options, max_length=self.max_length))
        self.train = self.loaded.train
        held_out = self.loaded.validation
        # Also of what is held out: losses on other examples would not compare with the best so far.
        self.fingerprint = "-".join(part.fingerprint for part in (self.train, held_out) if part is not None)
        self.place = ", ".join((*config.files, *config.validation_files))
        self._rows: list[list[int]] = [[number] for number in range(len(self.train))]
        if config.packing:
            self._rows = pack(self.train.lengths - 1, self.max_length - 1)
        self._lengths = np.array([sum(int(self.train.lengths[number]) - 1 for number in row) for row in self._rows])
        self.windows_per_epoch = len(self._rows)
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self.validation = None if held_out is None else _validation_split(held_out)

    def position(self, window: int) -> int:
        """The number of the row that the global window `window` is."""
        epoch, place = divmod(window, self.windows_per_epoch)
        if epoch != self._epoch:
            if self.config.group_by_length:
                self._order = length_grouped(self._lengths, GROUP, self.seed, epoch)
            else:
                self._order = shuffled(self.windows_per_epoch, self.seed, epoch)
            self._epoch = epoch
        return int(self._order[place])

    def row(self, window: int) -> list[int]:
        """The numbers of the examples in the global window `window`."""
        return self._rows[self.position(window)]

    def micro_batch(self, windows: range, sequence: int) -> MicroBatch:
        """These windows, one a row: packed ones `sequence` long, else as long as the longest of them."""
        rows = [self.row(number) for number in windows]
        lengths = [sum(int(self.train.lengths[number]) - 1 for number in row) for row in rows]
        shape = len(rows), sequence if self.config.packing else max(lengths)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        documents = np.full(shape, max(map(len, rows)), np.int64)  # padding is a text of its own
        for place, row in enumerate(rows):
            start = 0
            for text, number in enumerate(row):
                ids, wanted = example_row(self.train, number)
                stop = start + len(ids)
                inputs[place, start:stop], targets[place, start:stop] = ids, wanted
                documents[place, start:stop] = text
                start = stop
        learned = np.flatnonzero(targets != IGNORE)
        return MicroBatch(
            inputs=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            tokens=sum(lengths),
            documents=torch.from_numpy(documents) if self.config.packing else None,
            learned=torch.from_numpy(learned),
        )

    def documents(self, windows: range) -> list[dict[str, Any]]:
        """Where the examples in these windows stand, as `file:line`."""
        return [{"example": number, "place": self.train.place(number)} for w in windows for number in self.row(w)]

    def prompt(self, text: str) -> list[int]:
        """`text` asked as the training examples ask."""
        return AskingStyle(self.loaded.style, self.config.template_variables).ids(self.tokenizer, text)

    def report(self) -> list[str]:
        lines = self.loaded.report.lines()
        if self.config.packing:
            filled = self._lengths.sum() / (len(self._rows) * (self.max_length - 1))
            lines.append(f"packed into {len(self._rows):,} rows of {self.max_length - 1:,} tokens, {filled:.0%} full")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """What was read and how it asks, for a file in the run."""
        return {
            **self.loaded.report.to_dict(),
            **AskingStyle(self.loaded.style, self.config.template_variables).to_dict(),
        }


def example_row(examples: ExampleSet, number: int) -> Row:
    """Inputs and targets of one example."""
    ids = examples.ids(number).astype(np.int64)
    return ids[:-1], np.where(examples.learned(number)[1:], ids[1:], IGNORE)


def _validation_split(examples: ExampleSet) -> ValidationSplit:
    """The longest first, so that neighbours are about equally long."""
    order = np.argsort(-examples.lengths, kind="stable")
    rows = [example_row(examples, int(number)) for number in order]
    return ValidationSplit(rows, examples.targets, examples.text_bytes)
