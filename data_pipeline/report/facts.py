"""Everything that report and card say, gathered from a dataset's manifest, its shards and its stages."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data_pipeline.report import recipe
from data_pipeline.report.clusters import Duplicates, find_clusters
from data_pipeline.report.removed import Contamination, contamination, repeated_paragraphs
from data_pipeline.report.rules import Rule, Setting, rules_of, settings_of
from data_pipeline.report.survey import (
    MOST_REVISIONS,
    Example,
    Published,
    dropped_documents,
    published_documents,
    quarantined,
)
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import HEADER


@dataclass(frozen=True)
class Stage:
    """A stage that may drop documents: its counts from the manifest, its rules, and examples by reason."""

    name: str
    counts: dict[str, Any]
    rules: list[Rule]
    examples: dict[str, list[Example]]

    @property
    def dropped(self) -> int:
        return sum(rule.dropped for rule in self.rules)


@dataclass(frozen=True)
class Facts:
    """What report and card are drawn from. Nothing in it depends on the clock or on who drew it."""

    manifest: dict[str, Any]
    complete: bool  # whether the stages are there, and so examples and clusters
    stages: list[Stage]
    settings: dict[str, Setting]
    quarantine: dict[str, list[Example]]  # by reason
    lengths_kept: np.ndarray  # (bins,)
    lengths_dropped: np.ndarray
    languages: list[dict[str, Any]]  # empty where no document has one
    has_code: bool  # whether a document is source code
    revisions: dict[str, list[str] | None]  # by source; None where they are too many to name
    duplicates: Duplicates
    paragraphs: list[dict[str, Any]]  # examples of those that were removed
    contamination: Contamination
    config_file: str | None
    plain_model: bool  # whether the tokenizer is a file that SentencePiece itself reads

    @property
    def total(self) -> dict[str, int]:
        """Documents, bytes and tokens of all splits."""
        splits = self.manifest["splits"].values()
        return {unit: sum(split[unit] for split in splits) for unit in ("documents", "bytes", "tokens")}

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """How many evaluation texts were looked for, and why others were not; None where it is not known."""
        return self.manifest.get("evaluation")

    @property
    def repairs(self) -> dict[str, int]:
        """What cleaning did, by name."""
        return self._counted("clean", "repairs")

    @property
    def removed_paragraphs(self) -> dict[str, int]:
        """Paragraphs, their bytes and the documents that lost any; empty where the step is off."""
        return self._counted("deduplicate", "paragraphs")

    def _counted(self, stage: str, what: str) -> dict[str, int]:
        found: dict[str, int] = next((each.counts.get(what, {}) for each in self.stages if each.name == stage), {})
        return found

    def dropped_for(self, reason: str) -> int:
        """Documents that any stage dropped for `reason`."""
        return sum(stage.counts["dropped"].get(reason, 0) for stage in self.stages)


def gather(out: Path, executor: Executor | None = None) -> Facts:
    """Read what is to be told of the dataset in `out`; files of documents are streamed, in `executor` if there is one.

    Raises:
        UserError: there is no whole dataset, or an older version made it.
    """
    dataset = Dataset(out)
    manifest = dataset.manifest
    if "use" not in manifest["tokenizer"] or "config" not in manifest:
        raise UserError(f"{out} was made by an older version; make it again with: {dataset.recipe_command()}")
    settings = settings_of(manifest["config"])
    stages, lengths_dropped, languages_dropped = [], np.zeros(1, np.int64), Counter[str]()
    for counts in manifest["stages"]:
        directory = next(iter(sorted((out / "stages").glob(f"[0-9][0-9]_{counts['name']}"))), out / "stages" / "none")
        found = dropped_documents(directory, executor)
        lengths_dropped = lengths_dropped + found.lengths
        languages_dropped += found.languages
        stages.append(Stage(counts["name"], counts, rules_of(counts, settings), _named(found.examples, manifest)))
    shards = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    published = published_documents(out, shards, executor)
    complete = any((out / "stages").glob("*_deduplicate"))
    return Facts(
        manifest=manifest,
        complete=complete,
        stages=stages,
        settings=settings,
        quarantine=quarantined(out / "stages" / "quarantine.jsonl").examples,
        lengths_kept=published.lengths,
        lengths_dropped=lengths_dropped,
        languages=_languages(published, languages_dropped),
        has_code=published.has_code,
        revisions={
            source: sorted(found) if len(found) <= MOST_REVISIONS else None
            for source, found in published.revisions.items()
        },
        duplicates=find_clusters(out / "stages"),
        paragraphs=repeated_paragraphs(out / "stages"),
        contamination=contamination(out / "stages"),
        config_file=recipe.config_file(manifest),
        plain_model=manifest["tokenizer"]["kind"] == "sentencepiece" and not _has_header(dataset.tokenizer_path),
    )


def _has_header(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(HEADER)


def _named(examples: dict[str, list[Example]], manifest: dict[str, Any]) -> dict[str, list[Example]]:
    """Examples with the names of their sources instead of the positions."""
    for listed in examples.values():
        for example in listed:
            example.source = manifest["sources"][int(example.source)]["name"]
    return examples


def _languages(published: Published, dropped: Counter[str]) -> list[dict[str, Any]]:
    """Kept documents and bytes and dropped documents of every language, the most frequent first."""
    names = set(published.languages) | set(dropped)
    if names <= {""}:
        return []
    rows = []
    for name in names:
        documents, size = published.languages.get(name, (0, 0))
        rows.append({"name": name, "kept": documents, "bytes": size, "dropped": dropped[name]})
    return sorted(rows, key=lambda row: (-row["kept"], -row["dropped"], row["name"]))
