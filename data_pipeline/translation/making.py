"""Writes the files of a `TranslationConfig`: examples to train on, those held out, and texts for a base model."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.cli import to_dict
from common.errors import UserError
from common.files import atomic_write
from data_pipeline.report.card import is_ours, table
from data_pipeline.translation.config import TranslationConfig, Version, check
from data_pipeline.translation.held_out import Split, split
from data_pipeline.translation.verses import MODULES, Verse, read_verses

TRAIN, VALIDATION, TEST, TEXTS, CARD = "train.jsonl", "validation.jsonl", "test.jsonl", "texts.jsonl", "README.md"
MARK = "<!-- made by python -m data_pipeline: translation -->"


def make(config: TranslationConfig, out: Path, command: str) -> Split:
    """Write the files of `config` into `out`, each whole or not at all, and a card that names `command`.

    The same config and the same packages give the same bytes. A README.md without the mark of our card stays.

    Raises:
        UserError: a setting makes no sense, a package cannot be had, or `out` holds a curated dataset.
    """
    check(config)
    if (out / "manifest.json").exists():
        raise UserError(f"{out} holds a curated dataset; choose another directory with --out")
    verses, left_out = read_verses(out.parent / "downloads")
    parts = split(verses, config)
    first = config.directions[:1]
    files: dict[str, Iterable[dict[str, Any]]] = {
        TRAIN: examples(parts.train, config.directions),
        VALIDATION: examples(parts.validation, first),
        TEST: examples(parts.test, first),
        TEXTS: texts(parts.train),
    }
    counts = {name: _write(out / name, rows) for name, rows in files.items()}
    card = out / CARD
    if is_ours(card, MARK):
        with atomic_write(card) as file:
            file.write(_card(config, out.name, parts, counts, left_out, command))
    close = ", ".join(f"{len(found):,} {reason}" for reason, found in parts.too_close.items())
    print(f"{out}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    print(f"verses: {len(parts.train):,} to train on, {len(parts.test):,} in {', '.join(config.test_books)} to test")
    print(f"too close to a held-out verse, left out: {close or 'none'}; {CARD} has the rest", flush=True)
    return parts


def prompt(source: str, target: Version) -> str:
    """What a model is given to translate a text into `target`. The translation follows behind one space."""
    return f"{source}\n<{target}>"


def examples(verses: Sequence[Verse], directions: Sequence[tuple[Version, Version]]) -> Iterator[dict[str, Any]]:
    """A prompt and its completion, with what is needed to measure them, a row a direction of each verse."""
    for verse in verses:
        for source, target in directions:
            row = {"prompt": prompt(verse.texts[source], target), "completion": f" {verse.texts[target]}"}
            english: tuple[Version, ...] = ("en", "kjv") if target in ("en", "kjv") else (target,)
            # The version that is asked for comes first among the references.
            ordered = sorted(english, key=lambda version: version != target)
            references = [verse.texts[version] for version in ordered]
            yield {**row, "verse": verse.name, "source": verse.texts[source], "references": references}


def texts(verses: Sequence[Verse]) -> Iterator[dict[str, Any]]:
    """Whole chapters of each version, for a base model to read; no translation stands beside another."""
    for version in MODULES:
        for (book, chapter), group in itertools.groupby(verses, key=lambda verse: (verse.book, verse.chapter)):
            text = " ".join(verse.texts[version] for verse in group)
            yield {"text": text, "title": f"{book} {chapter}", "version": version}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _card(
    config: TranslationConfig,
    name: str,
    parts: Split,
    counts: dict[str, int],
    left_out: Counter[str],
    command: str,
) -> str:
    front = {"license": "other", "license_name": "public-domain", "language": ["es", "en"], "pretty_name": name}
    reasons = {**left_out, **{f"{reason} a held-out verse": len(v) for reason, v in parts.too_close.items()}}
    modules = ((version, module.package, module.sha256) for version, module in MODULES.items())
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        f"---\n{MARK}\n\n# {name}\n",
        "Verses of the Reina-Valera (1909), the World English Bible and the King James Version (1769), which are in "
        "the public domain, from packages of Debian. World English Bible is a trademark of eBible.org.\n",
        table(("version", "package", "sha256"), modules) + "\n",
        "## Files\n",
        table(("file", "rows"), counts.items()) + "\n",
        f"Held out are {', '.join(config.test_books)} to test and {', '.join(config.validation_books)} to validate. "
        "`references` has the version that is asked for first. `texts.jsonl` has chapters of the verses to train on, "
        "for a base model.\n",
        "## Left out\n",
        table(("reason", "verses"), reasons.items()) + "\n",
        "## Settings\n",
        table(("setting", "value"), ((f"`{key}`", json.dumps(value)) for key, value in to_dict(config).items())) + "\n",
        f"Made again, byte for byte, with\n\n    {command}",
    ]
    return "\n".join(lines) + "\n"
