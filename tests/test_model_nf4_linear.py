"""A layer that keeps its weight in NF4 against a plain one of the same weight, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_model_nf4 import DTYPES, SHAPES, assert_same, weights
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from common.errors import UserError
from model import nf4 as module
from model import nf4_weight
from model.activations import checkpointed
from model.nf4 import Nf4, dequantize, quantize
from model.nf4_weight import Nf4Weight
from model.slots import Linear


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_PIECE", 128)


def quantized(plain: nn.Linear, double: bool = True) -> Linear:
    """A layer with the bias of `plain`, and its weight in NF4."""
    layer = Linear(plain.in_features, plain.out_features, bias=plain.bias is not None)
    with torch.device("meta"):
        weight = Nf4Weight(plain.out_features, plain.in_features, double)
    weight.take(plain.weight)
    layer.keep_in(weight)
    layer.load_state_dict({} if plain.bias is None else {"bias": plain.bias})
    return layer.requires_grad_(False)


def layer_and_plain(bias: bool = True, double: bool = True) -> tuple[Linear, nn.Linear]:
    """A layer of 192 by 80 and a plain one with the weight that it stands for."""
    torch.manual_seed(0)
    plain = nn.Linear(192, 80, bias=bias)
    layer = quantized(plain, double)
    with torch.no_grad():
        plain.weight.copy_(layer.dense_weight())
    return layer, plain.requires_grad_(False)


def bits(layer: Linear) -> Nf4:
    assert isinstance(layer.quantized, Nf4Weight)
    return layer.quantized.nf4


@pytest.mark.parametrize("shape", [(192,), (7, 192), (2, 3, 192)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_the_layer_equals_a_plain_one(small_pieces: None, shape: tuple[int, ...], bias: bool, double: bool) -> None:
    layer, plain = layer_and_plain(bias, double)
    x = torch.randn(shape, requires_grad=True)
    found, expected = layer(x), plain(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    outer = torch.randn_like(expected)
    (by_x,), (wanted,) = torch.autograd.grad(found, x, outer), torch.autograd.grad(expected, x, outer)
    torch.testing.assert_close(by_x, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_it_does_what_a_plain_layer_does(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, plain = layer_and_plain(bias)
    asked = []

    def spy(weight: Nf4, dtype: torch.dtype) -> Tensor:
        asked.append(dtype)
        return dequantize(weight, dtype)

    monkeypatch.setattr(nf4_weight, "dequantize", spy)
    x = torch.randn(5, 192, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = layer(x), plain(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    outer = torch.randn_like(expected)
    (by_x,), (wanted,) = torch.autograd.grad(found, x, outer), torch.autograd.grad(expected, x, outer)
    assert by_x.dtype == torch.float32 and torch.equal(by_x, wanted)
    assert asked == [torch.bfloat16] * 2, "the weight is never whole in fp32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_without_autocast_it_follows_its_input(dtype: torch.dtype) -> None:
    layer, plain = layer_and_plain()
    x = torch.randn(5, 192, dtype=dtype)
    torch.testing.assert_close(layer(x), plain.to(dtype)(x))


def test_its_derivatives_are_exact() -> None:
    torch.manual_seed(0)
    layer = quantized(nn.Linear(9, 5))
    assert layer.bias is not None
    layer.bias = nn.Parameter(layer.bias.double())  # which may be trained, as some adapters do
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"bias": bias}, x)

    assert torch.autograd.gradcheck(function, (x, layer.bias))
    assert torch.autograd.gradgradcheck(function, (x, layer.bias))


def test_a_trained_bias_gets_the_gradient_of_a_plain_one() -> None:
    layer, plain = layer_and_plain()
    assert layer.bias is not None
    x = torch.randn(2, 3, 192)
    for each in (layer, plain):
        each.bias.requires_grad_()
        each(x).square().sum().backward()
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


def test_nothing_of_weight_and_input_is_kept_for_the_backward_pass() -> None:
    layer, plain = layer_and_plain()
    x = torch.randn(4, 192, requires_grad=True)

    def kept(function: Callable[[Tensor], Tensor]) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x)
        return sum(sizes)

    assert kept(plain) >= plain.weight.nbytes, "the hooks see what a plain layer keeps"
    assert kept(layer) == 0
    # Nor does the graph hold it otherwise: all that hangs on it is the layer's own.
    node: Any = layer(x).grad_fn
    held = [value for value in vars(node).values() if isinstance(value, Tensor)]
    assert not held and all(
        mine is theirs for mine, theirs in zip(node.dense.args[0][:4], bits(layer)[:4], strict=True)
    )


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_it_may_be_computed_again(checkpointing: Any) -> None:
    first, _ = layer_and_plain()
    second = quantized(nn.Linear(80, 192))
    x = torch.randn(2, 3, 192, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return second(first(x).relu())

    wanted = torch.autograd.grad(function(x).square().sum(), x)
    found = torch.autograd.grad(checkpointed(function, checkpointing, x).square().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_it_compiles_whole_and_in_one_piece(small_pieces: None) -> None:
    layer, _ = layer_and_plain()
    x = torch.randn(4, 192, requires_grad=True)
    expected, sizes = layer(x), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        sizes.append(sum(len(part.graph.nodes) for part in parts))
        return graph

    torch._dynamo.reset()
    found = torch.compile(layer, backend=backend, fullgraph=True)(x)
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected)
    outer = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, outer), torch.autograd.grad(expected, x, outer))
    assert len(sizes) == 1 and sizes[0] < 192 * 80 // 128, "there are fewer operations than pieces"


@pytest.mark.parametrize("emptied", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_a_weight_made_on_the_meta_device_is_filled_later(emptied: bool, double: bool) -> None:
    whole = bits(layer_and_plain(double=double)[0])
    with torch.device("meta"):
        weight = Nf4Weight(80, 192, double)
    assert weight.nf4.nbytes == whole.nbytes and weight.packed.is_meta
    if emptied:
        weight.to_empty(device="cpu")
    weight.fill(whole)
    assert_same(weight.nf4, whole)
    assert not [name for name, tensor in weight.named_buffers() if tensor.is_meta]
    weight.take(weight.dequantized(torch.float16))
    assert weight.dtype == torch.float16 and weight.nf4.nbytes == whole.nbytes


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(192, 80\) does not fit one of \(80, 192\)"):
        Nf4Weight(80, 192).fill(quantize(weights(192, 80)))
    with pytest.raises(UserError, match="NaN or infinity"):
        Nf4Weight(80, 192).take(weights(80, 192) / 0)


@pytest.mark.parametrize("double", [True, False])
def test_casting_a_model_leaves_the_weight_as_it_was(double: bool) -> None:
    layer, _ = layer_and_plain(double=double)
    before, model = bits(layer), nn.Sequential(layer, nn.Linear(80, 2))
    model.to(torch.bfloat16)
    assert model[1].weight.dtype == torch.bfloat16 == layer.bias.dtype
    assert_same(bits(layer), before)
    layer.to("meta")
    assert bits(layer).packed.is_meta and bits(layer).nbytes == before.nbytes


def test_the_weight_is_frozen_and_in_no_state_dict() -> None:
    layer, _ = layer_and_plain()
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == []
    assert layer.weight is None and list(layer.state_dict()) == ["bias"] == [
        name for name, _ in layer.named_parameters()
    ]
    assert "Nf4Weight(80, 192, double=True)" in repr(layer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_all_is_as_on_the_cpu(dtype: torch.dtype) -> None:
    device = torch.device("cuda", 0)
    for shape in SHAPES:
        weight = weights(*shape, dtype=dtype)
        here, there = quantize(weight), quantize(weight.to(device))
        assert torch.equal(there.packed.cpu(), here.packed)
        expected = dequantize(here, dtype)
        assert torch.equal(dequantize(here.to(device), dtype).cpu(), expected)
        assert torch.equal(module._dequantize_by_pieces(here.to(device), dtype).cpu(), expected)
    layer, plain = layer_and_plain()
    x = torch.randn(3, 192, requires_grad=True)
    moved = x.detach().to(device).requires_grad_()
    found, expected = layer.to(device)(moved), plain(x)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    found.sum().backward()
    expected.sum().backward()
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad.cpu(), x.grad, atol=1e-4, rtol=1e-4)
