"""IA3, prefix and prompt tuning and PiSSA against PEFT; bottleneck adapters; dtypes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft_models import TARGETS, disturb, ours, quantized, some_ids, theirs, write_base
from torch import Tensor, nn

from common.errors import UserError
from model import Decoder, ModelConfig
from model.adapters.attach import activate, adapters, attach, base_parameters, merge, names, remove
from model.adapters.config import AdapterConfig
from model.adapters.files import load_adapter, save_adapter
from model.adapters.low_rank import LowRank
from model.adapters.scaling import Scaling
from model.weights import Storage, empty_decoder, fill

LM: Any = {"task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(request.param, tmp_path_factory.mktemp("base"))


def close(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_ia3_is_that_of_peft(base: Path, tmp_path: Path) -> None:
    reference = peft.get_peft_model(theirs(base), peft.IA3Config(**LM))
    model = ours(base)
    before = model(some_ids())
    sites = attach(model, AdapterConfig("ia3"))
    assert torch.equal(model(some_ids()), before)
    vectors = {key: value for key, value in reference.named_parameters() if value.requires_grad}
    assert trainable(model) == trainable(reference) and len(sites) == len(vectors)
    disturb(model)
    pairs = []
    for site, adapter in adapters(model, "default"):
        assert isinstance(adapter, Scaling)
        vector = vectors[f"base_model.model.{site.name}.ia3_l.default"]
        assert vector.shape == adapter.ia3_l.shape
        vector.data.copy_(adapter.ia3_l.data)
        pairs.append((adapter.ia3_l, vector))
    expected = reference.eval()(some_ids()).logits
    close(model(some_ids()), expected)
    model(some_ids()).square().sum().backward()
    expected.square().sum().backward()
    for mine, wanted in pairs:
        assert mine.grad is not None and wanted.grad is not None and mine.grad.any()
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-4)
    reference.save_pretrained(str(tmp_path / "theirs"))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "theirs").method == "ia3"
    assert torch.equal(loaded(some_ids()), model(some_ids()))
    save_adapter(model, AdapterConfig("ia3"), tmp_path / "ours", str(base))
    again = peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "ours"))
    close(again(some_ids()).logits, expected)
    merge(model)
    merged = again.merge_and_unload()
    close(model(some_ids()), expected)
    close(merged(some_ids()).logits, expected)


def test_feedforward_modules_of_a_file_are_kept(tmp_path: Path) -> None:
    base = write_base("gpt2", tmp_path)
    config = peft.IA3Config(**LM, target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"], fan_in_fan_out=True)
    reference = peft.get_peft_model(theirs(base), config)
    for key, value in reference.named_parameters():
        if "ia3" in key:
            value.data.uniform_(0.5, 2)
    reference.save_pretrained(str(tmp_path / "theirs"))
    model = ours(base)
    load_adapter(model, tmp_path / "theirs")
    close(model(some_ids()), reference.eval()(some_ids()).logits)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_trained_positions_are_those_of_peft(base: Path, tmp_path: Path, method: Any) -> None:
    config = AdapterConfig(method, virtual_tokens=3)
    kind = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}[method]
    torch.manual_seed(5)
    reference = peft.get_peft_model(theirs(base), kind(**LM, num_virtual_tokens=3))
    model = ours(base)
    torch.manual_seed(5)
    assert attach(model, config) == [] and names(model) == ["default"] and trainable(model) == trainable(reference)
    # The sequences that PEFT's model gives begin with the positions of the prompt.
    logits = reference.eval()(some_ids()).logits[:, -17:]
    close(model(some_ids()), logits)
    model(some_ids()).square().sum().backward()
    logits.square().sum().backward()
    wanted = reference.prompt_encoder.default.embedding.weight.grad
    assert model.virtual is not None and wanted is not None
    (mine,) = [parameter.grad for parameter in model.virtual.parameters()]
    assert mine is not None and mine.any()
    close(mine / wanted.abs().max(), wanted / wanted.abs().max())
    save_adapter(model, config, tmp_path / "ours", str(base))
    close(peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "ours"))(some_ids()).logits[:, -17:], logits)
    reference.save_pretrained(str(tmp_path / "theirs"))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "theirs") == config
    assert torch.equal(loaded(some_ids()), model(some_ids()))
    activate(loaded, ())
    assert torch.equal(loaded(some_ids()), ours(base)(some_ids())) and names(loaded) == ["default"]
    assert loaded.room == loaded.config.context_length
    activate(loaded, ("default",))
    assert torch.equal(loaded(some_ids()), model(some_ids()))
    remove(loaded)
    assert torch.equal(loaded(some_ids()), ours(base)(some_ids())) and names(loaded) == []


def test_a_projected_prefix_is_loaded_from_what_it_comes_to(base: Path, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(**LM, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7)
    reference = peft.get_peft_model(theirs(base), config)
    reference.save_pretrained(str(tmp_path / "theirs"))
    model = ours(base)
    load_adapter(model, tmp_path / "theirs")
    close(model(some_ids()), reference.eval()(some_ids()).logits)


def test_a_prompt_begins_as_a_text(base: Path, tmp_path: Path) -> None:
    model = ours(base)
    expected = model(torch.tensor([[5, 6, 5, 6, 5, 9, 8]]))[:, 5:]
    config = AdapterConfig("prompt", virtual_tokens=5, prompt_text="ab")
    for ids, message in ((None, "token ids belong together"), ([], "token ids are none"), ([128], "vocabulary")):
        with pytest.raises(UserError, match=message):
            attach(model, config, prompt_ids=ids)
    attach(model, config, prompt_ids=[5, 6])
    close(model(torch.tensor([[9, 8]])), expected)
    save_adapter(model, config, tmp_path / "adapter", str(base))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "adapter") == config
    assert torch.equal(loaded(some_ids()), model(some_ids()))
    close(
        peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "adapter"))(some_ids()).logits[:, -17:],
        loaded(some_ids()),
    )


def test_only_one_adapter_stands_before_the_text() -> None:
    model = Decoder(ModelConfig(vocab_size=61, layers=1, width=32, heads=2, context_length=24))
    attach(model, AdapterConfig("prefix", virtual_tokens=4), "first")
    attach(model, AdapterConfig("lora"), "second")
    with pytest.raises(UserError, match="'first' stands before the text already"):
        attach(model, AdapterConfig("prompt", virtual_tokens=4), "third")
    assert names(model) == ["second", "first"] and model.room == 24
    activate(model, ("first", "second"))
    assert model.room == 20
    with pytest.raises(UserError, match="24 leave no room"):
        attach(Decoder(model.config), AdapterConfig("prefix", virtual_tokens=24))
    with pytest.raises(UserError, match="positions before the text are no change of a weight"):
        merge(model, "first")


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_pissa_is_that_of_peft_on_the_base_as_it_is(base: Path, tmp_path: Path, rslora: bool, dropout: float) -> None:
    config = AdapterConfig(
        "lora",
        TARGETS[base.name],
        rank=4,
        alpha=6,
        rslora=rslora,
        dropout=dropout,
        init="pissa",
        rank_pattern={"c_fc": 2},
    )
    model, weights = ours(base), ours(base).state_dict()
    attach(model, config)
    close(model(some_ids()), ours(base)(some_ids()), 1e-6)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if key in weights)
    reference = peft.get_peft_model(
        theirs(base),
        peft.LoraConfig(
            **LM,
            r=4,
            lora_alpha=6,
            use_rslora=rslora,
            lora_dropout=dropout,
            init_lora_weights="pissa",
            rank_pattern={"c_fc": 2},
            target_modules=list(TARGETS[base.name]),
            fan_in_fan_out=base.name == "gpt2",
        ),
    )
    places = {name: value for name, value in reference.named_parameters() if value.requires_grad}
    pairs = []
    for site, adapter in adapters(model, "default"):
        assert isinstance(adapter, LowRank)
        for part in "AB":
            mine = getattr(adapter, f"lora_{part}").weight
            wanted = places[f"base_model.model.{site.name}.lora_{part}.default.weight"]
            close(mine, wanted)
            pairs.append((mine, wanted))
    with torch.no_grad():
        for mine, wanted in pairs:
            mine += 0.1 * torch.randn(mine.shape)
            wanted.copy_(mine)
    outputs = []
    for network in (reference.train(), model.train()):
        torch.manual_seed(9)
        logits = network(some_ids())
        outputs.append(logits if isinstance(logits, Tensor) else logits.logits)
        outputs[-1].square().sum().backward()
    close(outputs[1], outputs[0])
    for mine, wanted in pairs:
        assert mine.grad is not None and wanted.grad is not None
        close(mine.grad / wanted.grad.abs().max(), wanted.grad / wanted.grad.abs().max())
    expected = model.eval()(some_ids())
    save_adapter(model, config, tmp_path / "ours", str(base))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "ours").rank == 8
    close(loaded(some_ids()), expected)
    close(peft.PeftModel.from_pretrained(theirs(base), str(tmp_path / "ours"))(some_ids()).logits, expected)
    merge(model)
    close(model(some_ids()), expected)
    close(model(some_ids()), reference.merge_and_unload().eval()(some_ids()).logits)


def test_the_start_of_pissa_is_part_of_the_state(base: Path) -> None:
    """So a checkpoint in the middle of a run restores it."""
    config = AdapterConfig("lora", rank=2, init="pissa")
    model, other = ours(base), ours(base)
    attach(model, config)
    disturb(model)
    with torch.no_grad():
        other.blocks.requires_grad_(False)
        for parameter in other.parameters():
            parameter.add_(0.01)  # another start
    attach(other, config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(some_ids()), model(some_ids()))


def test_pissa_of_four_bits_begins_at_what_they_stand_for(base: Path) -> None:
    model = quantized(ours(base))
    before = model(some_ids())
    attach(model, AdapterConfig("lora", rank=4, init="pissa"))
    close(model(some_ids()), before)
    (adapter,) = [each for site, each in adapters(model, "default") if "mlp.c_fc" in site.name or "up" in site.name][:1]
    assert isinstance(adapter, LowRank) and adapter.lora_B.weight.any()


def test_a_bottleneck_stands_behind_a_layer(base: Path, tmp_path: Path) -> None:
    config = AdapterConfig("bottleneck", bottleneck_size=5)
    model = ours(base)
    before = model(some_ids())
    sites = attach(model, config)
    own = {"gpt2": ["attn.c_proj", "mlp.c_proj"], "llama": ["self_attn.o_proj", "mlp.down_proj"]}[base.name]
    assert [".".join(site.name.split(".")[-2:]) for site in sites] == 2 * own
    assert trainable(model) == 4 * (2 * 64 * 5 + 64 + 5) and torch.equal(model(some_ids()), before)
    disturb(model)
    (adapter,) = [each for _, each in adapters(model, "default")][:1]
    layer, x = sites[0].layers[0], torch.randn(2, 3, 64)
    inner = torch.nn.functional.gelu(layer.plain(x) @ adapter.down.weight.T + adapter.down.bias)  # type: ignore[union-attr,operator]
    close(layer(x), layer.plain(x) + inner @ adapter.up.weight.T + adapter.up.bias)  # type: ignore[union-attr,operator]
    expected = model(some_ids())
    assert not torch.allclose(expected, before, atol=1e-2)
    save_adapter(model, config, tmp_path / "adapter", str(base))
    loaded = ours(base)
    assert load_adapter(loaded, tmp_path / "adapter").bottleneck_size == 5
    assert torch.equal(loaded(some_ids()), expected)
    with pytest.raises(UserError, match="no linear change of the weight of"):
        merge(model)


EVERY_KIND = pytest.mark.parametrize(
    "config",
    [
        AdapterConfig("lora", rank=4),
        AdapterConfig("lora", rank=4, dora=True),
        AdapterConfig("lora", rank=4, init="pissa"),
        AdapterConfig("ia3"),
        AdapterConfig("bottleneck", bottleneck_size=4),
        AdapterConfig("prefix", virtual_tokens=2),
        AdapterConfig("prompt", virtual_tokens=2),
    ],
    ids=lambda config: f"{config.method}-{config.init}-{config.dora}",
)


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_adapters_learn_in_fp32(base: Path, config: AdapterConfig, dtype: torch.dtype) -> None:
    model = ours(base).train()
    attach(model, config)
    disturb(model)
    exact = model(some_ids(), some_ids())
    with torch.autocast("cpu", dtype):
        loss = model(some_ids(), some_ids())
    torch.testing.assert_close(loss.float(), exact, rtol=2e-2, atol=2e-2)
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.dtype == torch.float32 for parameter in trained)
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in trained)
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained)


@EVERY_KIND
def test_a_base_in_bf16_has_adapters_in_fp32(base: Path, config: AdapterConfig) -> None:
    """As in PEFT; without autocast."""
    torch.manual_seed(1)
    exact = ours(base).train()
    attach(exact, replace(config, dropout=1e-6) if config.method == "lora" else config)
    disturb(exact)
    model = empty_decoder(exact.config, torch.device("cpu"), Storage(dtype="bf16")).train()
    fill(model, base_parameters(exact).items(), "the base")
    attach(model, replace(config, dropout=1e-6) if config.method == "lora" else config)
    model.load_state_dict(exact.state_dict())
    loss = model(some_ids(), some_ids())
    torch.testing.assert_close(loss.float(), exact(some_ids(), some_ids()), rtol=2e-2, atol=2e-2)
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.dtype == torch.float32 and parameter.grad is not None for parameter in trained)
