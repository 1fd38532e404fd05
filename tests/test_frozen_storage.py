"""A frozen base in four bits or half precision against the same numbers in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UserError
from model import Decoder, KVCache, ModelConfig
from model.activations import Checkpointing
from model.adapters.attach import attach
from model.adapters.config import AdapterConfig
from model.device import DTYPES
from model.nf4_weight import Nf4Weight
from model.presets import preset
from model.slots import Linear
from model.weights import FULL, Storage, empty_decoder, fill, load_decoder

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"vocab_size": 96, "context_length": 48, "layers": 2, "width": 64, "heads": 4}
CONFIGS = {
    "gpt2": replace(preset("gpt2"), **SIZES),
    "llama": replace(preset("llama-3.1-8b"), kv_heads=2, mlp_width=128, **SIZES),
    "mini": ModelConfig(value_embeddings=1, **SIZES),
}
STORAGES = [
    Storage(dtype="bf16"),
    Storage(dtype="fp16"),
    Storage("nf4"),
    Storage("nf4-single"),
    Storage("nf4", "bf16"),
    Storage("nf4-single", "fp16"),
]


def weights_of(config: ModelConfig) -> dict[str, Tensor]:
    """None of them at its initial value."""
    torch.manual_seed(0)
    return {name: 0.1 * torch.randn(weight.shape) for name, weight in Decoder(config).named_parameters()}


def stored(config: ModelConfig, storage: Storage) -> Decoder:
    model = empty_decoder(config, CPU, storage)
    fill(model, weights_of(config).items(), "here")
    return model


def dense(model: Decoder) -> Decoder:
    """The same numbers, all in fp32."""
    copy = empty_decoder(model.config, CPU)
    values = {name: value.detach() for name, value in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            values[f"{name}.weight"] = module.dense_weight()
    fill(copy, values.items(), "there")
    return copy


def some_ids(seed: int = 3, time: int = 24) -> Tensor:
    return torch.randint(96, (2, time), generator=torch.Generator().manual_seed(seed))


def adapted(model: Decoder, **fields: Any) -> Decoder:
    """With LoRA on all blocks, as after some training."""
    torch.manual_seed(1)
    attach(model, AdapterConfig(method="lora", rank=4, init="random", **fields))
    return model.train()


def gradients(model: Decoder, precision: str = "fp32") -> dict[str, Tensor]:
    torch.manual_seed(2)  # of dropout
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = model(some_ids(), some_ids(4))
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found and all(gradient is not None and gradient.any() for gradient in found.values())
    return {
        "loss": loss.detach(),
        **{name: gradient.clone() for name, gradient in found.items() if gradient is not None},
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_frozen_base_computes_with_the_numbers_that_it_stands_for(name: str, storage: Storage) -> None:
    model = stored(CONFIGS[name], storage)
    reference = dense(model)
    expected = reference(some_ids())
    assert expected.dtype == model(some_ids()).dtype == torch.float32
    torch.testing.assert_close(model(some_ids()), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model.token_losses(some_ids(), some_ids(4)), reference.token_losses(some_ids(), some_ids(4)), rtol=0, atol=1e-5
    )
    cache = KVCache(model.config, 2, 24, CPU, torch.float32)
    steps = [model(part, cache=cache) for part in some_ids().split([10, 1, 13], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=1e-4)
    mine, wanted = gradients(adapted(model)), gradients(adapted(reference))
    assert mine.keys() == wanted.keys()
    for key, gradient in mine.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-4 * wanted[key].abs().max().item())


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_under_autocast_it_computes_as_fp32_weights_do(storage: Storage) -> None:
    model = stored(CONFIGS["gpt2"], storage)
    reference = adapted(dense(model))
    mine, wanted = gradients(adapted(model), "bf16"), gradients(reference, "bf16")
    assert mine.keys() == wanted.keys()
    for key, gradient in mine.items():
        assert (gradient - wanted[key]).norm() <= 0.02 * wanted[key].norm(), key


@pytest.mark.parametrize("storage", [FULL, *STORAGES], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_the_architecture(name: str, storage: Storage) -> None:
    plain, model = Decoder(CONFIGS[name]), stored(CONFIGS[name], storage)
    for decoder in (plain, model):
        decoder.requires_grad_(False)  # what is frozen costs less, however it is kept
    assert model.parameter_count() == plain.parameter_count()
    assert model.flops_per_token() == plain.flops_per_token()
    assert {key: weight.shape for key, weight in model.weights()} == {
        key: weight.shape for key, weight in plain.named_parameters()
    }


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_only_matrices_are_stored_otherwise_and_those_are_frozen(name: str, storage: Storage) -> None:
    model = stored(CONFIGS[name], storage)
    wanted = DTYPES[storage.dtype]
    for key, parameter in model.named_parameters():
        assert parameter.dtype == (wanted if parameter.ndim == 2 else torch.float32), key
        assert parameter.requires_grad == (parameter.dtype == torch.float32), key
    inside = [module for module in model.blocks.modules() if isinstance(module, Linear)]
    assert len(inside) == 2 * (7 if name == "llama" else 6)
    for layer in inside:
        assert isinstance(layer.quantized, Nf4Weight) == (layer.weight is None) == (storage.quantization != "none")
    if storage.quantization != "none":
        assert not [
            key for key in model.state_dict() if key.startswith("blocks") and key.endswith(("up.weight", "packed"))
        ]
        model.load_state_dict(model.state_dict())
        assert {type(layer.quantized.nf4.offset) for layer in inside if isinstance(layer.quantized, Nf4Weight)} == {
            Tensor if storage.quantization == "nf4" else type(None)
        }


def test_weights_can_be_drawn_anew_around_a_quantised_base() -> None:
    model = stored(CONFIGS["gpt2"], Storage("nf4", "bf16"))
    layer = model.get_submodule("blocks.0.mlp.up")
    assert isinstance(layer, Linear)
    before = layer.dense_weight()
    model.initialize()
    assert torch.equal(layer.dense_weight(), before)
    assert model.embedding.weight.float().std().item() == pytest.approx(0.02, rel=0.05)


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda w: w.pop("blocks.1.mlp.up.weight"), "here lacks blocks.1.mlp.up.weight"),
    "extra": (lambda w: w.update(extra=torch.ones(2)), "here: extra does not belong"),
    "twice": (lambda w: w.update({"blocks.0.mlp.up.quantized": torch.ones(2)}), "does not belong"),
    "shape": (lambda w: w.update({"blocks.0.mlp.up.weight": torch.ones(64, 64)}), r"needs \(256, 64\)"),
    "nan": (lambda w: w["blocks.0.mlp.up.weight"].div_(0), "here: blocks.0.mlp.up.weight: .*NaN or infinity"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_are_not_its_own_are_refused(change: str) -> None:
    weights, (make, message) = weights_of(CONFIGS["gpt2"]), CHANGES[change]
    make(weights)
    with pytest.raises(UserError, match=message):
        fill(empty_decoder(CONFIGS["gpt2"], CPU, Storage("nf4")), weights.items(), "here")


def test_what_fp16_cannot_hold_is_refused() -> None:
    weights = weights_of(CONFIGS["gpt2"])
    weights["embedding.weight"][0, 0] = 1e5
    with pytest.raises(UserError, match=r"here: embedding.weight .* bf16"):
        fill(empty_decoder(CONFIGS["gpt2"], CPU, Storage(dtype="fp16")), weights.items(), "here")
    fill(empty_decoder(CONFIGS["gpt2"], CPU, Storage(dtype="bf16")), weights.items(), "here")


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_file_is_read_into_it(storage: Storage, tmp_path: Path) -> None:
    save_file(weights_of(CONFIGS["llama"]), tmp_path / "model.safetensors")
    read = load_decoder(CONFIGS["llama"], tmp_path / "model.safetensors", CPU, storage)
    assert torch.equal(read(some_ids()), stored(CONFIGS["llama"], storage)(some_ids()))


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_dora_begins_with_the_norms_of_what_is_stored(storage: Storage) -> None:
    model = stored(CONFIGS["llama"], storage)
    without = model(some_ids())
    attach(model, AdapterConfig(method="lora", rank=4, dora=True))
    torch.testing.assert_close(model(some_ids()), without, rtol=0, atol=1e-5)
    model = stored(CONFIGS["llama"], storage)
    reference = adapted(dense(model), dora=True)
    mine, wanted = gradients(adapted(model, dora=True)), gradients(reference)
    for key, gradient in mine.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-4 * wanted[key].abs().max().item())


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("storage", [FULL, Storage(dtype="bf16"), Storage("nf4", "bf16")], ids=str)
def test_activation_checkpointing_changes_no_gradient(
    storage: Storage, precision: str, checkpointing: Checkpointing
) -> None:
    """The embedding being frozen, nothing that goes into the first block asks for a gradient."""
    model = adapted(stored(CONFIGS["llama"], storage), dropout=0.1)
    expected = gradients(model, precision)
    model.activation_checkpointing = checkpointing
    assert kept_bytes(model) < kept_bytes(with_checkpointing(model, "none"))
    found = gradients(with_checkpointing(model, checkpointing), precision)
    for key, gradient in expected.items():
        assert torch.equal(found[key], gradient), key


def with_checkpointing(model: Decoder, checkpointing: Checkpointing) -> Decoder:
    model.activation_checkpointing = checkpointing
    return model


def kept_bytes(model: Decoder) -> int:
    """What a forward pass keeps for the backward pass, the weights themselves left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(some_ids(), some_ids(4))
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_no_more_is_kept_for_the_backward_pass_than_of_a_plain_frozen_base(storage: Storage) -> None:
    """Neither a weight in the dtype of the product, nor what only its gradient would need."""
    plain, model = adapted(stored(CONFIGS["llama"], FULL)), adapted(stored(CONFIGS["llama"], storage))
    assert kept_bytes(model) <= kept_bytes(plain)


@pytest.mark.parametrize("storage", [FULL, *STORAGES], ids=str)
def test_no_gradient_by_a_frozen_weight_is_worked_out(storage: Storage) -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.out):
                products.append(tuple(result.shape))
            return result

    products: list[tuple[int, ...]] = []
    model = adapted(stored(CONFIGS["llama"], storage))
    with Watch():
        model(some_ids(), some_ids(4)).backward()
    assert {(48, 96), (48, 128), (4, 64)} <= set(products), "it sees what it looks for"
    shapes = {tuple(weight.shape) for name, weight in model.weights() if ".slot." not in name}
    assert not shapes & {shape[::order] for shape in products for order in (1, -1)}
