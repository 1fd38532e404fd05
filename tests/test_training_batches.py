"""The place in the data: one number, whatever the batch size and the number of processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from data_pipeline.shards import Shard, TokenStream
from training.batches import Batches
from training.config import BatchConfig, OpeningConfig, RunConfig
from training.distribution import World
from training.job import Job
from training.plan import split_batch, split_opening
from training.schedules import Progress


def make_batches(directory: Path, tokens: int, seed: int = 0) -> Batches:
    path = directory / "train_00000.bin"
    np.arange(tokens, dtype="<u2").tofile(path)
    return Batches(TokenStream([Shard(path, tokens)], np.dtype("<u2")), context_length=4, seed=seed)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_processes_share_the_windows_of_every_step(world_size: int, micro_batch: int) -> None:
    """Together they take each once; the next step, be it of another size, goes on where they ended."""
    batch = BatchConfig(tokens_per_step=8 * 1024, micro_batch_size=micro_batch)
    config = RunConfig(batch=batch, opening=OpeningConfig(fraction=0.5, tokens_per_step=4096))
    main = split_batch(config, world_size)
    progress, taken = Progress(), []
    for split in (split_opening(config, main), main, main):
        for rank in range(world_size):
            job: Any = SimpleNamespace(progress=progress, world=World(rank, rank, world_size))
            windows = [Job.windows_of(cast(Job, job), split, number) for number in range(split.accumulation)]
            assert all(len(each) == split.micro_batch for each in windows)
            taken += [window for each in windows for window in each]
        progress = progress.after(split.tokens_per_step, split.windows_per_step)
    assert sorted(taken) == list(range(4 + 8 + 8)) and progress.windows == 20


def test_any_place_in_two_epochs_is_found_again(tmp_path: Path) -> None:
    straight = make_batches(tmp_path, 81)
    rows = [
        straight.micro_batch(range(number, number + 1), 4).inputs
        for number in range(2 * straight.windows_per_epoch + 3)
    ]
    for start in range(2 * straight.windows_per_epoch):
        resumed = make_batches(tmp_path, 81)
        assert torch.equal(resumed.micro_batch(range(start, start + 3), 4).inputs, torch.cat(rows[start : start + 3]))


def test_other_seeds_give_other_orders(tmp_path: Path) -> None:
    orders = [[make_batches(tmp_path, 401, seed).position(n) for n in range(100)] for seed in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_ids_beyond_two_bytes(tmp_path: Path) -> None:
    path = tmp_path / "train_00000.bin"
    np.array([1, 65_536, 70_000, 2**31], "<u4").tofile(path)
    stream = TokenStream([Shard(path, 4)], np.dtype("<u4"))
    assert stream.read(0, 4).tolist() == [1, 65_536, 70_000, 2**31] and stream.read(2, 1).tolist() == [70_000]
