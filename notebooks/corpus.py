"""The text that the notebooks work on: real prose that is on every machine with Python, so nothing is downloaded."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics


def reference_chapters() -> dict[str, str]:
    """The chapters of Python's language reference by name, as `help()` shows them (licence PSF-2.0)."""
    return dict(topics)


def package_descriptions(most_bytes: int, longest: int = 12_000) -> dict[str, str]:
    """READMEs of installed distributions by name, with at most `longest` characters each, `most_bytes` in all."""
    found: dict[str, str] = {}
    left = most_bytes
    for distribution in sorted(metadata.distributions(), key=lambda one: str(one.metadata["Name"]).lower()):
        text = distribution.metadata.get("Description") or distribution.metadata.get_payload()
        if isinstance(text, str) and 100 < len(text) <= longest and len(text.encode()) <= left:
            found[distribution.metadata["Name"]] = text
            left -= len(text.encode())
    return found


def write_texts(path: Path, texts: dict[str, str]) -> Path:
    """Write `texts` as JSON lines, which the source `TextFiles` reads."""
    lines = (json.dumps({"name": name, "text": text}, ensure_ascii=False) for name, text in texts.items())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
