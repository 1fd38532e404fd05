"""Which settings stand behind every reason for which documents are dropped, with their values and what they mean."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data_pipeline import config as config_module
from data_pipeline.dedup.split import LEAK
from data_pipeline.encoding import OVER_TARGET
from data_pipeline.quality.prose_signals import DUPLICATE_NGRAMS, TOP_NGRAMS

_PROSE, _CODE = "filters.prose.", "filters.code."
_STOP_WORDS = "measures.stop_words"  # one field, with a list for each language

# Stage, reason, and the settings by their dotted names; a reason that no setting governs has none.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "collect": {"too_large": ("collection.max_record_bytes",)},
    "clean": {"missing_formulas": ("cleaning.max_wiki_holes",), "empty": ()},
    "filter": {
        "too_short": ("filters.min_length",),
        "too_long": ("filters.max_length",),
        "too_few_words": (_PROSE + "min_words",),
        "too_many_words": (_PROSE + "max_words",),
        "long_word": (_PROSE + "max_word_characters",),
        "mean_word_length": (_PROSE + "min_mean_word_length", _PROSE + "max_mean_word_length"),
        "hashes": (_PROSE + "max_symbol_ratio",),
        "ellipses": (_PROSE + "max_symbol_ratio",),
        "bullet_lines": (_PROSE + "max_bullet_lines",),
        "ellipsis_lines": (_PROSE + "max_ellipsis_lines",),
        "few_letters": (_PROSE + "min_alphabetic_words", _CODE + "min_alphanumeric"),
        "stop_words": (_PROSE + "min_stop_words", _STOP_WORDS),
        "lorem_ipsum": (),
        "few_sentences": (_PROSE + "min_sentences",),
        "unpunctuated_lines": (_PROSE + "min_punctuated_lines",),
        "short_lines": (_PROSE + "max_short_lines",),
        "newlines": (_PROSE + "max_newlines_per_word",),
        "repeated_characters": (_PROSE + "max_repeated_characters",),
        "duplicate_paragraphs": (_PROSE + "max_duplicate_lines",),
        "duplicate_paragraph_characters": (_PROSE + "max_duplicate_line_characters",),
        "duplicate_lines": (_PROSE + "max_duplicate_lines",),
        "duplicate_line_characters": (_PROSE + "max_duplicate_line_characters",),
        **{
            f"top_{n}gram": (f"{_PROSE}max_top_ngram[{place}]", _PROSE + "min_words_for_repetition")
            for place, n in enumerate(TOP_NGRAMS)
        },
        **{
            f"duplicate_{n}grams": (f"{_PROSE}max_duplicate_ngrams[{place}]", _PROSE + "min_words_for_repetition")
            for place, n in enumerate(DUPLICATE_NGRAMS)
        },
        "other_language": (_PROSE + "languages", "measures.candidate_languages"),
        "uncertain_language": (_PROSE + "min_language_probability", "measures.candidate_languages"),
        "toxic": (_PROSE + "max_toxic_words", _PROSE + "min_different_toxic_words"),
        "unlike_reference": (
            *(_PROSE + "max_bits_per_character", _PROSE + "max_bits_percentile"),
            "measures.reference_sources",
        ),
        "too_small": (_CODE + "min_bytes",),
        "too_large": (_CODE + "max_bytes",),
        "long_line": (_CODE + "max_line_characters",),
        "mean_line_length": (_CODE + "max_mean_line_characters",),
        "xml": (_CODE + "drop_xml",),
        "little_visible_text": (_CODE + "min_visible_text",),
        "few_visible_characters": (_CODE + "min_visible_characters",),
        "few_comments": (_CODE + "min_comments",),
        "many_comments": (_CODE + "max_comments",),
        "generated": (_CODE + "drop_generated",),
        "syntax_error": (_CODE + "must_parse",),
    },
    "deduplicate": {
        "exact_duplicate": (),
        "contaminated": (
            *("decontamination.patterns", "decontamination.ngram_words"),
            *("decontamination.min_matches", "decontamination.max_documents"),
        ),
        "duplicate_paragraphs": ("deduplication.paragraphs", "deduplication.paragraph_max_loss"),
        "near_duplicate": tuple(f"deduplication.{name}" for name in ("threshold", "shingle_words", "bands", "rows")),
    },
    "arrange": {OVER_TARGET: ("shards.target_tokens",)},
    "split": {LEAK: ("split.leak_threshold",), "exact_duplicate": ("deduplication.paragraphs",)},
}


@dataclass(frozen=True)
class Setting:
    """A field of the config: its dotted name, the value in force, and its line of documentation."""

    name: str
    value: Any
    meaning: str


@dataclass(frozen=True)
class Rule:
    """A reason for dropping documents, how many it dropped, and the settings behind it."""

    reason: str
    dropped: int
    settings: list[Setting]


def settings_of(config: dict[str, Any]) -> dict[str, Setting]:
    """Every field of a resolved config but its sources, by dotted name, and each item of a list of numbers."""
    meanings, found = _meanings(), {}
    for name, value in flatten(config).items():
        items = value if isinstance(value, list) and all(isinstance(item, float) for item in value) else []
        for key, each in ((name, value), *((f"{name}[{place}]", item) for place, item in enumerate(items))):
            found[key] = Setting(key, each, meanings.get(name, ""))
    del found["sources"]
    by_language = {name: found.pop(name).value for name in list(found) if name.startswith(f"{_STOP_WORDS}.")}
    words = {name.rpartition(".")[2]: value for name, value in by_language.items()}
    found[_STOP_WORDS] = Setting(_STOP_WORDS, words, meanings.get(_STOP_WORDS, ""))
    return found


def rules_of(stage: dict[str, Any], settings: dict[str, Setting]) -> list[Rule]:
    """The rules of a stage, known ones first, then those that only its counts name."""
    known = SETTINGS.get(stage["name"], {})
    reasons = [*known, *(reason for reason in stage["dropped"] if reason not in known)]
    return [
        Rule(
            reason,
            stage["dropped"].get(reason, 0),
            [settings[name] for name in known.get(reason, ()) if name in settings],
        )
        for reason in reasons
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"split": {"seed": 0}} as {"split.seed": 0}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _meanings() -> dict[str, str]:
    """The documentation below every field of the config's dataclasses, by dotted name."""
    tree = ast.parse(inspect.getsource(config_module))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def walk(name: str, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        body = classes[name].body
        for node, following in pairwise(body):
            if not isinstance(node, ast.AnnAssign):
                continue
            kind, path = ast.unparse(node.annotation), prefix + ast.unparse(node.target)
            if kind in classes:
                found |= walk(kind, f"{path}.")
            elif isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                found[path] = str(following.value.value)
        return found

    return walk("DataConfig", "")
