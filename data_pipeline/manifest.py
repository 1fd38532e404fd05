"""Publishing a dataset: its files go to their place, and the manifest that describes them is written last."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.cli import to_dict
from common.errors import UserError
from common.files import atomic_write, read_json, sha256_of, sync_file, write_json
from data_pipeline.config import DataConfig
from data_pipeline.documents import read_rows, write_row
from data_pipeline.shards import token_dtype
from data_pipeline.stages import StageResult
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.vocabulary_use import Vocabulary, piece_counts

FORMAT = 1
# A file of a token shard, and what an interrupted run leaves while it puts one into place.
SHARD_FILE = re.compile(r"(?:train|val)_\d{5,}\.(?:bin|index\.npy|documents\.jsonl)")
_TEMPORARY = re.compile(rf"(?:{SHARD_FILE.pattern}|{re.escape(Tokenizer.file_name)})\.\d+\.tmp")
_SPLITS = ("train", "val")
_CHANGES = {"clean": "repairs", "deduplicate": "paragraphs"}  # what these stages count in texts that they keep
_DOCUMENT_STAGES = ("collect", "clean", "filter", "deduplicate", "split", "arrange")


def publish(
    config: DataConfig,
    out: Path,
    stages: list[StageResult],
    tokenizer: StageResult,
    packed: StageResult,
) -> dict[str, Any]:
    """Put tokenizer and shards into `out` and write `manifest.json`; returns what it says.

    Args:
        config: of the dataset.
        out: the dataset's directory.
        stages: all of them, in order.
        tokenizer: the stage that holds `tokenizer.model`.
        packed: the stage that holds the token shards.

    Raises:
        UserError: a file is not what its stage wrote.
    """
    model = Tokenizer(tokenizer.directory / Tokenizer.file_name)
    shards = [path for path in packed.paths() if SHARD_FILE.fullmatch(path.name)]
    files = [tokenizer.directory / Tokenizer.file_name, *shards]
    hashes = tokenizer.hashes | {path.name: packed.hashes[path.name] for path in shards}
    _verify(files, hashes)
    for file in files:
        _place(file, out / file.name)
    _remove_strays(out, {file.name for file in files}, {stage.directory for stage in stages})
    quarantine = _quarantine(out, stages[0], [source.name for source in config.sources])
    sources = _sources(config, packed)
    use = _add_use(sources, model, packed)
    values = {
        "format": FORMAT,
        "name": out.name,
        "dtype": token_dtype(model.vocab_size).name,
        "vocab_size": model.vocab_size,
        "eos_id": model.eos_id,
        "special_tokens": model.special_ids,
        "tokenizer": {"kind": model.kind, "file": Tokenizer.file_name, "sha256": model.sha256, "use": use},
        "sources": sources,
        "splits": {name: _split(name, packed) for name in _SPLITS},
        "licences": _licences(packed),
        "stages": [_stage(stage) for stage in stages if stage.name in _DOCUMENT_STAGES],
        "evaluation": next((_documents(stage) for stage in stages if stage.name == "evaluation"), None),
        "quarantine": quarantine,
        "files": hashes,
        "fingerprint": fingerprint_of(hashes),
        "config": to_dict(config),
    }
    path, written = out / "manifest.json", None
    with suppress(FileNotFoundError, ValueError):  # there is none, or it was damaged
        written = read_json(path)
    if written != values:
        write_json(path, values)
    return values


def summary(manifest: dict[str, Any], out: Path, seconds: float) -> str:
    """A short table for people: what came out, what was dropped and why, and where everything is."""
    lines = ["", f"{'source':<14}{'split':<7}{'documents':>11}{'bytes':>14}{'tokens':>13}{'bytes/token':>13}"]
    for source in manifest["sources"]:
        for name, counts in source["splits"].items():
            ratio = counts["bytes"] / counts["tokens"] if counts["tokens"] else 0.0
            lines.append(
                f"{source['name']:<14}{name:<7}{counts['documents']:>11,}{counts['bytes']:>14,}"
                f"{counts['tokens']:>13,}{ratio:>13.2f}"
            )
    lines.append("")
    for stage in manifest["stages"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items())
        lines.append(f"{stage['name']:<14}{stage['documents_in']:>9,} in {stage['documents_out']:>9,} out   {reasons}")
    wanted, found = manifest["config"]["shards"]["target_tokens"], manifest["splits"]["train"]["tokens"]
    if wanted is not None and found < wanted:
        lines.append(f"only {found:,} of the {wanted:,} tokens of shards.target_tokens were found; add text")
    if evaluation := manifest["evaluation"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in evaluation["dropped"].items())
        lines.append(
            f"evaluation texts: {evaluation['documents_out']:,} of {evaluation['documents_in']:,} were looked for"
            + (f"; left out: {reasons}" if reasons else "")
        )
    quarantined = sum(manifest["quarantine"].values())
    if quarantined:
        lines.append(f"{quarantined:,} records could not be read: {out / 'stages' / 'quarantine.jsonl'}")
    lines.append(f"dropped texts: {out / 'stages'}/*/dropped    dataset: {out}    {seconds:.1f} s")
    lines.append(f"what was done, with examples: {out / 'report.html'}    dataset card: {out / 'README.md'}")
    return "\n".join(lines)


def _verify(files: list[Path], hashes: dict[str, str]) -> None:
    """What training reads is read here in full, whatever its size and time say. A damaged file is removed."""
    damaged = [file for file in files if sha256_of(file) != hashes[file.name]]
    for file in damaged:
        file.unlink()
    if damaged:
        raise UserError(
            f"{', '.join(map(str, damaged))}: damaged on disk and therefore removed; run the same command again, and "
            "it is made anew"
        )


def _place(file: Path, target: Path) -> None:
    """Put a stage's file into the dataset without a second copy where the file system has hard links."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:
        shutil.copyfile(file, temporary)
        sync_file(temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a link that replaces another link to the same file is left where it was


def _remove_strays(out: Path, wanted: set[str], stages: set[Path]) -> None:
    """Shards and stages of an earlier version of the dataset must not be taken for part of this one.

    Only names that are ours go: the directory may hold files of the user's, such as train_notes.txt.
    """
    for path in out.iterdir():
        stray = SHARD_FILE.fullmatch(path.name) and path.name not in wanted
        if stray or _TEMPORARY.fullmatch(path.name):
            path.unlink()
    for path in (out / "stages").glob("[0-9][0-9]_*"):
        if path not in stages:
            shutil.rmtree(path)


def _quarantine(out: Path, collected: StageResult, sources: list[str]) -> dict[str, int]:
    """Gather what could not be read in one file; returns how often each reason occurred."""
    reasons: Counter[str] = Counter()
    with atomic_write(out / "stages" / "quarantine.jsonl") as file:
        for task in collected.tasks:
            for row in read_rows(collected.directory / "dropped" / f"{task}.jsonl"):
                write_row(file, {**row, "source": sources[row["source"]]})
                reasons[row["reason"]] += 1
    return dict(sorted(reasons.items()))


def _sources(config: DataConfig, packed: StageResult) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], Counter[str]] = {}
    for task, counts in packed.tasks.items():
        for number, entry in counts.details["by_source"].items():
            found.setdefault((int(number), task.partition("_")[0]), Counter()).update(entry)
    result = []
    for number, source in enumerate(config.sources):
        splits = {}
        for name in _SPLITS:
            counted = found.get((number, name), Counter())
            splits[name] = {what: counted[what] for what in ("documents", "bytes", "tokens")}
        total_bytes = sum(entry["bytes"] for entry in splits.values())
        total_tokens = sum(entry["tokens"] for entry in splits.values())
        result.append(
            {
                "name": source.name,
                "licence": source.licence,
                "kind": type(source).__name__,
                "splits": splits,
                "bytes_per_token": round(total_bytes / total_tokens, 4) if total_tokens else None,
            }
        )
    return result


