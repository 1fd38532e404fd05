"""The decoder: sizes, causality, families, gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from model import Decoder, KVCache, ModelConfig
from model.functions import IGNORE
from model.positions import Positions, rotary_frequencies, rotary_table, rotate
from model.presets import PRESETS, preset

SMALL = {"vocab_size": 97, "context_length": 48, "layers": 2, "width": 64}
OURS = ModelConfig(**{**SMALL, "layers": 3}, heads=2)
LLAMA = replace(preset("mini-llama"), **SMALL, heads=4, kv_heads=2, mlp_width=96)
FAMILIES = {
    "ours": OURS,
    "ours_untied": ModelConfig(**SMALL, heads=2, tied=False),
    "ours_windowed": replace(OURS, window=11),
    "ours_by_document": replace(OURS, document_start=3),
    "llama": LLAMA,
    "llama_stretched": replace(LLAMA, rope_base=100.0, rope_factor=8.0, rope_original_context=16),
    "mistral": replace(LLAMA, window=5, document_start=3),
    "gpt2": replace(preset("gpt2"), **SMALL, heads=4),
    "gpt2_by_document": replace(preset("gpt2"), **SMALL, heads=4, document_start=3),
}


def perturbed(config: ModelConfig) -> Decoder:
    """A decoder none of whose weights is zero, so that every path carries signal."""
    torch.manual_seed(0)
    model = Decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def on_meta(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def test_published_sizes() -> None:
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.2-3b": 3_212_749_824,
        "llama-3.1-8b": 8_030_261_248,
    }
    assert {name: on_meta(preset(name)).parameter_count() for name in published} == published
    assert set(published) == set(PRESETS) - {"mini", "mini-llama"}
    with pytest.raises(UserError, match=r"no preset 'gpt3'; there are mini, "):
        preset("gpt3")


def test_default_recipe_is_about_50m() -> None:
    for name in ("mini", "mini-llama"):
        assert 48_000_000 <= on_meta(preset(name)).parameter_count() <= 53_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_no_position_sees_the_future(family: str) -> None:
    model = perturbed(FAMILIES[family])
    ids = torch.randint(0, 97, (2, 48))
    changed = ids.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % 97
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.allclose(before[:, 30:], after[:, 30:])


def cache_of(config: ModelConfig, batch: int) -> KVCache:
    return KVCache(config, batch, 48, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_gives_the_same_logits_in_any_chunks(family: str) -> None:
    config = FAMILIES[family]
    model, ids = perturbed(config), torch.randint(0, 97, (2, 48))
    ids[0, [0, 9, 21, 22]] = ids[1, 30] = 3  # the token that begins a document, where there is one
    cache = cache_of(config, 2)
    chunks = [model(part, cache=cache) for part in ids.split([7, 1, 1, 20, 19], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(ids), atol=1e-5, rtol=1e-5)


RAGGED = ((7, 1, 4), (1, 1, 1), (1, 0, 1), (0, 20, 3), (12, 9, 0), (1, 1, 1))  # real tokens of each row in each pass


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_share_a_cache(family: str) -> None:
    config = FAMILIES[family]
    model, ids = perturbed(config), torch.randint(0, 97, (3, 48))
    ids[0, [0, 5, 20]] = ids[1, [2, 14]] = 3
    cache, places = cache_of(config, 3), [0, 0, 0]
    expected = model(ids)
    for counts in RAGGED:
        padded = torch.full((3, max(counts)), 3)  # even padding that looks like the beginning of a document
        for row, count in enumerate(counts):
            padded[row, :count] = ids[row, places[row] : places[row] + count]
        whole, last = logits_of(model, padded, cache, counts)
        for row, count in enumerate(counts):
            wanted = expected[row, places[row] : places[row] + count]
            torch.testing.assert_close(whole[row, :count], wanted, atol=1e-5, rtol=1e-5)
            if count:
                torch.testing.assert_close(last[row, 0], wanted[-1], atol=1e-5, rtol=1e-5)
            places[row] += count
    assert cache.lengths == places == [22, 32, 10]


def logits_of(
    model: Decoder, ids: torch.Tensor, cache: KVCache, counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits of one pass, and those of the last real token of each row."""
    whole = model(ids, cache=cache, counts=counts)
    before = cache.lengths
    cache.lengths = [length - count for length, count in zip(before, counts, strict=True)]
    documents = None if cache.documents is None else cache.documents.clone()
    last = model(ids, cache=cache, last_only=True, counts=counts)
    assert cache.lengths == before and (documents is None or cache.documents is not None)
    return whole, last


