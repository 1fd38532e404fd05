"""Measures of every document as columns, kept beside the documents, so that thresholds can change without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_write
from data_pipeline.documents import Counts, Document, batches, read_documents
from data_pipeline.quality.code_signals import code_signals
from data_pipeline.quality.prose_signals import prose_signals
from data_pipeline.quality.words import WordTable


@dataclass(frozen=True)
class MeasureArgument:
    path: Path
    stop_words: tuple[str, ...]


def measure_shard(task: str, directory: Path, argument: MeasureArgument) -> Counts:
    """Write `<task>.signals.npz`: one column a measure, in the order of the shard's documents."""
    table = WordTable()
    parts = [measure(batch, table, argument.stop_words) for batch in batches(read_documents(argument.path))]
    parts = parts or [measure([], table, argument.stop_words)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with atomic_write(directory / f"{task}.signals.npz", "wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]
    count = len(columns["is_code"])
    return Counts(count, count)


def measure(documents: Sequence[Document], table: WordTable, stop_words: Sequence[str]) -> dict[str, np.ndarray]:
    """All columns, (documents,) float32 each: those of the other kind of text are NaN, so that no rule breaks there."""
    is_code = np.array([document.kind == "code" for document in documents], bool)
    code = [document for document in documents if document.kind == "code"]
    prose = [document.text for document in documents if document.kind != "code"]
    columns = {"is_code": is_code}
    for measured, rows in ((code_signals(code), is_code), (prose_signals(prose, table, stop_words), ~is_code)):
        for name, values in measured.items():
            columns[name] = np.full(len(documents), np.nan, np.float32)
            columns[name][rows] = values
    return columns
