"""LoRA and DoRA against PEFT: draws, outputs, gradients, files and merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft_models import TARGETS, disturb, ours, some_ids, theirs, write_base
from torch import Tensor

from common.errors import UserError
from model import Decoder, ModelConfig
from model.adapters.attach import activate, adapters, attach, merge
from model.adapters.config import AdapterConfig
from model.adapters.files import load_adapter, save_adapter
from model.adapters.sites import find_sites
from model.presets import preset

# What differs from plain LoRA, in our words and in theirs.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "gaussian": ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
    "one block": ({"blocks": (1,)}, {"layers_to_transform": [1]}),
    "patterns": (
        {"rank_pattern": {"0.attn.c_attn": 4, "q_proj": 4}, "alpha_pattern": {"c_fc": 2.0, "1.mlp.up_proj": 2.0}},
        {"rank_pattern": {"0.attn.c_attn": 4, "q_proj": 4}, "alpha_pattern": {"c_fc": 2.0, "1.mlp.up_proj": 2.0}},
    ),
}


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_base(request.param, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_draws_outputs_and_gradients(base: Path, variant: str) -> None:
    mine, wanted = VARIANTS[variant]
    targets = TARGETS[base.name]
    torch.manual_seed(5)
    reference = peft.get_peft_model(
        theirs(base),
        peft.LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=list(targets),
            task_type="CAUSAL_LM",
            fan_in_fan_out=base.name == "gpt2",
            **wanted,
        ),
    )
    model = ours(base)
    torch.manual_seed(5)
    sites = attach(model, AdapterConfig("lora", rank=8, alpha=16, dropout=0.1, targets=targets, **mine))
    places = {name: value for name, value in reference.named_parameters() if value.requires_grad}
    pairs = [
        (places[f"base_model.model.{site.name}.lora_{part}.default.weight"], getattr(adapter, f"lora_{part}").weight)
        for site, adapter in adapters(model, "default")
        for part in "AB"
    ]
    assert len(pairs) == 2 * len(sites) and sum(p.numel() for p in places.values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    for wanted_tensor, tensor in pairs:
        assert torch.equal(wanted_tensor, tensor)
        with torch.no_grad():
            tensor += 0.1 * torch.randn(tensor.shape)
            wanted_tensor.copy_(tensor)
    outputs = []
    for network in (reference.train(), model.train()):
        torch.manual_seed(9)
        logits = network(some_ids())
        outputs.append(logits if isinstance(logits, Tensor) else logits.logits)
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for wanted_tensor, tensor in pairs:
        assert wanted_tensor.grad is not None and tensor.grad is not None and tensor.grad.any()
        scale = wanted_tensor.grad.abs().max()
        torch.testing.assert_close(tensor.grad / scale, wanted_tensor.grad / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "patterns"])
def test_files_go_both_ways_and_merging_gives_the_same(base: Path, variant: str, tmp_path: Path) -> None:
    config = AdapterConfig("lora", rank=8, alpha=16, targets=TARGETS[base.name], **VARIANTS[variant][0])
    model = ours(base)
    untrained = model(some_ids())
    attach(model, config)
    torch.testing.assert_close(model(some_ids()), untrained)  # it begins as nothing
    disturb(model)
    expected = model(some_ids())
    assert not torch.allclose(expected, untrained, atol=1e-2)
    save_adapter(model, config, tmp_path / "adapter", str(base))
    reference = peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(reference(some_ids()).logits, expected, rtol=1e-5, atol=1e-5)
    reference.save_pretrained(str(tmp_path / "again"))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "again").rank == 8
    assert torch.equal(loaded(some_ids()), expected)
    merge(model)
    torch.testing.assert_close(model(some_ids()), expected, rtol=1e-5, atol=1e-5)
    merged = reference.merge_and_unload()(some_ids()).logits
    torch.testing.assert_close(model(some_ids()), merged, rtol=1e-5, atol=1e-5)


def test_an_embedding_is_adapted_as_peft_does(tmp_path: Path, base: Path) -> None:
    name = {"gpt2": "wte", "llama": "embed_tokens"}[base.name]
    config = AdapterConfig("lora", rank=4, targets=(name,))
    model = ours(base)
    attach(model, config)
    disturb(model)
    expected = model(some_ids())
    save_adapter(model, config, tmp_path / "adapter", str(base))
    reference = peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(reference(some_ids()).logits, expected, rtol=1e-5, atol=1e-5)


def test_several_adapters_are_switched(base: Path) -> None:
    model = ours(base)
    plain = model(some_ids())
    outputs = {}
    for name in ("first", "second"):
        attach(model, AdapterConfig("lora", rank=2), name)
        for _, adapter in adapters(model, name):
            torch.nn.init.normal_(adapter.lora_B.weight, std=0.1)  # type: ignore[union-attr,arg-type]
        outputs[name] = model(some_ids())
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    activate(model, ["first"])
    assert torch.equal(model(some_ids()), outputs["first"])
    activate(model, [])
    assert torch.equal(model(some_ids()), plain) and not torch.allclose(outputs["first"], outputs["second"])
    assert trained == {key for key, value in model.named_parameters() if value.requires_grad}
    with pytest.raises(UserError, match="no adapter 'third'; there are first, second"):
        activate(model, ["third"])


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("gpt2", AdapterConfig("lora", rank=16, targets=TARGETS["gpt2"]), 2_359_296),
        ("gpt2-xl", AdapterConfig("lora", rank=16, targets=TARGETS["gpt2"]), 19_660_800),
        ("llama-3.2-3b", AdapterConfig("lora", rank=32, alpha=64), 48_627_712),
    ],
)
def test_trainable_counts_of_published_sizes(name: str, config: AdapterConfig, count: int) -> None:
    with torch.device("meta"):
        model = Decoder(preset(name))
        attach(model, config)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == count


def test_our_own_recipe_has_sites_too() -> None:
    with torch.device("meta"):
        model = Decoder(ModelConfig(vocab_size=64, layers=1, width=32, heads=2))
    assert "decoder.blocks.0.attention.query" in {site.name for site in find_sites(model)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_bdlora": True}, "use_bdlora ask for something"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights ask"),
        ({"bias": "all"}, "bias ask"),
        ({"r": 3}, "has shape"),
        ({"target_modules": ["c_attn"]}, "has no place for"),
        ({"target_modules": ["nothing"]}, "no layer is called 'nothing'; there are"),
    ],
)
@pytest.mark.parametrize("base", ["gpt2"], indirect=True)
def test_a_wrong_adapter_is_refused(change: dict[str, Any], message: str, tmp_path: Path, base: Path) -> None:
    config = AdapterConfig("lora", rank=4, targets=TARGETS["gpt2"])
    model = ours(base)
    attach(model, config)
    with pytest.raises(UserError, match="changes nothing"):
        save_adapter(model, config, tmp_path / "zero", str(base))
        load_adapter(ours(base), tmp_path / "zero")
    disturb(model)
    save_adapter(model, config, tmp_path / "adapter", str(base))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_adapter(ours(base), tmp_path / "adapter")
