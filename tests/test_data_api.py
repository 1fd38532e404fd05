"""Curation from Python gives what the command gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_data_helpers import files_of, prose, small_config, write_jsonl

from common.errors import UserError
from data_pipeline import api
from data_pipeline.pipeline import curate


def test_steps_make_the_config_that_a_file_would_hold(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(60)]
    config = small_config(write_jsonl(tmp_path / "a.jsonl", [*texts, texts[0]]))
    steps = [config.tokenizer, *config.sources, config.split, config.filters, config.measures, config.collection]
    manifest = api.DatasetPipeline([*steps, config.shards, api.Deduplicate()]).run(
        tmp_path / "steps" / "data", workers=1
    )
    assert manifest["config"] == curate(config, tmp_path / "file" / "data", workers=1)["config"]
    assert files_of(tmp_path / "steps" / "data") == files_of(tmp_path / "file" / "data")
    assert manifest["stages"][3]["dropped"] == {"exact_duplicate": 1}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "config.sources is empty"),
        ([api.PackagedWikipedia(), "filter"], "'filter' is neither a source nor a step"),
        ([api.PackagedWikipedia(), api.Tokenize(), api.Tokenize(vocab_size=512)], "two steps of one kind"),
        ([api.PackagedWikipedia(), api.Deduplicate(threshold="high")], "deduplication.threshold = 'high'"),  # type: ignore[arg-type]
        ([api.PackagedWikipedia(), api.PackagedWikipedia()], "'wikipedia' is used twice"),
    ],
)
def test_a_wrong_step_is_named(steps: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.DatasetPipeline(steps)


@pytest.mark.parametrize("workers", [0, -2])
def test_workers_are_at_least_one(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match=f"workers is {workers}; it must be at least 1"):
        api.DatasetPipeline([api.PackagedWikipedia()]).run(tmp_path / "data", workers=workers)
