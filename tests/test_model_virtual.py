"""Trained positions before a text, and rows packed with several texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import Decoder, KVCache, ModelConfig
from model.presets import preset
from model.virtual import Prefix, Prompt, VirtualTokens

SMALL = {"vocab_size": 61, "context_length": 24, "layers": 2, "width": 32, "heads": 2, "kv_heads": None}
FAMILIES = {
    "own": ModelConfig(**SMALL, value_embeddings=1, zero_init_projections=False),
    "gpt2": replace(preset("gpt2"), **SMALL, dropout=0.0),
    "llama": replace(preset("mini-llama"), **{**SMALL, "heads": 4, "kv_heads": 2, "mlp_width": 48, "head_dim": None}),
}
WINDOWED = replace(FAMILIES["llama"], window=4)


def decoder(config: ModelConfig, kind: type[VirtualTokens] | None = None) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    if kind is not None:
        model.virtual = kind(config, 3)  # type: ignore[call-arg]
    return model.eval()


def some_ids(*shape: int) -> Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("config", [*FAMILIES.values(), WINDOWED], ids=[*FAMILIES, "windowed"])
def test_packed_texts_are_as_if_alone(config: ModelConfig, blocked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not blocked:  # as on a GPU: attention by a mask
        monkeypatch.setattr("model.layers.Attention.attend", _masked(config))
    model = decoder(config)
    ids = some_ids(2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 6 + [2] * 4])
    packed = model.logits(model.hidden(ids, documents=documents))
    for row in range(2):
        for number in documents[row].unique():
            alone = documents[row] == number
            torch.testing.assert_close(packed[row, alone], model(ids[row : row + 1, alone])[0], rtol=1e-4, atol=1e-4)


def _masked(config: ModelConfig):  # type: ignore[no-untyped-def]
    from model.layers import Attention
    from model.positions import Positions, visible

    original = Attention.attend

    def attend(self: Attention, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        keys = torch.arange(key.shape[2])
        documents = positions.documents
        asking = None if documents is None else documents[:, -query.shape[2] :]
        mask = visible(keys[-query.shape[2] :], keys, config.window, asking, documents)
        return original(self, query, key, value, positions._replace(mask=mask, blocked=False))

    return attend


@pytest.mark.parametrize("kind", [Prefix, Prompt])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_behind_a_cache_trained_positions_are_the_same(config: ModelConfig, kind: type[VirtualTokens]) -> None:
    model = decoder(config, kind)
    ids = some_ids(2, 9)
    whole = model(ids)
    assert not torch.allclose(whole, decoder(config)(ids), atol=1e-2)
    cache = KVCache(config, 2, 3 + 9, torch.device("cpu"), torch.float32)
    parts = [model(part, cache=cache) for part in ids.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Prefix, Prompt])
def test_every_packed_text_sees_the_trained_positions(kind: type[VirtualTokens]) -> None:
    model = decoder(FAMILIES["llama"], kind)
    ids, documents = some_ids(1, 10), torch.tensor([[0] * 4 + [1] * 6])
    packed = model.logits(model.hidden(ids, documents=documents))
    for number in (0, 1):
        alone = documents[0] == number
        torch.testing.assert_close(packed[:, alone], model(ids[:, alone]), rtol=1e-4, atol=1e-4)


def test_a_prefix_of_real_keys_is_the_text_before() -> None:
    """What a text leaves in a cache, put into a prefix, does what the text did."""
    config = FAMILIES["llama"]
    model = decoder(config)
    before, ids = some_ids(1, 3), some_ids(1, 8)[:, 2:]
    cache = KVCache(config, 1, 3, torch.device("cpu"), torch.float32)
    model(before, cache=cache)
    prefix = Prefix(config, 3)
    stacked = torch.stack((cache.keys[:, 0, :, :3], cache.values[:, 0, :, :3]), dim=1)  # (layers, 2, heads, 3, dim)
    with torch.no_grad():
        prefix.prompt_embeddings.copy_(stacked.permute(3, 0, 1, 2, 4).reshape(3, -1))
    expected = model(torch.cat((before, ids), dim=1))[:, 3:]
    model.virtual = prefix
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Prefix, Prompt])
def test_trained_positions_take_room_and_get_gradients(kind: type[VirtualTokens]) -> None:
    model = decoder(FAMILIES["gpt2"], kind)
    assert model.room == 21
    with pytest.raises(ValueError, match="25 positions do not fit"):
        model(some_ids(1, 22))
    model(some_ids(1, 21), some_ids(1, 21)).backward()
    assert model.virtual is not None
    for parameter in model.virtual.parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(dim=-1).all()
