"""Measures of every document as columns, kept beside the documents, so that thresholds can change without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write, sha256_of
from data_pipeline.config import MeasureConfig
from data_pipeline.documents import Counts, Document, batches, read_documents
from data_pipeline.quality.character_model import CharacterModel
from data_pipeline.quality.code_signals import code_signals
from data_pipeline.quality.language import identify
from data_pipeline.quality.lexicon import LEXICONS, lexicon_signals
from data_pipeline.quality.prose_signals import prose_signals
from data_pipeline.quality.words import WordTable


@dataclass(frozen=True)
class MeasureArgument:
    path: Path
    config: MeasureConfig
    model: Path | None  # of the reference stage, where there is one


def settings(config: MeasureConfig) -> list[Any]:
    """All that the columns depend on beside the documents, the reference model and our code, ready for JSON."""
    lexicons = {code: sha256_of(path) for code, path in LEXICONS.items()}
    return [config.candidate_languages, config.stop_words, lexicons]


def measure_shard(task: str, directory: Path, argument: MeasureArgument) -> Counts:
    """Write `<task>.signals.npz`: one column a measure, in the order of the shard's documents."""
    table, model = WordTable(), CharacterModel.load(argument.model) if argument.model else None
    found = [measure(batch, table, argument.config, model) for batch in batches(read_documents(argument.path))]
    parts = found or [measure([], table, argument.config, model)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with atomic_write(directory / f"{task}.signals.npz", "wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]
    count = len(columns["is_code"])
    return Counts(count, count)


def measure(
    documents: Sequence[Document], table: WordTable, config: MeasureConfig, model: CharacterModel | None = None
) -> dict[str, np.ndarray]:
    """All columns, (documents,) float32 each: those of the other kind of text are NaN, so that no rule breaks there."""
    is_code = np.array([document.kind == "code" for document in documents], bool)
    code = [document for document in documents if document.kind == "code"]
    prose = [document.text for document in documents if document.kind != "code"]
    columns = {"is_code": is_code, "characters": np.array([len(document.text) for document in documents], np.float32)}
    for measured, rows in ((code_signals(code), is_code), (all_prose_signals(prose, table, config, model), ~is_code)):
        for name, values in measured.items():
            columns[name] = np.full(len(documents), np.nan, np.float32)
            columns[name][rows] = values
    return columns


def all_prose_signals(
    texts: Sequence[str], table: WordTable, config: MeasureConfig, model: CharacterModel | None
) -> dict[str, np.ndarray]:
    """Every measure of prose, (texts,) each; NaN is what cannot be measured."""
    words = table.read(texts)
    languages, probabilities = identify(texts, config.candidate_languages)
    return {
        **prose_signals(texts, words, table),
        **lexicon_signals(words, languages, config.stop_words),
        "language": languages,
        "language_probability": probabilities,
        "bits_per_character": model.bits_per_character(texts) if model else np.full(len(texts), np.nan),
    }
