"""Curation from Python: sources and steps in a list.

    from data_pipeline.api import Deduplicate, DatasetPipeline, PackagedWikipedia, PythonCode, QualityFilter, Tokenize

    pipeline = DatasetPipeline([
        PackagedWikipedia(),
        PythonCode(),
        QualityFilter(min_length=200, max_length=100_000),
        Deduplicate(threshold=0.8),
        Tokenize(vocab_size=32_000),
    ])
    manifest = pipeline.run("data/mine")

It is what `python -m data_pipeline CONFIG` does, with the same stages, files and promises. Steps are the dataclasses of
a config under shorter names; one that is not named has its defaults, and their order does not matter. In a script, call
`run` under `if __name__ == "__main__":`, because its worker processes import the script.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.cli import check_types
from common.errors import UserError
from data_pipeline import pipeline
from data_pipeline.config import CleaningConfig as Clean
from data_pipeline.config import CodeFilters, DataConfig, ProseFilters
from data_pipeline.config import CollectionConfig as Collect
from data_pipeline.config import DecontaminationConfig as Decontaminate
from data_pipeline.config import DeduplicationConfig as Deduplicate
from data_pipeline.config import FilterConfig as QualityFilter
from data_pipeline.config import ShardConfig as Shards
from data_pipeline.config import SplitConfig as Split
from data_pipeline.config import TokenizerConfig as Tokenize
from data_pipeline.config_checks import check
from data_pipeline.executors import worker_count
from data_pipeline.sources.config import (
    DebianPackages,
    GitRepositories,
    HubDataset,
    PackagedWikipedia,
    PyPIPackages,
    PythonCode,
    Source,
    TextFiles,
    WarcFiles,
    WebPages,
    WikipediaDump,
)

__all__ = [
    "Clean",
    "CodeFilters",
    "Collect",
    "DatasetPipeline",
    "DebianPackages",
    "Decontaminate",
    "Deduplicate",
    "GitRepositories",
    "HubDataset",
    "PackagedWikipedia",
    "ProseFilters",
    "PyPIPackages",
    "PythonCode",
    "QualityFilter",
    "Shards",
    "Source",
    "Split",
    "TextFiles",
    "Tokenize",
    "WarcFiles",
    "WebPages",
    "WikipediaDump",
]

# The field of a config that each kind of step fills.
_FIELDS = {kind: name for name, kind in typing.get_type_hints(DataConfig).items() if name != "sources"}


class DatasetPipeline:
    """A dataset, from its sources to its token shards."""

    def __init__(self, steps: Iterable[Any]) -> None:
        """Raises UserError for a step that is none, one given twice, a field of the wrong type, or no source."""
        sources: list[Any] = []
        parts: dict[str, Any] = {}
        for step in steps:
            if isinstance(step, typing.get_args(Source)):
                sources.append(step)
            elif type(step) not in _FIELDS:
                raise UserError(f"{step!r} is neither a source nor a step; see help(data_pipeline.api)")
            elif _FIELDS[type(step)] in parts:
                raise UserError(f"two steps of one kind: {parts[_FIELDS[type(step)]]!r} and {step!r}; name one")
            else:
                parts[_FIELDS[type(step)]] = step
        self.config = DataConfig(sources=tuple(sources), **parts)
        check_types(self.config, "DatasetPipeline")
        check(self.config)

    def run(self, out: str | Path, workers: int | None = None, executor: str = "processes") -> dict[str, Any]:
        """Bring the dataset in `out` up to date and return its manifest; called again, it does only what changed.

        Args:
            out: directory of the dataset, such as data/mine.
            workers: processes; by default one a core.
            executor: processes, serial, dask or dask://HOST:PORT.

        Raises:
            UserError: a source cannot be read, too little text is left, or `workers` is below 1.
        """
        return pipeline.curate(self.config, Path(out), worker_count(workers), executor)
