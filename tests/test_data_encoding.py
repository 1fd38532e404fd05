"""The order of documents in the shards, where one ends, and a budget of tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_helpers import dropped_rows, stage_directory

from common.errors import UserError
from data_pipeline.config import DataConfig, ShardConfig
from data_pipeline.documents import read_rows
from data_pipeline.encoding import OVER_TARGET, shard_ends
from data_pipeline.pipeline import curate
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.verify import verify


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 50))
def test_shards_are_as_full_as_they_may_be(lengths: list[int], max_tokens: int) -> None:
    ends = shard_ends(np.cumsum(lengths), max_tokens)
    expected, total = [], 0
    for place, length in enumerate(lengths):
        if place and total + length > max_tokens:
            expected.append(place)
            total = 0
        total += length
    assert ends == ([*expected, len(lengths)] if lengths else [])


def ids(out: Path, split: str) -> list[str]:
    paths = sorted(out.glob(f"{split}_*.documents.jsonl"))
    return [json.loads(line)["id"] for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_target_of_tokens_keeps_the_beginning_of_the_same_order(
    built: tuple[DataConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, whole = built
    out = shutil.copytree(whole, tmp_path / "data")
    target = 2 * Dataset(whole).manifest["splits"]["train"]["tokens"] // 3
    shards = replace(config.shards, target_tokens=target)
    capsys.readouterr()
    manifest = curate(replace(config, shards=shards), out, workers=1, executor="serial")
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("[")}
    assert [name for name, line in lines.items() if "up to date" not in line] == ["arrange", "pack"]
    kept, every = ids(out, "train"), ids(whole, "train")
    assert kept == every[: len(kept)] and ids(out, "val") == ids(whole, "val")
    lengths = Dataset(out).split("train").documents()["tokens"]
    assert lengths.sum() >= target > lengths[:-1].sum()
    left_out = {row["id"]: row["reason"] for row in dropped_rows(out, "arrange")}
    assert left_out == dict.fromkeys(every[len(kept) :], OVER_TARGET)
    use, pieces = manifest["tokenizer"]["use"], np.zeros(manifest["vocab_size"], np.int64)
    for split in ("train", "val"):
        stream = Dataset(out).split(split)
        pieces += np.bincount(stream.read(0, len(stream)), minlength=len(pieces))
    tokenizer = Tokenizer(Dataset(out).tokenizer_path)
    assert use["unused_pieces"] == sum(map(tokenizer.is_learned, np.flatnonzero(pieces == 0).tolist()))
    paths = stage_directory(out, "split").glob("*.jsonl")
    texts = {row["id"]: row["text"] for path in paths for row in read_rows(path)}
    assert use["words"] == sum(len(texts[name].split()) for name in kept + ids(out, "val"))
    pieces[manifest["eos_id"]] = 0
    assert use["tokens_per_word"] == round(int(pieces.sum()) / use["words"], 4)
    stage = manifest["stages"][-1]
    assert stage["name"] == "arrange" and stage["dropped"] == {OVER_TARGET: len(left_out)}
    share = [source["splits"]["train"]["bytes"] for source in manifest["sources"]]
    before = [source["splits"]["train"]["bytes"] for source in Dataset(whole).manifest["sources"]]
    assert [mine / theirs for mine, theirs in zip(share, before, strict=True)] == pytest.approx([2 / 3] * 2, abs=0.1)
    assert not any(check.wrong for check in verify(out))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{OVER_TARGET} <span" in page and "shards.target_tokens</code> = " in page


def test_a_target_that_is_not_reached_keeps_all_and_says_so(
    built: tuple[DataConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, whole = built
    out = shutil.copytree(whole, tmp_path / "data")
    shards = replace(config.shards, target_tokens=10**9)
    manifest = curate(replace(config, shards=shards), out, workers=1, executor="serial")
    assert manifest["fingerprint"] == Dataset(whole).fingerprint
    found = manifest["splits"]["train"]["tokens"]
    assert f"{found:,} of the 1,000,000,000 tokens of shards.target_tokens were found" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"shards.target_tokens is 0; it must be at least 1"):
        curate(replace(config, shards=ShardConfig(target_tokens=0)), out, workers=1)


def test_the_layout_has_a_row_a_document(built: tuple[DataConfig, Path]) -> None:
    _, whole = built
    layout = np.load(stage_directory(whole, "arrange") / "train.layout.npy")
    assert len(layout) == len(ids(whole, "train")) and len(list(whole.glob("train_*.bin"))) > 1
    assert layout[:, 3].sum() == len(Dataset(whole).split("train"))
