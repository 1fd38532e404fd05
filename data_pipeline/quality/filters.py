"""Quality filters: rules over the columns that `signals.py` has measured.

A document is dropped for the first rule that it breaks. Every rule is one line; so is a new one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipeline.config import CodeFilters, FilterConfig, ProseFilters
from data_pipeline.documents import Counts, Document, map_documents
from data_pipeline.quality.language import LANGUAGES
from data_pipeline.quality.prose_signals import DUPLICATE_NGRAMS, TOP_NGRAMS

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FilterArgument:
    path: Path
    signals: Path  # of the measure stage
    config: FilterConfig


def filter_shard(task: str, directory: Path, argument: FilterArgument) -> Counts:
    """Copy one shard without the documents that break a rule, and say the language of prose in each."""
    with np.load(argument.signals) as columns:
        reasons = iter(drop_reasons(columns, argument.config))
        languages = iter(language_codes(columns["language"]))
    kept: Counter[str] = Counter()

    def decide(document: Document) -> str | None:
        document.language, reason = next(languages), next(reasons)
        kept[document.language] += reason is None
        return reason

    counts = map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)
    counts.details = {"languages": {code: number for code, number in sorted(kept.items()) if code and number}}
    return counts


def language_codes(column: np.ndarray) -> list[str]:
    """ISO 639 codes, empty for code."""
    return [LANGUAGES[number] if number >= 0 else "" for number in np.nan_to_num(column, nan=-1).astype(int).tolist()]


def resolved(config: FilterConfig, signals: Sequence[Path]) -> FilterConfig:
    """The config with the percentile of bits per character as a number, over the prose of all shards."""
    limits = config.prose
    if limits.max_bits_percentile >= 100:
        return config
    found = []
    for path in signals:
        with np.load(path) as columns:
            found.append(columns["bits_per_character"])
    bits = np.concatenate(found)
    bits = bits[~np.isnan(bits)]
    if not len(bits):
        return config
    bound = float(np.percentile(bits, limits.max_bits_percentile, method="higher"))
    if limits.max_bits_per_character is not None:
        bound = min(bound, limits.max_bits_per_character)
    return replace(config, prose=replace(limits, max_bits_per_character=bound))


def drop_reasons(columns: Columns, config: FilterConfig) -> list[str | None]:
    """For each document the first rule that it breaks, or None. Code and prose have rules of their own."""
    is_code = columns["is_code"]
    reasons = np.full(len(is_code), None, object)
    prose = {**prose_rules(columns, config.prose), **content_rules(columns, config.prose)}
    for rules, rows in ((prose, ~is_code), (code_rules(columns, config.code), is_code)):
        for reason, broken in reversed({**length_rules(columns, config), **rules}.items()):
            reasons[broken & rows] = reason
    found: list[str | None] = reasons.tolist()
    return found


def length_rules(s: Columns, limits: FilterConfig) -> dict[str, np.ndarray]:
    """Which documents of any kind are too short or too long."""
    most = np.inf if limits.max_length is None else limits.max_length
    return {"too_short": s["characters"] < limits.min_length, "too_long": s["characters"] > most}


def prose_rules(s: Columns, limits: ProseFilters) -> dict[str, np.ndarray]:
    """Which documents break each rule for the form of natural language."""
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


def content_rules(s: Columns, limits: ProseFilters) -> dict[str, np.ndarray]:
    """Which documents break each rule for the language and the words of prose."""
    wanted = [LANGUAGES.index(code) for code in limits.languages]
    toxic = s["toxic_words"] > limits.max_toxic_words
    most_bits = np.inf if limits.max_bits_per_character is None else limits.max_bits_per_character
    return {
        "other_language": ~np.isin(s["language"], wanted) & bool(wanted),
        "uncertain_language": s["language_probability"] < limits.min_language_probability,
        "toxic": toxic & (s["different_toxic_words"] >= limits.min_different_toxic_words),
        "unlike_reference": s["bits_per_character"] > most_bits,
    }


def code_rules(s: Columns, limits: CodeFilters) -> dict[str, np.ndarray]:
    """Which documents break each rule for source code."""
    return {
        "too_small": s["bytes"] < limits.min_bytes,
        "too_large": s["bytes"] > limits.max_bytes,
        "long_line": s["longest_line"] > limits.max_line_characters,
        "mean_line_length": s["mean_line"] > limits.max_mean_line_characters,
        "few_letters": s["alphanumeric"] < limits.min_alphanumeric,
        "xml": (s["xml"] > 0) & limits.drop_xml,
        "little_visible_text": s["visible_text"] < limits.min_visible_text,
        "few_visible_characters": s["visible_characters"] < limits.min_visible_characters,
        "few_comments": s["comments"] < limits.min_comments,
        "many_comments": s["comments"] > limits.max_comments,
        "generated": (s["generated"] > 0) & limits.drop_generated,
        "syntax_error": (s["broken_python"] > 0) & limits.must_parse,
    }
