"""summary.json: the numbers of one evaluation, and how to tell that they are still those of today's inputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, sha256_of
from common.runs import Checkpoint, Run, find_run
from data_pipeline.shards import Dataset
from evaluation.perplexity import CONTEXT_POLICIES, SplitScores
from evaluation.toxicity import classifier_directory
from inference import LoadedRun

# The rooms whose code decides what an evaluation finds, and what of them does: lists of toxic words are texts.
CODE = ("common", "data_pipeline", "evaluation", "inference", "model")
SUFFIXES = (".py", ".cpp", ".h", ".html", ".css", ".txt")
_SMALL = 1 << 20  # bytes; of a larger file of another model only size and time are looked at


def fingerprint(run: Run, checkpoint: Checkpoint, dataset: Dataset, options: dict[str, Any]) -> str:
    """sha256 of everything that the summary and the report are made from, the code included.

    A model of the hub counts by its address alone.
    """
    root = Path(__file__).parents[1]
    code = sorted(file for room in CODE for file in (root / room).rglob("*") if file.suffix in SUFFIXES)
    files = [
        run.config,
        run.tokenizer,
        run.metrics,
        run.samples,
        checkpoint.path / "manifest.json",  # names every file of the checkpoint by its sha256
        dataset.directory / "manifest.json",  # and this one every file of the data
        *code,
    ]
    digests = [sha256_of(file) if file.is_file() else None for file in files]
    others = [_state_of(file) for file in _files_of_others(options)]
    return hashlib.sha256(json.dumps([digests, others, options], sort_keys=True).encode()).hexdigest()


def _files_of_others(options: dict[str, Any]) -> list[Path]:
    """What the models beside the run's own are read from: those of `baseline`, and a classifier of toxicity."""
    classifier = classifier_directory(options["generation"]["toxicity"])
    found = [] if classifier is None else sorted(classifier.glob("*"))
    for place in options["baseline"]:
        try:
            other = find_run(place)
        except UserError:  # an address, or nothing at all, which scoring it will say
            continue
        manifests = [checkpoint.path / "manifest.json" for checkpoint in other.checkpoints()]
        # Without checkpoints it is a directory of Hugging Face.
        found += [other.config, other.tokenizer, *manifests] if manifests else sorted(other.path.glob("*"))
    return [file for file in found if file.is_file()]


def _state_of(file: Path) -> tuple[str | int, ...]:
    found = file.stat()
    known_by = (found.st_size, found.st_mtime_ns) if found.st_size > _SMALL else (sha256_of(file),)
    return (file.name, *known_by)


def is_up_to_date(run: Run, inputs: str) -> bool:
    """Whether the summary on disk was made from `inputs`, and the report stands beside it."""
    try:
        return bool(read_json(run.summary)["inputs"] == inputs) and run.report.is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build_summary(
    loaded: LoadedRun,
    dataset: Dataset,
    scores: dict[str, SplitScores],  # by name: packed, what other contexts were asked for, and the baselines
    baseline_tokens: int,
    options: dict[str, Any],
    inputs: str,
) -> dict[str, Any]:
    """Everything that scripts may want to read; the names of the keys stay as they are."""
    state, packed = loaded.checkpoint.state, scores["packed"]
    tokens, seconds = int(state["tokens"]), float(state["seconds"])
    context = loaded.model.config.context_length
    stride = options["stride"]
    policies = {
        name: text.format(context=context, stride=stride) for name, text in CONTEXT_POLICIES.items() if name in scores
    }
    return {
        "run": loaded.run.name,
        "checkpoint_step": loaded.checkpoint.step,
        "parameters": loaded.model.parameter_count(),
        "tokens_trained": tokens,
        "train_seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "val_loss": packed.total.loss,
        "val_perplexity": packed.total.perplexity,
        "val_bits_per_byte": packed.total.bits_per_byte,
        "val_tokens": packed.total.tokens,
        "val_bytes": packed.total.bytes,
        "val_words": packed.total.words,
        "val_word_perplexity": packed.total.word_perplexity,
        "per_source": packed.to_dict()["per_source"],
        "baselines": {name: found.to_dict() for name, found in scores.items() if name not in CONTEXT_POLICIES},
        "baseline_training_tokens": baseline_tokens,
        "document_context": scores["document"].to_dict() if "document" in scores else None,
        "sliding_context": scores["sliding"].to_dict() if "sliding" in scores else None,
        "context_policy": "packed",
        "context_policies": policies,
        "end_of_text": "predicted after every document: counts in tokens and loss, adds no bytes",
        "tokenizer": {
            "kind": loaded.tokenizer.kind,
            "sha256": loaded.tokenizer.sha256,
            "vocab_size": loaded.tokenizer.vocab_size,
            "bytes_per_token": packed.total.bytes / packed.total.tokens,
        },
        "tokenizer_sha256": loaded.tokenizer.sha256,
        "vocab_size": loaded.tokenizer.vocab_size,
        "data": str(dataset.directory),
        "data_fingerprint": dataset.fingerprint,
        "trained_on_this_data": state.get("data_fingerprint") == dataset.fingerprint,
        "precision": options["precision"],
        "device": options["device"],
        "options": options,
        "inputs": inputs,
    }
