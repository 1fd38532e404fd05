"""What a summary keeps beside its scores, so that the report can be drawn without the model and the data."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from data_pipeline.shards import Dataset
from inference import LoadedRun, SamplingOptions, generate

FRESH_PROMPTS = {
    "English, encyclopedic": "The river",
    "Python": "def read_lines(path):\n",
}
FRESH_SAMPLES = 2
FRESH_OPTIONS = SamplingOptions(max_new_tokens=150, temperature=0.8, top_k=50)
OF_MANIFEST = ("sources", "splits", "licences", "stages", "quarantine", "vocab_size", "fingerprint")


def surroundings(loaded: LoadedRun, dataset: Dataset) -> dict[str, Any]:
    """`samples`, `dataset`, `environment` and `train_flops_per_token` of a summary."""
    return {
        "samples": fresh_samples(loaded),
        "dataset": describe_data(dataset),
        "environment": environment(),
        "train_flops_per_token": loaded.model.flops_per_token(),
    }


def fresh_samples(loaded: LoadedRun) -> dict[str, Any]:
    """Continuations of the fixed prompts, the same for the same checkpoint, with the options that they are drawn by."""
    prompts = list(FRESH_PROMPTS.values())
    written = generate(loaded.model, loaded.tokenizer, prompts, FRESH_OPTIONS, FRESH_SAMPLES)
    texts = [
        {"title": f"{title}, sample {number + 1}", "prompt": prompt, "text": written[first + number].text}
        for first, (title, prompt) in zip(range(0, len(written), FRESH_SAMPLES), FRESH_PROMPTS.items(), strict=True)
        for number in range(FRESH_SAMPLES)
    ]
    options = {key: asdict(FRESH_OPTIONS)[key] for key in ("temperature", "top_k", "seed", "max_new_tokens")}
    return {"options": options, "texts": texts}


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What the manifest says of where the data come from and what curation kept, without the names of shards."""
    manifest = dataset.manifest
    found = {key: manifest[key] for key in OF_MANIFEST if key in manifest}
    splits = {
        name: {key: counts[key] for key in ("documents", "bytes", "tokens") if key in counts}
        for name, counts in manifest["splits"].items()
    }
    stages = [
        {
            key: stage[key]
            for key in ("name", "documents_in", "documents_out", "bytes_in", "bytes_out", "dropped")
            if key in stage
        }
        for stage in manifest.get("stages", [])
    ]
    sources = [
        {key: source[key] for key in ("name", "licence", "splits") if key in source} for source in manifest["sources"]
    ]
    return {**found, "name": dataset.directory.name, "splits": splits, "stages": stages, "sources": sources}


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
