"""Drawing report, figures and card of a dataset, and keeping them up to date."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jinja2

from common.files import atomic_write, read_json, sha256_of, write_json
from common.pages import page_loader
from data_pipeline.code_identity import code_of
from data_pipeline.report import card, figures
from data_pipeline.report.facts import Facts, gather
from data_pipeline.report.rules import flatten
from data_pipeline.report.survey import EXAMPLE_CHARACTERS, LENGTH_EDGES
from data_pipeline.stages import FINGERPRINT

CARD = "README.md"
CARD_MARK = "<!-- Written by `python -m data_pipeline`. Remove this line to keep your own edits. -->"
_TEMPLATES = Path(__file__).parent / "templates"
_FIGURES = ("funnel", "lengths", "languages", "tokens_by_source", "cluster_sizes")
_TOKENIZERS = {"sentencepiece": "SentencePiece", "tiktoken": "tiktoken", "huggingface": "Hugging Face"}
_STATE = "report.json"  # in `stages`: what the files were drawn from, and their sha256


def bring_up_to_date(out: Path, executor: Executor | None) -> None:
    """Draw again what was drawn from other data, or by other code, or is missing; else do nothing."""
    state = out / "stages" / _STATE
    drawn_from = _fingerprint(out)
    try:
        old = read_json(state)
        current = old["drawn_from"] == drawn_from and all(
            sha256_of(out / name) == digest for name, digest in old["files"].items()
        )
    except (OSError, ValueError, TypeError, KeyError):
        current = False
    if not current:
        files = write(out, executor)
        write_json(state, {"drawn_from": drawn_from, "files": {name: sha256_of(out / name) for name in files}})


def write(out: Path, executor: Executor | None = None) -> list[str]:
    """Write the files of which the content changes, and return the names of all.

    A card without the mark belongs to somebody else and stays.

    Raises:
        UserError: there is no whole dataset in `out`, or an older version made it.
    """
    files = draw(gather(out, executor))
    if not card.is_ours(out / CARD, CARD_MARK):
        del files[CARD]
    for name, content in files.items():
        path = out / name
        if not path.is_file() or path.read_bytes() != content:
            with atomic_write(path, "wb") as file:
                file.write(content)
    for name in _FIGURES:
        if f"{name}.png" not in files:
            (out / f"{name}.png").unlink(missing_ok=True)
    return sorted(files)


def draw(facts: Facts) -> dict[str, bytes]:
    """Report, card and figures as bytes by file name. Equal facts give equal bytes."""
    stages = [stage.counts for stage in facts.stages]
    images = {
        "funnel": figures.funnel(stages),
        "lengths": figures.lengths(LENGTH_EDGES, facts.lengths_kept, facts.lengths_dropped),
        "tokens_by_source": figures.tokens_by_source(facts.manifest["sources"]),
    }
    if facts.languages:
        images["languages"] = figures.languages(facts.languages)
    if facts.duplicates.sizes:
        images["cluster_sizes"] = figures.cluster_sizes(facts.duplicates.sizes)
    values: dict[str, Any] = {
        "facts": facts,
        "manifest": facts.manifest,
        "images": {name: base64.b64encode(image).decode() for name, image in images.items()},
        "front_matter": card.front_matter(facts),
        "tokenizer_name": _TOKENIZERS[facts.manifest["tokenizer"]["kind"]],
        "attribution": card.attribution(facts.manifest["licences"]),
        "config": flatten(facts.manifest["config"]),
        "example_characters": EXAMPLE_CHARACTERS,
        "card_mark": CARD_MARK,
    }
    files = {f"{name}.png": image for name, image in images.items()}
    files["report.html"] = _environment(True).get_template("report.html").render(values).encode()
    files[CARD] = _environment(False).get_template("card.md").render(values).encode()
    return files


def _environment(escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=page_loader(_TEMPLATES),
        autoescape=escape,  # texts, ids and names may hold any markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": lambda value: f"{value:,}" if value is not None else "–",
        "fixed": lambda value, digits=2: f"{value:,.{digits}f}" if value is not None else "–",
        "percent": lambda value, digits=1: f"{100 * value:.{digits}f} %" if value is not None else "–",
        "scaled": scaled,
        "visible": visible,
        "markdown": card.markdown,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    environment.filters |= filters
    return environment


def scaled(value: int) -> str:
    """A number in thousands, millions or billions, with the prefix of the unit that follows: "10.14 M"."""
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:,.2f} {prefix}"
    return f"{value} "


def visible(piece: str) -> str:
    """A piece of the vocabulary with its whitespace shown."""
    return piece.replace("\u2581", "␣").replace("\n", "⏎").replace("\t", "⇥")


def _fingerprint(out: Path) -> str:
    """sha256 over what the files are drawn from: the manifest, what every stage was made from, code and templates."""
    manifest = read_json(out / "manifest.json")
    for stage in manifest["stages"]:
        stage.pop("seconds")
    stages = [read_json(path) for path in sorted((out / "stages").glob(f"*/{FINGERPRINT}"))]
    templates = [path.read_text(encoding="utf-8") for path in sorted(_TEMPLATES.iterdir())]
    made_by = [code_of(__name__), templates]
    return hashlib.sha256(json.dumps([manifest, stages, made_by], sort_keys=True).encode()).hexdigest()
