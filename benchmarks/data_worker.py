"""Our filters, signatures and deduplication, timed in a process of their own.

Run by `benchmarks.data`, never by hand: python -m benchmarks.data_worker TASK DOCUMENTS FOLDER.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import STOP_WORDS, DeduplicationConfig, ProseFilters
from data_pipeline.dedup import duplicates, minhash, sketches
from data_pipeline.documents import batches, read_documents
from data_pipeline.quality.filters import prose_rules
from data_pipeline.quality.lexicon import different_words
from data_pipeline.quality.lines import Lines
from data_pipeline.quality.prose_signals import c4_sentences, line_signals, ngram_signals, prose_signals, word_signals
from data_pipeline.quality.words import Words, WordTable

# The published thresholds, with the settings that datatrove's code has where papers differ.
LIMITS = ProseFilters(max_repeated_characters=0.01, min_sentences=5, min_words_for_repetition=0)
RULES = {
    "gopher_quality": (
        *("too_few_words", "too_many_words", "mean_word_length", "hashes", "ellipses", "bullet_lines"),
        *("ellipsis_lines", "few_letters", "stop_words"),
    ),
    "gopher_repetition": (
        *("duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters"),
        *(f"top_{n}gram" for n in (2, 3, 4)),
        *(f"duplicate_{n}grams" for n in range(5, 11)),
    ),
    "c4": ("few_sentences",),
    "fineweb": ("unpunctuated_lines", "short_lines", "repeated_characters", "newlines"),
}


def quality_signals(texts: Sequence[str], words: Words) -> dict[str, np.ndarray]:
    """What Gopher's quality rules need: like datatrove's, these look for English stop words whatever the language."""
    return {**word_signals(texts, words), "stop_words": different_words(words, [(word,) for word in STOP_WORDS["en"]])}


def all_signals(texts: Sequence[str], table: WordTable) -> dict[str, np.ndarray]:
    words = table.read(texts)
    return {**prose_signals(texts, words, table), **quality_signals(texts, words)}


def measures(table: WordTable) -> dict[str, Callable[[Sequence[str]], Any]]:
    """What each filter alone has to measure."""
    return {
        "gopher_quality": lambda texts: (
            quality_signals(texts, table.read(texts)),
            line_signals(texts, Lines(texts)),
        ),
        "gopher_repetition": lambda texts: (
            ngram_signals(texts, table.read(texts)),
            line_signals(texts, Lines(texts)),
        ),
        "c4": lambda texts: c4_sentences(texts, table),
        "fineweb": lambda texts: (line_signals(texts, Lines(texts)), table.read(texts).counts),
    }


def filters(name: str, parts: list[list[str]]) -> dict[str, Any]:
    """Seconds of one filter alone, or of all together and then each one's reason for every document."""
    table = WordTable()
    if "+" not in name:
        measure = measures(table)[name]
        started = time.perf_counter()
        for texts in parts:
            measure(texts)
        return {"seconds": time.perf_counter() - started}
    started = time.perf_counter()
    measured = [all_signals(texts, table) for texts in parts]
    seconds = time.perf_counter() - started
    columns = {key: np.concatenate([part[key] for part in measured]).astype(np.float32) for key in measured[0]}
    broken = prose_rules(columns, LIMITS)
    reasons = {}
    for one, rules in RULES.items():
        found = np.full(len(columns["words"]), None, object)
        for rule in reversed(rules):
            found[broken[rule]] = rule
        reasons[one] = found.tolist()
    return {"seconds": seconds, "reasons": reasons}


def signatures(parts: list[list[str]]) -> dict[str, Any]:
    config = DeduplicationConfig()
    started = time.perf_counter()
    for texts in parts:
        minhash.sketch(minhash.shingles(texts, config.shingle_words), config.bands * config.rows)
    return {"seconds": time.perf_counter() - started}


def deduplicate(documents: Path, folder: Path) -> dict[str, Any]:
    """From a file of documents to a file of those that are kept."""
    config = DeduplicationConfig()
    (folder / "dropped").mkdir()
    started = time.perf_counter()
    sketches.sketch_shard("sketch", folder, sketches.SketchArgument(documents, config))
    table = folder / "sketch.documents.npy"
    duplicates.find_duplicates("all", folder, duplicates.FindArgument([table], config))
    duplicates.remove_duplicates("kept", folder, duplicates.RemoveArgument(documents, folder, 0, config))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "kept": [document.id for document in read_documents(folder / "kept.jsonl")]}


def main(task: str, documents: str, folder: str) -> None:
    all_signals(["A few words."], WordTable())  # tables of characters, as the others load their language
    minhash.shingles(["A few words."], 5)
    if task == "deduplication":
        result = deduplicate(Path(documents), Path(folder))
    else:
        parts = [[document.text for document in batch] for batch in batches(read_documents(Path(documents)))]
        result = signatures(parts) if task == "signatures" else filters(task, parts)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