def _add_use(sources: list[dict[str, Any]], model: Tokenizer, packed: StageResult) -> dict[str, Any]:
    """Add to every source how the vocabulary serves it; returns the same of all together."""
    counts = piece_counts(packed.paths(".pieces.npy"), model.vocab_size, len(sources))
    words: Counter[int] = Counter()
    for task in packed.tasks.values():
        words.update({int(number): count for number, count in task.details["words"].items()})
    vocabulary = Vocabulary.of(model)
    for number, source in enumerate(sources):
        source["tokenizer_use"] = vocabulary.use(counts[number], words[number])
    return vocabulary.use(counts.sum(axis=0), sum(words.values()))


def _split(name: str, packed: StageResult) -> dict[str, Any]:
    total: Counter[str] = Counter()
    listed = []
    for task, counts in packed.tasks.items():
        if task.partition("_")[0] != name:
            continue
        details = counts.details
        for entry in details["by_source"].values():
            total.update(entry)
        listed.append(
            {
                "file": f"{task}.bin",
                "tokens": details["tokens"],
                "documents": counts.documents_out,
                "sha256": packed.hashes[f"{task}.bin"],
            }
        )
    return {"tokens": total["tokens"], "bytes": total["bytes"], "documents": total["documents"], "shards": listed}


def _licences(packed: StageResult) -> dict[str, int]:
    """Documents under each licence."""
    total: Counter[str] = Counter()
    for counts in packed.tasks.values():
        total.update(counts.details["licences"])
    return dict(sorted(total.items()))


def _stage(stage: StageResult) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": stage.name,
        **_documents(stage),
        "bytes_in": stage.counts.bytes_in,
        "bytes_out": stage.counts.bytes_out,
        "seconds": stage.seconds,
    }
    if stage.name in _CHANGES:
        changes: Counter[str] = Counter()
        for task in stage.tasks.values():
            changes.update(task.details)
        values[_CHANGES[stage.name]] = dict(sorted((+changes).items()))
    return values


def _documents(stage: StageResult) -> dict[str, Any]:
    counts = stage.counts
    return {
        "documents_in": counts.documents_in,
        "documents_out": counts.documents_out,
        "dropped": dict(sorted(counts.dropped.items())),
    }


def fingerprint_of(hashes: dict[str, str]) -> str:
    """sha256 over the names and sha256 of all token shards."""
    tokens = {name: value for name, value in sorted(hashes.items()) if name.endswith(".bin")}
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
