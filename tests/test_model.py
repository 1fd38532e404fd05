"""The decoder: sizes, causality, families, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from common.errors import UserError
from model import Decoder, KVCache, ModelConfig
from model.config import gpt2, llama
from model.functions import IGNORE
from model.layers import rotary_table, rotate

OURS = ModelConfig(vocab_size=97, context_length=48, layers=3, width=64, heads=2)
FAMILIES = {
    "ours": OURS,
    "ours_untied": ModelConfig(vocab_size=97, context_length=48, layers=2, width=64, heads=2, tied=False),
    "llama": llama(vocab_size=97, context_length=48, layers=2, width=64, heads=4, kv_heads=2, mlp_width=96),
    "gpt2": ModelConfig(
        vocab_size=97,
        context_length=48,
        layers=2,
        width=64,
        heads=4,
        activation="gelu",
        norm="layer",
        norm_gain=True,
        bias=True,
        position="learned",
        qk_norm=False,
        embedding_norm=False,
        residual_scalars=False,
        logit_softcap=None,
        zero_init_projections=False,
    ),
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
    assert on_meta(gpt2("small")).parameter_count() == 124_439_808
    assert on_meta(gpt2("xl")).parameter_count() == 1_557_611_200
    llama_1b = llama(
        vocab_size=128_256, layers=16, width=2048, heads=32, kv_heads=8, mlp_width=8192, context_length=2048
    )
    assert on_meta(llama_1b).parameter_count() == 1_235_814_400


def test_default_recipe_is_about_50m() -> None:
    assert 48_000_000 <= on_meta(ModelConfig()).parameter_count() <= 52_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_no_position_sees_the_future(family: str) -> None:
    model = perturbed(FAMILIES[family])
    ids = torch.randint(0, 97, (2, 48))
    changed = ids.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % 97
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.allclose(before[:, 30:], after[:, 30:])


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_gives_the_same_logits_in_any_chunks(family: str) -> None:
    config = FAMILIES[family]
    model, ids = perturbed(config), torch.randint(0, 97, (2, 48))
    cache = KVCache(config, batch=2, capacity=48, device=torch.device("cpu"), dtype=torch.float32)
    chunks = [model(part, cache=cache) for part in ids.split([7, 1, 1, 20, 19], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(ids), atol=1e-5, rtol=1e-5)


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
    full = perturbed(llama(vocab_size=97, context_length=48, layers=2, width=64, heads=4, kv_heads=4, mlp_width=96))
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
    torch.testing.assert_close(attention(x, None, None, None), expected, atol=1e-5, rtol=1e-5)


def test_flops_count_every_matrix() -> None:
    model = on_meta(ModelConfig())
    assert model.flops_per_token() == 6 * (31_457_280 + 512 * 32_768) + 6 * 10 * 512 * 1024


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="not a multiple"):
        ModelConfig(width=100, heads=3).check()
    with pytest.raises(UserError, match="kv_heads"):
        ModelConfig(heads=4, kv_heads=3).check()
    with pytest.raises(ValueError, match="do not fit the context"):
        Decoder(OURS)(torch.zeros(1, 49, dtype=torch.long))


def test_own_attention_code_only() -> None:
    import inspect

    import model.decoder
    import model.layers

    source = inspect.getsource(model.layers) + inspect.getsource(model.decoder)
    assert "nn.Transformer" not in source and "MultiheadAttention" not in source
