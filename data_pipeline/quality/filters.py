"""Quality filters: rules over the columns that `signals.py` has measured.

A document is dropped for the first rule that it breaks. Every rule is one line; so is a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.config import CodeFilters, FilterConfig, ProseFilters
from data_pipeline.documents import Counts, Document, map_documents
from data_pipeline.quality.prose_signals import DUPLICATE_NGRAMS, TOP_NGRAMS

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FilterArgument:
    path: Path
    signals: Path  # of the measure stage
    config: FilterConfig


def filter_shard(task: str, directory: Path, argument: FilterArgument) -> Counts:
    """Copy one shard without the documents that break a rule."""
    with np.load(argument.signals) as columns:
        reasons = iter(drop_reasons(columns, argument.config))

    def decide(document: Document) -> str | None:
        return next(reasons)

    return map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)


def drop_reasons(columns: Columns, config: FilterConfig) -> list[str | None]:
    """For each document the first rule that it breaks, or None. Code and prose have rules of their own."""
    is_code = columns["is_code"]
    reasons = np.full(len(is_code), None, object)
    for rules, rows in ((prose_rules(columns, config.prose), ~is_code), (code_rules(columns, config.code), is_code)):
        for reason, broken in reversed(rules.items()):
            reasons[broken & rows] = reason
    found: list[str | None] = reasons.tolist()
    return found


def prose_rules(s: Columns, limits: ProseFilters) -> dict[str, np.ndarray]:
    """Which documents break each rule for natural language."""
    mean = s["mean_word_length"]
    measured = s["words"] >= limits.min_words_for_repetition
    return {
        "too_few_words": (s["words"] < limits.min_words) | (s["words"] == 0),
        "too_many_words": s["words"] > limits.max_words,
        "long_word": s["longest_piece"] > limits.max_word_characters,
        "mean_word_length": (mean < limits.min_mean_word_length) | (mean > limits.max_mean_word_length),
        "hashes": s["hashes_per_word"] > limits.max_symbol_ratio,
        "ellipses": s["ellipses_per_word"] > limits.max_symbol_ratio,
        "bullet_lines": s["bullet_lines"] > limits.max_bullet_lines,
        "ellipsis_lines": s["ellipsis_lines"] > limits.max_ellipsis_lines,
        "few_letters": s["words_with_letters"] < limits.min_alphabetic_words,
        "stop_words": s["stop_words"] < limits.min_stop_words,
        "lorem_ipsum": s["lorem_ipsum"] > 0,
        "few_sentences": (s["c4_sentences"] < limits.min_sentences) & (limits.min_sentences > 0),
        "unpunctuated_lines": s["punctuated_lines"] < limits.min_punctuated_lines,
        "short_lines": s["short_lines"] > limits.max_short_lines,
        "newlines": s["newlines_per_word"] > limits.max_newlines_per_word,
        "repeated_characters": s["repeated_characters"] > limits.max_repeated_characters,
        "duplicate_paragraphs": s["duplicate_paragraphs"] > limits.max_duplicate_lines,
        "duplicate_paragraph_characters": s["duplicate_paragraph_characters"] > limits.max_duplicate_line_characters,
        "duplicate_lines": s["duplicate_lines"] > limits.max_duplicate_lines,
        "duplicate_line_characters": s["duplicate_line_characters"] > limits.max_duplicate_line_characters,
        **{
            f"top_{n}gram": measured & (s[f"top_{n}gram"] > most)
            for n, most in zip(TOP_NGRAMS, limits.max_top_ngram, strict=True)
        },
        **{
            f"duplicate_{n}grams": measured & (s[f"duplicate_{n}grams"] > most)
            for n, most in zip(DUPLICATE_NGRAMS, limits.max_duplicate_ngrams, strict=True)
        },
    }


def code_rules(s: Columns, limits: CodeFilters) -> dict[str, np.ndarray]:
    """Which documents break each rule for source code."""
    return {
        "too_small": s["bytes"] < limits.min_bytes,
        "too_large": s["bytes"] > limits.max_bytes,
        "long_line": s["longest_line"] > limits.max_line_characters,
        "mean_line_length": s["mean_line"] > limits.max_mean_line_characters,
        "few_letters": s["alphanumeric"] < limits.min_alphanumeric,
        "generated": (s["generated"] > 0) & limits.drop_generated,
        "syntax_error": (s["broken_python"] > 0) & limits.must_parse,
    }
