"""Reading evaluation texts, cleaned as training texts are, and the n-grams by which these are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write
from data_pipeline.cleaning import clean
from data_pipeline.collect import unreadable
from data_pipeline.config import CleaningConfig, CollectionConfig, DecontaminationConfig
from data_pipeline.dedup.evaluation_index import NGRAM, PLACE
from data_pipeline.dedup.minhash import shingles
from data_pipeline.documents import Counts, Document, Quarantined, batches, write_row
from data_pipeline.sources import text_files
from data_pipeline.sources.config import TextFiles
from data_pipeline.sources.opening import plain_suffix

_WITH_FIELDS = frozenset((".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"))
_FOUND = np.dtype([*NGRAM.descr, ("text", "<u4"), ("position", "<u4")])


@dataclass(frozen=True)
class EvaluationArgument:
    files: tuple[str, ...]
    config: DecontaminationConfig
    collection: CollectionConfig
    cleaning: CleaningConfig


def plan(config: DecontaminationConfig, collection: CollectionConfig) -> tuple[tuple[str, ...], list[str]]:
    """The files of evaluation texts, and what tells whether they changed.

    Raises:
        UserError: a pattern matches no file.
    """
    parts = text_files.plan(TextFiles(config.patterns, name="decontamination"), collection, Path())
    return tuple(name for items, _ in parts for name in items), [state for _, state in parts]


def read_evaluation(task: str, directory: Path, argument: EvaluationArgument) -> Counts:
    """Write the texts that are long enough, and their n-grams with the places where they stand.

    Raises:
        UserError: a file has no text, or no text is long enough, so that nothing would be found of it.
    """
    config, counts = argument.config, Counts()
    found = [np.empty(0, _FOUND)]
    with (
        atomic_write(directory / f"{task}.texts.jsonl") as texts,
        atomic_write(directory / "dropped" / f"{task}.jsonl") as dropped,
    ):

        def readable() -> Iterator[Document]:
            for record in evaluation_texts(argument):
                counts.documents_in += 1
                if isinstance(record, Document):
                    yield record
                else:
                    counts.dropped[record.reason] += 1
                    write_row(dropped, record)

        for batch in batches(readable()):
            for document, ngrams in zip(batch, _ngrams(batch, config), strict=True):
                if not len(ngrams):
                    counts.dropped["too_short"] += 1
                    write_row(dropped, document, reason="too_short")
                    continue
                ngrams["text"] = counts.documents_out
                found.append(ngrams)
                write_row(texts, {"origin": document.origin, "text": document.text})
                counts.documents_out += 1
    if not counts.documents_out:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.dropped.items()))
        raise UserError(
            f"decontamination.patterns: none of the {counts.documents_in:,} evaluation texts in "
            f"{', '.join(config.patterns)} can be looked for ({reasons}). A text needs decontamination.min_words = "
            f"{config.min_words} words: lower it, or name fields with longer texts in decontamination.text_fields"
        )
    together = np.sort(np.concatenate(found), order=("words", "hash", "text"))
    ngrams, numbers = np.unique(together[["words", "hash"]].astype(NGRAM), return_inverse=True)
    places = np.empty(len(together), PLACE)
    places["ngram"], places["text"], places["position"] = numbers, together["text"], together["position"]
    for name, array in (("ngrams", ngrams), ("places", places)):
        with atomic_write(directory / f"{task}.{name}.npy", "wb") as file:
            np.save(file, array)
    return counts


def evaluation_texts(argument: EvaluationArgument) -> Iterator[Document | Quarantined]:
    """Every field of every record that holds text. Texts are cleaned as those of the sources are.

    Raises:
        UserError: a file has no text.
    """
    collection = replace(argument.collection, max_document_bytes=argument.collection.max_record_bytes)
    for name in argument.files:
        fields = argument.config.text_fields if plain_suffix(name) in _WITH_FIELDS else ("text",)
        any_text = False
        for field in fields:
            source = TextFiles((name,), name="decontamination", text_field=field)
            for record in text_files.read(source, 0, (name,), collection):
                if isinstance(record, Document):
                    any_text = True
                    reason = unreadable(record.text, collection) or clean(record, argument.cleaning, Counter())
                    yield Quarantined(0, record.origin, "whole document", reason) if reason else record
                elif record.reason != "no_text":  # a record need not have every field
                    yield record
        if not any_text:
            raise UserError(
                f"decontamination.patterns: {name} has no text, so nothing could be found of it; name the fields that "
                f"hold text in decontamination.text_fields, now {', '.join(argument.config.text_fields)}"
            )


def _ngrams(batch: Iterable[Document], config: DecontaminationConfig) -> list[np.ndarray]:
    """The distinct n-grams of each text with their first positions; a short text is one, one too short has none."""
    texts = [document.text for document in batch]
    result = []
    runs = shingles(texts, config.ngram_words)
    for text, words, own in zip(texts, map(len, shingles(texts, 1)), runs, strict=True):
        length = min(words, config.ngram_words)
        if words < min(config.min_words, config.ngram_words) or not re.search(r"\w", text):
            own = own[:0]
        hashes, positions = np.unique(own, return_index=True)
        rows = np.zeros(len(hashes), _FOUND)
        rows["words"], rows["hash"], rows["position"] = length, hashes, positions
        result.append(rows)
    return result
