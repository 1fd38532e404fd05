"""Merging and taking it back, several adapters in one model, and configs that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft_models import TARGETS, disturb, ours, quantized, some_ids, write_base
from torch import Tensor, nn

from common.cli import check_types
from common.errors import UserError
from model import Decoder
from model.adapters.attach import activate, adapters, attach, merge, names, remove, unmerge
from model.adapters.config import AdapterConfig
from model.adapters.files import load_adapter, save_adapter
from model.adapters.low_rank import LowRank
from model.slots import Linear

MERGEABLE = {
    "lora": AdapterConfig("lora", rank=4),
    "rslora": AdapterConfig("lora", rank=4, rslora=True, alpha_pattern={"c_fc": 3.0}),
    "dora": AdapterConfig("lora", rank=4, dora=True),
    "pissa": AdapterConfig("lora", rank=4, init="pissa"),
    "ia3": AdapterConfig("ia3"),
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(request.param, tmp_path_factory.mktemp("base"))


def with_biases(model: Decoder) -> Decoder:
    """Those of a fresh model are zero, so that nobody would notice what becomes of them."""
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)
    return model


def weights(model: Decoder) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.named_parameters() if ".slot." not in key}


@pytest.mark.parametrize("kind", MERGEABLE)
def test_unmerging_gives_the_weights_and_the_adapter_back(kind: str, base: Path) -> None:
    model = with_biases(ours(base))
    attach(model, MERGEABLE[kind])
    disturb(model)
    before, expected = weights(model), model(some_ids())
    trained = [key for key, value in model.named_parameters() if value.requires_grad]
    kept = merge(model)
    assert names(model) == []
    torch.testing.assert_close(model(some_ids()), expected, rtol=1e-5, atol=1e-5)
    changed = [key for key, value in weights(model).items() if not torch.equal(value, before[key])]
    assert changed and any(key.endswith("bias") for key in changed) == (kind == "ia3" and base.name == "gpt2")
    unmerge(model, kept)
    for key, value in weights(model).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6)
    torch.testing.assert_close(model(some_ids()), expected, rtol=1e-5, atol=1e-5)
    assert trained == [key for key, value in model.named_parameters() if value.requires_grad]
    model(some_ids()).sum().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    with pytest.raises(UserError, match="an adapter 'default' again"):
        unmerge(model, kept)


@pytest.mark.parametrize("kind", MERGEABLE)
def test_four_bits_are_merged_only_when_they_may_become_dense(kind: str, base: Path) -> None:
    model = quantized(with_biases(ours(base)))
    attach(model, MERGEABLE[kind])
    disturb(model)
    expected, before = model(some_ids()), weights(model)
    with pytest.raises(UserError, match=r"dequantized base \(`dequantize`\), or load the adapter on the original base"):
        merge(model)
    kept = merge(model, dequantize=True)
    torch.testing.assert_close(model(some_ids()), expected, rtol=1e-5, atol=1e-5)
    assert kept.parts and all(
        layer.quantized is None and layer.weight.dtype == torch.float32 and not layer.weight.requires_grad
        for part in kept.parts
        for layer in part.site.linears
    )
    unmerge(model, kept)
    assert weights(model).keys() == before.keys()
    torch.testing.assert_close(model(some_ids()), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged_changes_nothing(tmp_path: Path) -> None:
    model = ours(write_base("gpt2", tmp_path))
    attach(model, AdapterConfig("lora", rank=2))
    disturb(model)
    before = weights(model)
    with torch.no_grad():
        *_, (_, last) = adapters(model, "default")
        assert isinstance(last, LowRank)
        last.lora_B.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match="is not finite with adapter 'default'"):
        merge(model)
    with pytest.raises(UserError, match="no adapter 'other'; there are default"):
        merge(model, "other")
    remove(model)
    attach(model, AdapterConfig("lora", ("wte",), rank=2))
    with pytest.raises(UserError, match="is the head too, which it does not change"):
        merge(model)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())


def test_a_factor_of_zero_is_not_taken_back(base: Path) -> None:
    model = ours(base)
    attach(model, AdapterConfig("ia3"))
    disturb(model)
    with torch.no_grad():
        for _, adapter in adapters(model, "default"):
            adapter.ia3_l[0] = 0.0  # type: ignore[operator]
    kept = merge(model)
    with pytest.raises(UserError, match="multiplied by zero, which cannot be taken back"):
        unmerge(model, kept)


def test_adapters_of_several_kinds_share_a_layer(base: Path) -> None:
    """The new one trains alone; switching changes what is applied, not what is trained."""
    model = ours(base)
    configs = {"one": MERGEABLE["lora"], "two": MERGEABLE["ia3"], "three": MERGEABLE["lora"]}
    alone = {}
    for name, config in configs.items():
        attach(model, config, name)
        disturb(model, name)
        alone[name] = model(some_ids())
        trained = {key for key, value in model.named_parameters() if value.requires_grad}
        assert trained and all(f".{name}." in key for key in trained)
    for name in configs:
        activate(model, (name,))
        assert torch.equal(model(some_ids()), alone[name])
    assert trained == {key for key, value in model.named_parameters() if value.requires_grad}
    activate(model, ("one", "two"))
    both = model(some_ids())
    assert not any(torch.allclose(both, output, atol=1e-3) for output in alone.values())
    with pytest.raises(UserError, match=r"beside other active adapters of .* of another kind"):
        merge(model, "one")
    activate(model, ("one", "three"))
    expected = model(some_ids())
    merge(model, "one")
    torch.testing.assert_close(model(some_ids()), expected, rtol=1e-5, atol=1e-5)
    assert set(names(model)) == {"two", "three"}


def test_adapters_of_one_model_are_saved_apart(base: Path, tmp_path: Path) -> None:
    model = ours(base)
    for name, kind in (("one", "lora"), ("two", "ia3")):
        attach(model, MERGEABLE[kind], name)
        disturb(model, name)
        save_adapter(model, MERGEABLE[kind], tmp_path / name, str(base), name)
    activate(model, ("one", "two"))
    loaded = ours(base)
    for name in ("one", "two"):
        load_adapter(loaded, tmp_path / name, name)
    activate(loaded, ("one", "two"))
    assert torch.equal(loaded(some_ids()), model(some_ids()))


def test_dropout_is_off_in_a_model_that_evaluates(base: Path) -> None:
    model = ours(base)
    attach(model, AdapterConfig("lora", dropout=0.5))
    disturb(model)
    assert torch.equal(model(some_ids()), model(some_ids()))
    model.train()
    assert not torch.equal(model(some_ids()), model(some_ids()))


def test_nothing_goes_back_into_a_frozen_embedding(base: Path) -> None:
    """Neither through the first norm nor through the first layers, whose input nobody trains."""
    model = ours(base).train()
    attach(model, AdapterConfig("lora", TARGETS[base.name], dora=True, rank=4))
    seen: dict[str, Any] = {}
    first: Any = model.blocks[0]
    first.attention.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    model(some_ids(), some_ids()).backward()
    assert not seen["x"].requires_grad and seen["x"].grad_fn is None
    frozen = [key for key, value in model.named_parameters() if ".slot." not in key and value.grad is not None]
    assert not frozen
    assert all(value.grad is not None for key, value in model.named_parameters() if ".slot." in key)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig(), "method is none, so there is nothing to attach"),
        (AdapterConfig(rank=4), "adapter.rank does nothing with method none; unset it"),
        (AdapterConfig("ia3", rank=4), "adapter.rank does nothing with method ia3"),
        (AdapterConfig("ia3", rank_pattern={"c_fc": 2}), "adapter.rank_pattern does nothing with method ia3"),
        (AdapterConfig("lora", virtual_tokens=4), "adapter.virtual_tokens does nothing with method lora"),
        (AdapterConfig("prefix", targets=("c_attn",)), "adapter.targets does nothing with method prefix"),
        (AdapterConfig("prefix", prompt_text="a"), "adapter.prompt_text does nothing with method prefix"),
        (AdapterConfig("bottleneck", lr_ratio=2.0), "adapter.lr_ratio does nothing with method bottleneck"),
        (AdapterConfig("lora", lr_ratio=0.0), "adapter.lr_ratio must be positive"),
        (AdapterConfig("lora", alpha=float("nan")), "adapter.alpha must be positive"),
        (AdapterConfig("lora", dropout=1.0), "adapter.dropout must be at least 0 and below 1"),
        (AdapterConfig("lora", rank_pattern={"(": 2}), "is no regular expression"),
        (AdapterConfig("lora", rank_pattern={"c_fc": 0}), "'c_fc' must be positive"),
        (AdapterConfig("lora", ("c_fc",), target_pattern=".*c_fc"), "exclude each other"),
        (AdapterConfig("lora", init="pissa", dora=True), "do not go together"),
        (AdapterConfig("lora", blocks=(0, 2)), "there is no block 2; they go from 0 to 1"),
        (AdapterConfig("lora", exclude=TARGETS["gpt2"]), "matches no layer; there are transformer.wte"),
        (AdapterConfig("lora", ("wte",), dora=True), "dora cannot change the embedding transformer.wte"),
        (AdapterConfig("lora", ("wte",), init="pissa"), "pissa cannot change the embedding"),
        (AdapterConfig("ia3", feedforward=("c_fc",)), "'c_fc' ends the name of no target"),
        (AdapterConfig("ia3", ("wte",)), "ia3 cannot change the embedding"),
        (AdapterConfig("prompt", prompt_text=""), "adapter.prompt_text is empty"),
        (AdapterConfig("prompt", prompt_text="a"), "its token ids belong together"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_leaves_the_model_alone(config: AdapterConfig, message: str, tmp_path: Path) -> None:
    model = ours(write_base("gpt2", tmp_path))
    check_types(config, "config")
    with pytest.raises(UserError, match=message):
        attach(model, config)
    assert names(model) == [] and all(parameter.requires_grad for parameter in model.parameters())


def test_a_module_trained_whole_gets_no_adapter(base: Path) -> None:
    name = {"gpt2": "mlp.c_proj", "llama": "mlp.down_proj"}[base.name]
    model = ours(base)
    sites = attach(model, AdapterConfig("lora", modules_to_save=(name,)))
    assert sites and not any(site.name.endswith(name) for site in sites)
    assert model.blocks[0].mlp.down.weight.requires_grad  # type: ignore[union-attr]
