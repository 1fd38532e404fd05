"""Files of adapters: modules saved whole, wrong bases, adapters that change nothing, fields that are not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from peft_models import TARGETS, disturb, ours, quantized, some_ids, theirs, write_base
from safetensors.torch import load_file, save_file

from common.errors import UserError
from model import Decoder, ModelConfig
from model.adapters.attach import activate, attach, names
from model.adapters.config import AdapterConfig
from model.adapters.files import load_adapter, save_adapter
from model.adapters.fingerprint import base_fingerprint, compare_bases
from model.weights import fill

LM: Any = {"task_type": "CAUSAL_LM"}
KINDS = {
    "lora": AdapterConfig("lora", rank=4),
    "dora": AdapterConfig("lora", rank=4, dora=True),
    "pissa": AdapterConfig("lora", rank=4, init="pissa"),
    "ia3": AdapterConfig("ia3"),
    "bottleneck": AdapterConfig("bottleneck", bottleneck_size=4),
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(request.param, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base("gpt2", tmp_path_factory.mktemp("base"))


def saved(base: Path, config: AdapterConfig, directory: Path) -> Decoder:
    """A model with a trained adapter, which is written."""
    model = ours(base)
    attach(model, config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.1)
    save_adapter(model, config, directory, str(base))
    return model


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("family", "config", "whole"),
    [
        ("gpt2", AdapterConfig("lora", ("c_fc",), modules_to_save=("wte", "ln_f")), 4),
        ("gpt2", AdapterConfig("lora", ("c_fc",), modules_to_save=("attn.c_attn", "0.mlp.c_proj")), 6),
        ("llama", AdapterConfig("lora", ("q_proj",), modules_to_save=("lm_head", "norm", "embed_tokens")), 7),
        ("llama", AdapterConfig("ia3", modules_to_save=("lm_head",)), 1),
        ("gpt2", AdapterConfig("ia3", modules_to_save=("wte",)), 2),
        ("gpt2", AdapterConfig("prompt", virtual_tokens=3, modules_to_save=("ln_f",)), 2),
    ],
    ids=lambda value: "-".join((value.method, *value.modules_to_save)) if isinstance(value, AdapterConfig) else None,
)
def test_modules_saved_whole_go_both_ways(family: str, config: AdapterConfig, whole: int, tmp_path: Path) -> None:
    base = write_base(family, tmp_path)
    model = saved(base, config, tmp_path / "adapter")
    expected = model(some_ids())
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    small = ("lora_A.weight", "lora_B.weight", "ia3_l", "prompt_embeddings")
    assert len([key for key in stored if not key.endswith(small)]) == whole
    reference = peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(reference(some_ids()).logits[:, -17:], expected, rtol=1e-5, atol=1e-5)
    reference.save_pretrained(str(tmp_path / "again"))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "again").modules_to_save
    torch.testing.assert_close(loaded(some_ids()), expected, rtol=1e-6, atol=1e-6)
    assert {key for key, value in loaded.named_parameters() if value.requires_grad} == {
        key for key, value in model.named_parameters() if value.requires_grad
    }
    with pytest.raises(UserError, match="cannot be switched off"):
        activate(loaded, ())
    with pytest.raises(UserError, match="use one adapter only"):
        attach(loaded, AdapterConfig("lora"), "second")


def test_a_tied_head_goes_with_the_embedding(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tied to the embedding; name 'wte' instead"):
        attach(ours(gpt2), AdapterConfig("lora", modules_to_save=("lm_head",)))
    config = peft.LoraConfig(**LM, target_modules=["c_fc"], modules_to_save=["wte"], fan_in_fan_out=True)
    peft.get_peft_model(theirs(gpt2), config).save_pretrained(str(tmp_path / "apart"))
    with pytest.raises(UserError, match="head was trained apart from its embedding"):
        load_adapter(ours(gpt2), tmp_path / "apart")
    tied = write_base("llama", tmp_path, tie_word_embeddings=True)
    config = peft.LoraConfig(
        **LM, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    reference = peft.get_peft_model(theirs(tied), config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    reference.save_pretrained(str(tmp_path / "one"))
    model = ours(tied)
    load_adapter(model, tmp_path / "one")
    torch.testing.assert_close(model(some_ids()), reference(some_ids()).logits, rtol=1e-5, atol=1e-5)


def test_a_module_to_be_saved_must_be_there_and_dense(gpt2: Path) -> None:
    with pytest.raises(UserError, match=r"no module is called 'score'; there are transformer.wte"):
        attach(ours(gpt2), AdapterConfig("lora", modules_to_save=("score",)))
    with pytest.raises(UserError, match="is quantized, so it is not trained"):
        attach(quantized(ours(gpt2)), AdapterConfig("lora", ("c_attn",), modules_to_save=("c_fc",)))


def test_a_lora_of_the_embedding_by_peft_is_read(base: Path, tmp_path: Path) -> None:
    name = {"gpt2": "wte", "llama": "embed_tokens"}[base.name]
    torch.manual_seed(1)
    reference = peft.get_peft_model(theirs(base), peft.LoraConfig(**LM, target_modules=[name], r=4)).eval()
    model = ours(base)
    torch.manual_seed(1)
    attach(model, AdapterConfig("lora", (name,), rank=4, alpha=8))
    adapter = model.embedding.slot["default"]
    wanted = {key: value for key, value in reference.named_parameters() if value.requires_grad}
    for key, value in adapter.named_parameters():
        (same,) = [other for theirs_key, other in wanted.items() if key in theirs_key]
        assert torch.equal(value, same)
        same.data.normal_()
    expected = reference(some_ids()).logits
    reference.save_pretrained(str(tmp_path / "theirs"))
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    with_base = any(key.endswith("base_layer.weight") for key in load_file(path))
    assert with_base == (base.name == "llama")
    loaded = ours(base)
    load_adapter(loaded, tmp_path / "theirs")
    torch.testing.assert_close(loaded(some_ids()), expected, rtol=1e-5, atol=1e-5)
    if with_base:
        save_file({key: value + 1 for key, value in load_file(path).items()}, path)
        with pytest.raises(UserError, match="is not the embedding of this model"):
            load_adapter(ours(base), tmp_path / "theirs")


def test_our_own_recipe_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(vocab_size=128, layers=2, width=32, heads=2, tied=False)).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    config = AdapterConfig("ia3", modules_to_save=("head",))
    assert [site.name.split("attention.")[-1] for site in attach(model, config)][:2] == ["key", "value"]
    disturb(model)
    save_adapter(model, config, tmp_path / "adapter", "runs/mini")
    other = Decoder(model.config).eval()
    fill(other, weights.items(), "here")
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(other(some_ids()), model(some_ids()))
    assert "decoder.head.weight" in "".join(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused_and_leaves_the_model_alone(kind: str, base: Path, tmp_path: Path) -> None:
    saved(base, KINDS[kind], tmp_path / "adapter")
    other = ours(base)
    with torch.no_grad():
        other.blocks[1].mlp.down.weight *= 1.5  # type: ignore[union-attr,operator]
    with pytest.raises(UserError, match="was trained on another base: the weights"):
        load_adapter(other, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(path)
    save_file(
        {key: value.flatten()[:1] if number == 0 else value for number, (key, value) in enumerate(stored.items())}, path
    )
    attach(other, AdapterConfig("ia3"), "first")
    before = {key: value.requires_grad for key, value in other.named_parameters()}
    with pytest.raises(UserError, match=r"has shape .* it was trained on another base"):
        load_adapter(other, tmp_path / "adapter")
    assert names(other) == ["first"] and before == {key: value.requires_grad for key, value in other.named_parameters()}
    assert other.blocks[0].mlp.down.slot.active == ("first",)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_copies_of_a_base_are_the_same_base(
    dtype: torch.dtype | None, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fewer bits, or quantized, when there is a word about it."""
    saved(base, KINDS["lora"], tmp_path / "full")
    copy = quantized(ours(base)) if dtype is None else ours(base).to(dtype)
    load_adapter(copy, tmp_path / "full")
    assert ("note: " in capsys.readouterr().err) == (dtype is None)
    disturb(copy)
    save_adapter(copy, KINDS["lora"], tmp_path / "low", str(base))
    load_adapter(ours(base), tmp_path / "low")
    again = quantized(ours(base)) if dtype is None else ours(base).to(dtype)
    capsys.readouterr()
    load_adapter(again, tmp_path / "low")
    assert not capsys.readouterr().err
    with torch.no_grad():
        again.embedding.weight += 0.1
    assert compare_bases(base_fingerprint(again), base_fingerprint(copy)) == "different"


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_changes_nothing_is_refused(kind: str, base: Path, tmp_path: Path) -> None:
    model = ours(base)
    attach(model, KINDS[kind])
    save_adapter(model, KINDS[kind], tmp_path / "adapter", str(base))
    loaded = ours(base)
    with pytest.raises(UserError, match="changes nothing"):
        load_adapter(loaded, tmp_path / "adapter")
    assert names(loaded) == []


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("lora", {"lora_bias": True}, "lora_bias ask for something"),
        ("lora", {"feedforward_modules": ["c_fc"]}, "feedforward_modules ask"),
        ("lora", {"exclude_modules": ".*c_fc"}, "exclude_modules ask"),
        ("lora", {"target_modules": []}, "target_modules is empty"),
        ("lora", {"lora_alpha": "much"}, "is damaged"),
        ("lora", {"r": 0}, "asks for what cannot be: adapter.rank must be positive"),
        ("ia3", {"use_dora": True}, "use_dora ask"),
        ("ia3", {"feedforward_modules": ".*"}, "feedforward_modules ask"),
        ("ia3", {"peft_type": "LOHA"}, "peft_type is 'LOHA'; known are LORA, IA3"),
        ("prefix", {"num_transformer_submodules": 2}, "num_transformer_submodules ask"),
        ("prefix", {"num_attention_heads": 4, "num_layers": 1}, "num_attention_heads is 4, of this model 2"),
        ("prompt", {"num_virtual_tokens": 4}, "has shape"),
        ("prompt", {"prompt_tuning_mystery": 1}, "prompt_tuning_mystery ask"),
        ("bottleneck", {"r": 4}, ": r ask"),
    ],
)
def test_fields_that_are_not_known_are_refused(
    kind: str, change: dict[str, Any], message: str, gpt2: Path, tmp_path: Path
) -> None:
    virtual = {"prefix": AdapterConfig("prefix", virtual_tokens=3), "prompt": AdapterConfig("prompt", virtual_tokens=3)}
    saved(gpt2, (KINDS | virtual)[kind], tmp_path / "adapter")
    edit(tmp_path / "adapter", unknown_but_empty=None)
    load_adapter(ours(gpt2), tmp_path / "adapter")
    edit(tmp_path / "adapter", **change)
    with pytest.raises(UserError, match=message):
        load_adapter(ours(gpt2), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("lora", {"r": float("inf")}, "r must be a whole number"),
        ("lora", {"r": 16.7}, "r must be a whole number"),
        ("lora", {"r": 2**70}, "r or rank_pattern in adapter_config.json asks for"),
        ("lora", {"r": 10**10}, "r or rank_pattern in adapter_config.json asks for"),
        ("bottleneck", {"bottleneck_size": 10**10}, "bottleneck_size in adapter_config.json asks for"),
        ("prefix", {"num_virtual_tokens": 10**10}, "num_virtual_tokens in adapter_config.json asks for"),
        ("lora", {"lora_alpha": float("inf")}, "lora_alpha must be a finite number"),
        ("lora", {"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ("lora", {"rank_pattern": {"c_fc": 0.5}}, "rank_pattern: c_fc must be a whole number"),
        ("lora", {"rank_pattern": {"c_fc": 10**10}}, "r or rank_pattern in adapter_config.json asks for"),
        ("lora", {"rank_pattern": {"(?i)c_fc": 4}}, "rank_pattern: .* is no regular expression"),
        ("lora", {"rank_pattern": [1]}, "rank_pattern must be an object"),
        ("lora", {"layers_to_transform": [[0]]}, "layers_to_transform must be a whole number"),
        ("lora", {"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]"),
        ("lora", {"modules_to_save": "lm_head"}, "modules_to_save must be a list of names"),
        ("lora", {"target_modules": [1, "c_fc"]}, "target_modules must be a list of names"),
        ("lora", {"target_modules": "(" * 5000}, "is no regular expression"),
        ("lora", {"target_modules": "a{99999999999999999999}"}, "is no regular expression"),
        ("lora", {"target_modules": "(([a-z._0-9])+)+X"}, "target_modules, .* takes too long"),
        ("lora", {"alpha_pattern": {"(([a-z._0-9])+)+X": 4}}, "alpha_pattern takes too long"),
    ],
)
def test_a_hostile_config_is_refused_at_once(
    kind: str, change: dict[str, Any], message: str, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.adapters.patterns.SECONDS", 1.0)
    saved(gpt2, (KINDS | {"prefix": AdapterConfig("prefix", virtual_tokens=3)})[kind], tmp_path / "adapter")
    edit(tmp_path / "adapter", **change)
    model = ours(gpt2)
    with pytest.raises(UserError, match=message) as caught:
        load_adapter(model, tmp_path / "adapter")
    assert str(tmp_path / "adapter") in str(caught.value) and names(model) == []


@pytest.mark.parametrize("text", ["[" * 200_000, "[[1, 2]]", " " * 2**20 + "{}"], ids=["deep", "list", "long"])
def test_a_file_that_is_no_config_is_refused(text: str, gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match="is missing or damaged"):
        load_adapter(ours(gpt2), tmp_path)


def test_regular_expressions_of_peft_are_read(gpt2: Path, tmp_path: Path) -> None:
    pattern = r"transformer\.h\.\d+\.(?:attn|mlp)\.(?!c_proj)c_.*"
    config = peft.LoraConfig(**LM, target_modules=pattern, rank_pattern={r"h\.0\..*": 3}, r=2, fan_in_fan_out=True)
    reference = peft.get_peft_model(theirs(gpt2), config).eval()
    for parameter in reference.parameters():
        parameter.data.add_(0.01 if parameter.requires_grad else 0)
    reference.save_pretrained(str(tmp_path / "theirs"))
    model = ours(gpt2)
    assert load_adapter(model, tmp_path / "theirs").target_pattern == pattern
    torch.testing.assert_close(model(some_ids()), reference(some_ids()).logits, rtol=1e-5, atol=1e-5)


def test_a_diverged_or_missing_adapter_is_refused(gpt2: Path, tmp_path: Path) -> None:
    model = saved(gpt2, KINDS["ia3"], tmp_path / "adapter")
    with torch.no_grad():
        model.blocks[0].mlp.down.slot["default"].ia3_l[0, 0] = torch.nan  # type: ignore[union-attr,index]
    save_adapter(model, KINDS["ia3"], tmp_path / "diverged", str(gpt2))
    with pytest.raises(UserError, match="is not finite; its training had diverged"):
        load_adapter(ours(gpt2), tmp_path / "diverged")
    with pytest.raises(UserError, match="missing or damaged"):
        load_adapter(ours(gpt2), tmp_path / "nowhere")
    with pytest.raises(UserError, match="no adapter 'other' to be saved; there are default"):
        save_adapter(model, KINDS["ia3"], tmp_path / "other", str(gpt2), "other")
    with pytest.raises(UserError, match="exists already"):
        save_adapter(model, KINDS["ia3"], tmp_path / "adapter", str(gpt2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_says_what_it_is_and_how_it_is_loaded(kind: str, base: Path, tmp_path: Path) -> None:
    saved(base, KINDS[kind], tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    body = ModelCard(text).text
    of_peft = kind != "bottleneck"
    values = ModelCardData(**ModelCard(text).data.to_dict())
    assert values.base_model == str(base) and values.library_name == ("peft" if of_peft else "mini-gpt")
    assert (
        values.tags is not None
        and KINDS[kind].method in values.tags
        and ("PeftModel.from_pretrained" in body) == of_peft
    )
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert f"{sum(value.numel() for value in stored.values()):,} numbers" in body and "load_adapter" in body


def test_targets_of_both_families_stay_those_of_peft(base: Path) -> None:
    assert {site.name.rsplit(".", 1)[-1] for site in attach(ours(base), AdapterConfig("lora"))} == set(
        TARGETS[base.name]
    )
