"""Synthetic text for the data tests, and a config that curates it within seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from data_pipeline.dedup.minhash import shingles
from data_pipeline.sources.config import TextFiles

ROOT = Path(__file__).parents[1]
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


def stage_directory(out: Path, stage: str) -> Path:
    """The directory of a stage, such as "filter", whatever its number."""
    (found,) = (out / "stages").glob(f"[0-9][0-9]_{stage}")
    return found


def dropped_rows(out: Path, stage: str) -> list[dict[str, str]]:
    """The dropped documents of a stage, such as "filter"."""
    paths = sorted((stage_directory(out, stage) / "dropped").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_corpus(folder: Path) -> list[Path]:
    """Two sources of 150 texts, with some that the filters drop, and some duplicates within and across sources."""
    first = [prose(seed, 90 + 30 * (seed % 4)) for seed in range(150)]
    second = [prose(seed, 90) for seed in range(1000, 1150)]
    first += ["Too short.", first[3], replace_words(first[6], 5, 2)]
    second += [first[8].capitalize(), replace_words(second[9], 6, 2), "word " * 200]
    return [write_jsonl(folder / "first.jsonl", first), write_jsonl(folder / "second.jsonl", second)]


def write_config(path: Path, corpus: Sequence[Path]) -> Path:
    """A config file that stands for `small_config(*corpus)`."""
    paths = ", ".join(repr(str(each)) for each in corpus)
    path.write_text(f"from test_data_helpers import small_config\nconfig = small_config({paths})\n")
    return path


def command(config: Path, out: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
    """`python -m data_pipeline`, as the leader of a session of its own; `options` are those of Popen."""
    prepare = options.pop("preexec_fn", None)

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what runs in its background ignore it
        if prepare:
            prepare()

    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline", str(config), "--out", str(out), *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=begin,
        **options,
    )


def shingle_set(text: str, words: int) -> np.ndarray:
    """The sorted distinct shingles of one text, (shingles,) uint64."""
    return np.unique(shingles([text], words)[0])
