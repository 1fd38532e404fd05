"""The key-value cache: whatever way tokens come in, every logit is that of a pass without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import Decoder, KVCache, ModelConfig
from model.presets import preset

SMALL = {"vocab_size": 61, "context_length": 24, "layers": 2, "width": 32, "heads": 4, "kv_heads": None}
LLAMA = replace(preset("mini-llama"), **{**SMALL, "kv_heads": 2, "mlp_width": 48, "head_dim": None})
FAMILIES = {
    "own": ModelConfig(**SMALL, value_embeddings=1, zero_init_projections=False),
    "gpt2": replace(preset("gpt2"), **SMALL, dropout=0.0),
    "llama": LLAMA,  # fewer heads for keys and values
    "windowed": replace(LLAMA, window=5),
    "by document": replace(LLAMA, document_start=3),
}
CPU = torch.device("cpu")


def decoder(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model.eval()


def some_ids(rows: int) -> Tensor:
    ids = torch.randint(4, 61, (rows, 24), generator=torch.Generator().manual_seed(1))
    ids[:, [0, 9]] = 3  # where documents begin
    return ids


def empty(config: ModelConfig, rows: int) -> KVCache:
    return KVCache(config, rows, 24, CPU, torch.float32)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_every_logit_is_that_of_a_pass_without_a_cache(config: ModelConfig) -> None:
    model, ids = decoder(config), some_ids(2)
    for parts in ([24], [1] * 24, [10, 1, 1, 5, 7]):
        cache = empty(config, 2)
        assert_same(torch.cat([model(part, cache=cache) for part in ids.split(parts, dim=1)], dim=1), model(ids))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_attention_by_blocks_behind_a_cache_in_bf16(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is that by a mask, but for bf16's rounding."""
    model, ids, found = decoder(config).bfloat16(), some_ids(2), []
    for least in (2, 100):
        monkeypatch.setattr("model.positions.BLOCKED", least)
        cache = KVCache(config, 2, 24, CPU, torch.bfloat16)
        found.append(torch.cat([model(part, cache=cache) for part in ids.split([10, 1, 13], dim=1)], dim=1))
    assert not torch.equal(*found)
    assert (found[0] - found[1]).abs().mean() < 0.02 * found[1].abs().mean()


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_logits_after_the_last_ids_alone_are_those_of_all(config: ModelConfig) -> None:
    model, ids = decoder(config), some_ids(2)
    assert_same(model(ids, last_only=True), model(ids)[:, -1:])
    caches = empty(config, 2), empty(config, 2)
    every, last = (model(ids, cache=cache, counts=[7, 24], last_only=cache is caches[1]) for cache in caches)
    assert_same(last[:, 0], torch.stack([every[0, 6], every[1, 23]]))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_rows_of_any_lengths_are_as_if_alone(config: ModelConfig) -> None:
    """Neighbouring rows in passes of their own, rows that move, and rows that forget their last tokens."""
    model, ids, cache = decoder(config), some_ids(4), empty(config, 5)
    expected = model(ids)

    def read(first: int, starts: list[int], counts: list[int], of: list[int]) -> None:
        """Rows from `first` on, which hold the texts `of`, read `counts` tokens more from `starts` on."""
        width, part = max(counts), cache.part(first, len(of))
        padded = torch.stack([ids[text, start : start + width] for text, start in zip(of, starts, strict=True)])
        logits = model(padded, cache=part, counts=counts)
        cache.take_lengths(first, part)
        for row, (text, start, count) in enumerate(zip(of, starts, counts, strict=True)):
            assert_same(logits[row, :count], expected[text, start : start + count])

    read(4, [0], [11], [0])
    cache.copy_row(4, 0)
    read(1, [0, 0], [3, 7], [1, 2])
    read(0, [11, 3, 7], [4, 1, 2], [0, 1, 2])
    assert cache.lengths == [15, 4, 9, 0, 11]
    cache.lengths[0] = 12  # three tokens are taken back
    read(0, [12, 4, 9], [1, 5, 0], [0, 1, 2])
    cache.copy_row(2, 0)
    read(0, [9, 9], [1, 1], [2, 1])
    cache.lengths[2] = 0
    read(2, [0], [6], [3])
    read(0, [10, 10, 6], [1, 1, 1], [2, 1, 3])
    assert cache.lengths[:3] == [11, 11, 7]


@torch.no_grad()
def test_more_than_it_holds_is_refused() -> None:
    model, cache = decoder(LLAMA), KVCache(LLAMA, 2, 5, CPU, torch.float32)
    model(some_ids(2)[:, :3], cache=cache)
    with pytest.raises(ValueError, match="holds 5 positions, 6 were asked for"):
        model(some_ids(2)[:, 3:6], cache=cache)
