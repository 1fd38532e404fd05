"""report.html: everything about a run on one page that needs no network and no script."""

from __future__ import annotations

import base64
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from common.files import atomic_write, read_json_lines
from common.runs import Run
from data_pipeline.shards import Dataset
from evaluation import plots
from inference import LoadedRun, SamplingOptions, generate

FRESH_PROMPTS = {
    "English, encyclopedic": "The river",
    "Python": "def read_lines(path):\n",
}
FRESH_SAMPLES = 2
FRESH_OPTIONS = SamplingOptions(max_new_tokens=150, temperature=0.8, top_k=50)


@dataclass(frozen=True)
class Sample:
    title: str
    prompt: str
    text: str


def fresh_samples(loaded: LoadedRun) -> list[Sample]:
    """Continuations of the fixed prompts, the same for the same checkpoint."""
    prompts = list(FRESH_PROMPTS.values())
    written = generate(loaded.model, loaded.tokenizer, prompts, FRESH_OPTIONS, FRESH_SAMPLES)
    return [
        Sample(f"{title}, sample {number + 1}", prompt, written[first + number].text)
        for first, (title, prompt) in zip(range(0, len(written), FRESH_SAMPLES), FRESH_PROMPTS.items(), strict=True)
        for number in range(FRESH_SAMPLES)
    ]


def write_report(
    run: Run, summary: dict[str, Any], dataset: Dataset, config: dict[str, Any], samples: list[Sample]
) -> None:
    """Draw the curves (also kept as PNG in the run directory) and write report.html."""
    metrics = read_json_lines(run.metrics)
    levels = {name: float(values["loss"]) for name, values in summary["baselines"].items()}
    images = {
        "loss": plots.loss_curve(metrics, levels),
        "learning_rate": plots.learning_rate_curve(metrics),
        "throughput": plots.throughput_curve(metrics),
    }
    for name, image in images.items():
        with atomic_write(run.path / f"{name}.png", "wb") as file:
            file.write(image)
    page = _template().render(
        summary=summary,
        rows=comparison(summary),
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
        manifest=dataset.manifest,
        samples=samples,
        history=list(reversed(read_json_lines(run.samples))),
        options=FRESH_OPTIONS,
        config=flatten(config),
        environment=environment(),
    )
    with atomic_write(run.report) as file:
        file.write(page)


def comparison(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table that sets the model against the baselines, overall and for each source.

    `change` is how far bits per byte, and so the loss, lie from the unigram's, in per cent.
    """
    baselines = summary["baselines"]
    model = {key: summary[f"val_{key}"] for key in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")}
    scores = {"model": {**model, "per_source": summary["per_source"]}, **baselines}
    rows = []
    for source in (None, *summary["per_source"]):
        reference = baselines["unigram"] if source is None else baselines["unigram"]["per_source"][source]
        for name in ("model", "trigram", "unigram"):
            score = scores[name] if source is None else scores[name]["per_source"][source]
            change = None if name == "unigram" else 100 * (score["loss"] / reference["loss"] - 1)
            rows.append({**score, "name": name, "source": source or "all", "change": change})
    return rows


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 64}} as {"model.width": 64}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def environment() -> dict[str, Any]:
    """Versions and hardware of the evaluation; no names of people, machines or directories."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "CPU cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # samples and document sources may hold any markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}" if value is not None else "–"
    environment.filters["fixed"] = lambda value, digits=3: f"{value:,.{digits}f}" if value is not None else "–"
    environment.filters["size"] = lambda value: f"{value / 1e6:,.2f} MB"
    return environment.get_template("report.html")
