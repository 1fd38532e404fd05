"""Weights in NF4 against bitsandbytes, byte for byte."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import pytest
import torch
from nf4_states import QUANT_STATE, from_state_tensors, state_tensors
from torch import Tensor

from common.errors import UserError
from model import nf4 as module
from model.nf4 import DYNAMIC, NF4, Nf4, dequantize, quantize
from model.nf4_weight import Nf4Weight
from model.slots import Linear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Even and odd, whole blocks and begun ones, with one value and with more than 256 scales.
SHAPES = [(64, 64), (7, 13), (1, 1), (2, 1), (3, 129), (37, 96), (1000,), (2, 3, 5), (130, 257)]


@pytest.fixture
def bnb() -> Iterator[Any]:
    """bitsandbytes' functions, not compiled: it would compile those for odd shapes."""
    functional = pytest.importorskip("bitsandbytes.functional")
    with torch.compiler.set_stance("force_eager"):
        yield functional


def weights(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def state_of_bitsandbytes(packed: Tensor, state: Any) -> dict[str, Tensor]:
    return {"w": packed, **{f"w.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}}


def value_of_bitsandbytes(bnb: Any, packed: Tensor, state: Any) -> Tensor:
    """Read as one row: with several, its kernel for AVX-512 is wrong where they end within a block, as 37 by 96 do."""
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    return bnb.dequantize_4bit(packed, state).view(shape)


def assert_same(mine: Nf4, theirs: Nf4) -> None:
    for name, left, right in zip(Nf4._fields, mine, theirs, strict=True):
        same = torch.equal(left, right) if isinstance(left, Tensor) and isinstance(right, Tensor) else left == right
        assert same, name


def test_the_code_tables_are_those_of_bitsandbytes(bnb: Any) -> None:
    assert torch.equal(NF4, bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(DYNAMIC, bnb.create_dynamic_map())


def test_the_codes_are_quantiles_of_the_normal_distribution() -> None:
    """QLoRA, appendix E: eight above zero and seven below, evenly spaced in probability."""
    quantile, end = NormalDist().inv_cdf, 0.9677083

    def half(number: int) -> list[float]:
        return [quantile(end - (end - 0.5) * step / number) for step in range(number)]

    values = torch.tensor(sorted([*half(8), 0.0, *(-value for value in half(7))]))
    torch.testing.assert_close(NF4, values / values.max(), rtol=0, atol=2e-7)


def test_every_value_goes_to_the_nearest_code() -> None:
    """The look-up equals a search, also for the neighbours of every boundary and of every step."""
    boundaries = (NF4[:-1] + NF4[1:]) / 2
    steps = torch.arange(2 * module.STEPS + 1) / module.STEPS - 1
    edges = torch.cat([boundaries, steps])
    near = [torch.nextafter(edges, torch.full_like(edges, to)) for to in (-2.0, 2.0)]
    values = torch.cat([edges, *near, torch.linspace(-1, 1, 100_001)]).clamp(-1, 1)
    assert torch.equal(module._nearest(values).long(), torch.bucketize(values, boundaries))
    apart = (values[:, None] - NF4).abs()
    torch.testing.assert_close(apart.gather(1, module._nearest(values).long()[:, None])[:, 0], apart.amin(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double", [True, False])
def test_bytes_are_those_of_bitsandbytes(bnb: Any, shape: tuple[int, ...], dtype: torch.dtype, double: bool) -> None:
    weight = weights(*shape, dtype=dtype)
    packed, state = bnb.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    mine = quantize(weight, double)
    assert torch.equal(mine.packed, packed) and mine.shape == weight.shape and mine.dtype == dtype
    if double:
        assert torch.equal(mine.offset, state.offset) and torch.equal(mine.nested_absmax, state.state2.absmax)  # type: ignore[arg-type]
    else:
        assert torch.equal(mine.absmax, state.absmax) and mine.offset is None and mine.nested_absmax is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_are_those_of_bitsandbytes_but_for_its_coarse_lookup(bnb: Any, dtype: torch.dtype) -> None:
    weight = weights(1000, 1024, dtype=dtype)
    packed, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    mine = quantize(weight)
    assert torch.equal(mine.packed, packed)
    assert (mine.absmax == state.absmax).float().mean() >= 0.995
    assert (mine.absmax.int() - state.absmax.int()).abs().max() <= 3
    # Where they differ, ours is the nearer one.
    scales = weight.float().view(-1, 64).abs().amax(dim=1)
    theirs = from_state_tensors(state_of_bitsandbytes(packed, state), "w")
    assert ((module._scales(mine) - scales).abs() <= (module._scales(theirs) - scales).abs() + 1e-9).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double", [True, False])
def test_a_weight_of_bitsandbytes_reads_as_it_does_there(
    bnb: Any, shape: tuple[int, ...], dtype: torch.dtype, double: bool
) -> None:
    packed, state = bnb.quantize_4bit(weights(*shape, dtype=dtype), compress_statistics=double, quant_type="nf4")
    mine = from_state_tensors(state_of_bitsandbytes(packed, state), "w")
    assert mine.dtype == dtype and mine.shape == shape
    assert torch.equal(dequantize(mine, dtype), value_of_bitsandbytes(bnb, packed, state))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [True, False])
def test_bitsandbytes_reads_ours_as_we_do(bnb: Any, dtype: torch.dtype, double: bool) -> None:
    mine = quantize(weights(37, 96, dtype=dtype), double)
    tensors = state_tensors(mine, "w")
    packed = tensors.pop("w")
    state = bnb.QuantState.from_dict({key.removeprefix("w."): tensor for key, tensor in tensors.items()}, "cpu")
    assert state.shape == mine.shape and state.dtype == dtype and state.nested is double
    assert torch.equal(value_of_bitsandbytes(bnb, packed, state), dequantize(mine, dtype))


@pytest.mark.parametrize("double", [True, False])
def test_layers_exchange_state_dicts_with_bitsandbytes(double: bool) -> None:
    layers = pytest.importorskip("bitsandbytes").nn
    theirs = layers.Linear4bit(128, 40, compress_statistics=double, quant_type="nf4").to("cpu")
    state = theirs.state_dict()
    mine, weight = Linear(128, 40, bias=True), Nf4Weight(40, 128, double)
    weight.fill(from_state_tensors(state, "weight"))
    mine.keep_in(weight)
    mine.load_state_dict({"bias": state["bias"]})
    written = state_tensors(weight.nf4, "weight")
    assert {*written, "bias"} == state.keys()
    for key, tensor in written.items():
        if key.endswith(QUANT_STATE):
            assert json.loads(bytes(tensor.tolist())) == json.loads(bytes(state[key].tolist()))
        else:
            assert torch.equal(tensor, state[key]), key
    x = weights(3, 128).requires_grad_()  # without gradients it would be multiplied in bf16 there
    found, expected = mine(x), theirs(x)
    torch.testing.assert_close(found, expected.detach())
    by_x, wanted = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    torch.testing.assert_close(by_x, wanted)


def test_numbers_wider_than_bytes_are_read_too(bnb: Any) -> None:
    """As FSDP wants them."""
    weight = weights(64, 64)
    packed, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4", quant_storage=torch.bfloat16)
    assert packed.dtype == torch.bfloat16
    mine = from_state_tensors(state_of_bitsandbytes(packed, state), "w")
    assert torch.equal(mine.packed, quantize(weight).packed)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight = weights(5, 100)
    weight[4, 99] = bad
    with pytest.raises(UserError, match="NaN or infinity"):
        quantize(weight)


def test_size_and_error_are_the_published_ones() -> None:
    weight = weights(1024, 1024)
    single, double = quantize(weight, double=False), quantize(weight)
    assert 8 * single.nbytes / weight.numel() == 4.5
    assert 8 * double.nbytes / weight.numel() == pytest.approx(4.127, abs=1e-3)
    for nf4 in (single, double):
        error = (dequantize(nf4, torch.float32) - weight).norm() / weight.norm()
        assert error.item() == pytest.approx(0.092, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
@pytest.mark.parametrize("double", [True, False])
def test_a_constant_stays_what_it_is(value: float, double: bool) -> None:
    """Zeros are not divided by zero, and all scales being equal, nothing is lost."""
    weight = torch.full((3, 50), value)
    assert torch.equal(dequantize(quantize(weight, double), torch.float32), weight)


def test_what_is_quantised_again_stays_the_same() -> None:
    first = quantize(weights(40, 72), double=False)
    assert_same(quantize(dequantize(first, torch.float32), double=False), first)


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_make_no_difference(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(*shape)
    whole = quantize(weight)
    value = dequantize(whole, torch.bfloat16)
    monkeypatch.setattr(module, "CPU_PIECE", 128)
    assert_same(quantize(weight), whole)
    assert torch.equal(dequantize(whole, torch.bfloat16), value)


def test_a_transposed_view_is_quantised_as_its_copy() -> None:
    weight = weights(40, 72)
    assert_same(quantize(weight.mT), quantize(weight.mT.contiguous()))


def test_nothing_is_made_that_is_larger_than_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if (
                isinstance(result, Tensor)
                and result.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
            ):
                sizes.append(result.untyped_storage().nbytes())
            return result

    monkeypatch.setattr(module, "CPU_PIECE", 2**10)
    weight = weights(256, 256)
    with Watch():
        nf4 = quantize(weight)
    assert max(sizes) == nf4.packed.nbytes
    sizes.clear()
    with Watch():
        dequantize(nf4, torch.bfloat16)
    assert max(sizes) == 2 * weight.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_of_bitsandbytes_says_the_same(bnb: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    nf4 = quantize(weights(*shape))
    assert torch.equal(module._dequantize_with_bitsandbytes(nf4, dtype), dequantize(nf4, dtype))


def test_bitsandbytes_is_used_only_where_it_works(bnb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agrees = module._bitsandbytes_agrees.__wrapped__
    assert agrees(torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(bnb, "dequantize_4bit", lambda packed, state: torch.zeros(state.shape, dtype=state.dtype))
        assert not agrees(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    assert not agrees(torch.device("cpu"))