def test_a_full_cache_says_so() -> None:
    cache = cache_of(OURS, 2)
    with pytest.raises(ValueError, match="holds 48 positions, 49 were asked for"):
        cache.place(49, None)
    cache.place(60, [48, 3])  # padding may reach past the end
    perturbed(OURS)(torch.zeros(2, 60, dtype=torch.long), cache=cache, counts=[48, 3])
    assert cache.lengths == [48, 3] and cache.length == 48


def test_a_window_sees_so_many_tokens_a_layer() -> None:
    config = replace(OURS, layers=1, window=5)
    model, ids = perturbed(config), torch.randint(0, 97, (1, 48))
    changed = ids.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 97
    different = (model(ids) != model(changed)).any(dim=-1)[0].nonzero().flatten().tolist()
    assert different == [10, 11, 12, 13, 14]


def test_attention_ends_with_the_document() -> None:
    config = replace(FAMILIES["llama"], document_start=3)  # rotary: only distances matter
    model, ids = perturbed(config), torch.randint(4, 97, (1, 30))
    ids[0, [0, 12]] = 3
    whole, second = model(ids), model(ids[:, 12:])
    torch.testing.assert_close(whole[:, 12:], second, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(perturbed(FAMILIES["llama"])(ids)[:, 12:], second, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_does_not_change_who_sees_whom(family: str) -> None:
    """With dropout the fused kernel takes over, which needs an explicit mask."""
    plain, ids = perturbed(FAMILIES[family]), torch.randint(0, 97, (2, 48))
    ids[:, [0, 20]] = 3
    dropping = Decoder(replace(FAMILIES[family], dropout=1e-12)).train()
    dropping.load_state_dict(plain.state_dict())
    torch.testing.assert_close(dropping(ids), plain(ids), atol=1e-5, rtol=1e-5)


def test_long_rotary_waves_are_stretched_and_short_ones_are_not() -> None:
    plain = rotary_frequencies(ModelConfig(width=32, heads=1))
    stretched = rotary_frequencies(ModelConfig(width=32, heads=1, rope_factor=4.0, rope_original_context=128))
    turns = 128 * plain / (2 * math.pi)
    assert torch.equal(stretched[turns > 4], plain[turns > 4]) and (turns > 4).any()
    torch.testing.assert_close(stretched[turns < 1], plain[turns < 1] / 4)
    between = (turns > 1) & (turns < 4)
    assert ((stretched[between] < plain[between]) & (stretched[between] > plain[between] / 4)).all() and between.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_loss_is_near_uniform(family: str) -> None:
    torch.manual_seed(0)
    model = Decoder(FAMILIES[family])
    ids = torch.randint(0, 97, (8, 49))
    loss = model(ids[:, :-1], ids[:, 1:]).item() / (8 * 48)
    assert loss == pytest.approx(math.log(97), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_can_be_learned_by_heart(family: str) -> None:
    torch.manual_seed(0)
    model = Decoder(FAMILIES[family])
    ids = torch.randint(0, 97, (2, 25))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(ids[:, :-1], ids[:, 1:]) / (2 * 24)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_losses_are_cross_entropy_and_ignored_targets_cost_nothing() -> None:
    model, ids = perturbed(OURS), torch.randint(0, 97, (2, 10))
    targets = torch.randint(0, 97, (2, 10))
    targets[0, 3] = IGNORE
    losses, logits = model.token_losses(ids, targets), model(ids)
    expected = logits[1, 4].logsumexp(-1) - logits[1, 4, targets[1, 4]]
    assert losses[0, 3] == 0
    torch.testing.assert_close(losses[1, 4], expected)
    torch.testing.assert_close(model(ids, targets), losses.sum())
    assert logits.abs().max() <= 15.0


def test_grouped_queries_equal_repeated_keys_and_values() -> None:
    grouped = perturbed(FAMILIES["llama"])
    full = perturbed(replace(LLAMA, kv_heads=4))
    weights = grouped.state_dict()
    for name, value in weights.items():
        if name.endswith(("key.weight", "value.weight")):
            weights[name] = value.view(2, 16, 64).repeat_interleave(2, dim=0).reshape(64, 64)
    full.load_state_dict(weights)
    ids = torch.randint(0, 97, (1, 20))
    torch.testing.assert_close(grouped(ids), full(ids), atol=1e-5, rtol=1e-5)


def test_rotary_products_depend_on_distance_only() -> None:
    config = ModelConfig(width=32, heads=1, context_length=64)
    cos, sin = rotary_table(config)
    query, key = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def product(i: int, j: int) -> torch.Tensor:
        return (rotate(query, cos[i : i + 1], sin[i : i + 1]) * rotate(key, cos[j : j + 1], sin[j : j + 1])).sum()

    torch.testing.assert_close(product(5, 2), product(43, 40), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(product(5, 2), product(5, 3))


def test_attention_equals_the_textbook_formula() -> None:
    model = perturbed(FAMILIES["gpt2"])
    attention, x = model.blocks[0].attention, torch.randn(1, 6, 64)
    heads = [layer(x).view(1, 6, 4, 16).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)]
    scores = heads[0] @ heads[1].transpose(-1, -2) / 4.0
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    expected = attention.output((scores.softmax(-1) @ heads[2]).transpose(1, 2).reshape(1, 6, 64))
    positions = Positions(torch.arange(6), None, None, blocked=False)
    torch.testing.assert_close(attention(x, positions, None, None, None), expected, atol=1e-5, rtol=1e-5)


def test_flops_count_every_matrix() -> None:
    model = on_meta(ModelConfig())
    assert model.flops_per_token() == 6 * (31_457_280 + 512 * 32_768) + 6 * 10 * 512 * 1024
    windowed = on_meta(ModelConfig(window=256))  # a query sees 256 keys, but fewer at the beginning
    seen = sum(min(place, 256) for place in range(1024)) / 1024
    assert windowed.flops_per_token() - model.flops_per_token() == pytest.approx(12 * 10 * 512 * (seen - 512), rel=0.01)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="not a multiple"):
        ModelConfig(width=100, heads=3).check()
    with pytest.raises(UserError, match="kv_heads"):
        ModelConfig(heads=4, kv_heads=3).check()
    for wrong, message in (
        ({"rope_factor": 0.5}, "at least 1"),
        ({"rope_factor": 2.0, "position": "learned"}, "does nothing with learned positions"),
        ({"rope_high_frequency": 1.0}, "must be above model.rope_low_frequency"),
        ({"window": 0}, "model.window must be at least 1"),
        ({"document_start": 32_768}, "no id of a vocabulary of 32768"),
    ):
        with pytest.raises(UserError, match=message):
            ModelConfig(**wrong).check()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit the context"):
        Decoder(OURS)(torch.zeros(1, 49, dtype=torch.long))


def test_own_attention_code_only() -> None:
    import inspect

    import model.decoder
    import model.layers

    source = inspect.getsource(model.layers) + inspect.getsource(model.decoder)
    assert "nn.Transformer" not in source and "MultiheadAttention" not in source
