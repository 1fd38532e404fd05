"""Synthetic text for the data tests, and a config that curates it within seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.config import (
    CollectionConfig,
    DataConfig,
    FilterConfig,
    MeasureConfig,
    ProseFilters,
    ShardConfig,
    SplitConfig,
    TokenizerConfig,
)
from data_pipeline.sources.config import TextFiles

STOP_WORDS = ("the", "of", "and", "to", "that", "with", "have", "be")


def words(seed: int, count: int) -> list[str]:
    """Words that look like a language: made of syllables, every third one a stop word."""
    generator = random.Random(seed)
    syllables = [a + b for a in "bdfglmnprst" for b in "aeiou"]
    made = ["".join(generator.choices(syllables, k=generator.randint(2, 4))) for _ in range(count)]
    return [generator.choice(STOP_WORDS) if position % 3 == 1 else word for position, word in enumerate(made)]


def prose(seed: int, count: int = 90) -> str:
    """Sentences of ten words; texts of different seeds share next to no shingles."""
    found = words(seed, count)
    sentences = [" ".join(found[start : start + 10]).capitalize() + "." for start in range(0, count, 10)]
    return "\n".join(" ".join(sentences[start : start + 3]) for start in range(0, len(sentences), 3))


def replace_words(text: str, seed: int, count: int) -> str:
    """A near copy of `text` with `count` words changed, evenly spread."""
    parts = text.split(" ")
    for number in range(count):
        parts[(number * len(parts)) // count] = words(seed + number, 2)[0]
    return " ".join(parts)


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def small_config(*patterns: Path, **changes: object) -> DataConfig:
    """Curates the JSON lines in `patterns`, one source each; `changes` replace whole parts of the config."""
    sources = tuple(
        TextFiles(patterns=(str(pattern),), name=f"source{number}", licence="CC0-1.0")
        for number, pattern in enumerate(patterns)
    )
    parts: dict[str, object] = {
        "sources": sources,
        "collection": CollectionConfig(shard_bytes=40_000),
        "measures": MeasureConfig(candidate_languages=("en",)),
        "filters": FilterConfig(prose=ProseFilters(min_words=20)),
        "split": SplitConfig(validation_fraction=0.1),
        "tokenizer": TokenizerConfig(vocab_size=512, sample_bytes=100_000),
        "shards": ShardConfig(max_tokens=30_000),
    }
    return DataConfig(**{**parts, **changes})  # type: ignore[arg-type]


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file of a finished dataset but the manifest and the report, by name."""
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != "manifest.json" and path.suffix not in {".html", ".md", ".png"}
    }


def dropped_rows(directory: Path, stage: str) -> list[dict[str, str]]:
    """The dropped documents of a stage, such as "04_filter"."""
    paths = sorted((directory / "stages" / stage / "dropped").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]
