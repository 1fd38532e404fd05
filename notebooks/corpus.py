"""The text that the notebooks work on: real prose that is on every machine with Python, so nothing is downloaded."""

from __future__ import annotations

import contextlib
import io
import json
from email.message import Message
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

from data_pipeline.api import Collect, DatasetPipeline, ProseFilters, QualityFilter, Split, TextFiles, Tokenize


def reference_chapters() -> dict[str, str]:
    """The chapters of Python's language reference by name, as `help()` shows them (licence PSF-2.0)."""
    return dict(topics)


def package_descriptions(most_bytes: int, longest: int = 12_000) -> dict[str, str]:
    """READMEs of installed distributions by name, with at most `longest` characters each, `most_bytes` in all."""
    found: dict[str, str] = {}
    left = most_bytes
    for distribution in sorted(metadata.distributions(), key=lambda one: str(one.metadata["Name"]).lower()):
        message = cast(Message, distribution.metadata)  # which it is, and its type does not say
        text = message.get("Description") or message.get_payload()
        if isinstance(text, str) and 100 < len(text) <= longest and len(text.encode()) <= left:
            found[str(message["Name"])] = text
            left -= len(text.encode())
    return found


def write_texts(path: Path, texts: dict[str, str]) -> Path:
    """Write `texts` as JSON lines, which the source `TextFiles` reads."""
    lines = (json.dumps({"name": name, "text": text}, ensure_ascii=False) for name, text in texts.items())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def curate_reference(out: Path, vocab_size: int) -> dict[str, Any]:
    """Curate the language reference into `out` without a word; returns the manifest. `01_data.ipynb` shows how."""
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = write_texts(out.parent / "reference.jsonl", reference_chapters())
    steps = [
        TextFiles((str(texts),), name="reference", licence="PSF-2.0"),
        Collect(max_document_bytes=8192),
        QualityFilter(prose=ProseFilters(min_alphabetic_words=0.5, min_mean_word_length=2.5)),
        Split(validation_fraction=0.1),
        Tokenize(vocab_size=vocab_size),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        return DatasetPipeline(steps).run(out, workers=1, executor="serial")
