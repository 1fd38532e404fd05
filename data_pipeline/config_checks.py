"""Mistakes in a config that would show only after minutes of work, or never: values that switch a stage off unsaid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from common.errors import UserError
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.quality import language
from data_pipeline.tokenizer_import import pack

_DAY = 86_400  # seconds


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; the ends belong to it unless they are open. NaN is in none."""

    least: float
    most: float = math.inf
    open_below: bool = False
    open_above: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.open_below else value >= self.least
        return above and (value < self.most if self.open_above else value <= self.most)

    def __str__(self) -> str:
        text = f"{'above' if self.open_below else 'at least'} {self.least}"
        return text if self.most == math.inf else f"{text} and {'below' if self.open_above else 'at most'} {self.most}"


# Every number of a config, sources aside, by its dotted name; each item of a tuple has to be in the range. Seeds may be
# any number.
RANGES: dict[Range, tuple[str, ...]] = {
    Range(1): (
        *("collection.shard_bytes", "collection.max_document_bytes", "collection.max_record_bytes"),
        *("measures.reference_bytes", "filters.max_length", "filters.prose.max_words"),
        *("filters.prose.max_word_characters", "filters.code.max_line_characters", "filters.code.max_bytes"),
        *("deduplication.shingle_words", "deduplication.bands", "deduplication.rows"),
        *("deduplication.paragraph_characters", "decontamination.ngram_words", "decontamination.min_words"),
        *("decontamination.min_matches", "decontamination.max_documents"),
        *("tokenizer.vocab_size", "tokenizer.sample_bytes", "tokenizer.max_piece_characters"),
        *("shards.max_tokens", "shards.target_tokens"),
    ),
    Range(0): (
        *("cleaning.max_blank_lines", "cleaning.max_wiki_holes", "filters.min_length", "filters.prose.min_words"),
        *("filters.prose.min_stop_words", "filters.prose.min_sentences", "filters.prose.min_words_for_repetition"),
        *("filters.prose.min_different_toxic_words", "filters.code.min_bytes", "filters.code.min_visible_characters"),
        # Means and ratios; occurrences of an n-gram may overlap, so that their share may be above 1.
        *("filters.prose.min_mean_word_length", "filters.prose.max_mean_word_length", "filters.prose.max_symbol_ratio"),
        *("filters.prose.max_newlines_per_word", "filters.prose.max_top_ngram", "filters.prose.max_bits_per_character"),
        "filters.code.max_mean_line_characters",
    ),
    Range(0, 1): (
        *("filters.prose.max_bullet_lines", "filters.prose.max_ellipsis_lines", "filters.prose.min_alphabetic_words"),
        *("filters.prose.max_duplicate_lines", "filters.prose.max_duplicate_line_characters"),
        *("filters.prose.max_duplicate_ngrams", "filters.prose.min_punctuated_lines", "filters.prose.max_short_lines"),
        *("filters.prose.max_repeated_characters", "filters.prose.min_language_probability"),
        *("filters.prose.max_toxic_words", "filters.code.min_alphanumeric", "filters.code.min_visible_text"),
        *("filters.code.min_comments", "filters.code.max_comments"),
    ),
    Range(0, 1, open_below=True): (
        "deduplication.threshold",
        "deduplication.paragraph_max_loss",
        "split.leak_threshold",
    ),
    # Something has to be held out and something left to train on; with a coverage of 1 no byte piece is ever learned.
    Range(0, 1, open_below=True, open_above=True): ("split.validation_fraction", "tokenizer.character_coverage"),
    Range(0, 100): ("filters.prose.max_bits_percentile",),
}
# The same of all kinds of sources, in which a name means one thing. Namespaces may have any number.
SOURCE_RANGES: dict[Range, tuple[str, ...]] = {
    Range(1): ("max_bytes", "max_file_bytes"),
    Range(0, 1, open_below=True): ("max_package_share",),
    Range(0, _DAY): ("delay",),
    Range(0, _DAY, open_below=True): ("timeout",),
}


def check(config: DataConfig) -> None:
    """Raises UserError for the first value that makes no sense, with its name and what it may be."""
    if not config.sources:
        raise UserError("config.sources is empty: name at least one source")
    names = [source.name for source in config.sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"config.sources: the name {repeated[0]!r} is used twice; give each source its own `name`")
    if "all" in names:
        raise UserError("config.sources: the name 'all' stands for all sources together; give that one another `name`")
    _check_ranges(config, RANGES)
    for place, source in enumerate(config.sources):
        own = {allowed: [name for name in fields if hasattr(source, name)] for allowed, fields in SOURCE_RANGES.items()}
        _check_ranges(source, own, f"sources[{place}].")
    _check_measures(config, names)
    _check_tokenizer(config.tokenizer)


def _check_ranges(values: Any, ranges: Mapping[Range, Sequence[str]], prefix: str = "") -> None:
    for allowed, fields in ranges.items():
        for field in fields:
            for name, value in _numbers(prefix + field, attrgetter(field)(values)):
                if value not in allowed:
                    raise UserError(f"{name} is {value}; it must be {allowed}")


def _check_tokenizer(config: TokenizerConfig) -> None:
    if config.kind == "existing" and config.path is None:
        raise UserError("tokenizer.kind existing needs tokenizer.path: where that tokenizer is")
    if config.kind != "existing" and config.path is not None:
        raise UserError(f"tokenizer.path does nothing with tokenizer.kind {config.kind}; set the kind to existing")
    if config.path is not None:
        pack(config.path)  # for its errors, hours before it is used


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A field's number, or those of a tuple with their places; none for a field that is not set."""
    if isinstance(value, tuple):
        yield from ((f"{name}[{place}]", item) for place, item in enumerate(value))
    elif value is not None:
        yield name, value


def _check_measures(config: DataConfig, sources: list[str]) -> None:
    prose = config.filters.prose
    known = {
        "measures.reference_sources": (config.measures.reference_sources, sources),
        "measures.candidate_languages": (config.measures.candidate_languages, language.LANGUAGES),
        "measures.stop_words": (tuple(config.measures.stop_words), language.LANGUAGES),
        "filters.prose.languages": (prose.languages, language.LANGUAGES),
    }
    for field, (values, allowed) in known.items():
        for value in values:
            if value not in allowed:
                raise UserError(f"{field} names {value!r}; known are {', '.join(allowed)}")
    if (prose.max_bits_percentile < 100 or prose.max_bits_per_character is not None) and (
        not config.measures.reference_sources
    ):
        raise UserError(
            "filters.prose.max_bits_percentile and max_bits_per_character compare with a reference: name sources that "
            "read well in measures.reference_sources"
        )
