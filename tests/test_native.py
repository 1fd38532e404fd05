"""The native kernels against the same in plain PyTorch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from inference_fixtures import VOCAB, tiny_model
from torch import Tensor

from common.errors import UserError
from model import Decoder, KVCache
from model.native import library
from model.native.step import NativeStep, reason_against
from model.packed_weight import Bits, PackedWeight, TorchInt4, TorchInt8
from model.quantization import quantize

ALL_BITS = get_args(Bits)
CONFIGS: dict[str, dict[str, Any]] = {
    "mini": {},
    "gpt2": {
        "norm": "layer", "norm_gain": True, "bias": True, "position": "learned", "activation": "gelu",
        "qk_norm": False, "embedding_norm": False, "residual_scalars": False, "logit_softcap": None,
    },
    "llama": {
        "activation": "swiglu", "heads": 4, "kv_heads": 2, "head_dim": 10, "mlp_width": 37, "norm_gain": True,
        "tied": False, "rope_factor": 2.0, "qk_norm": False, "logit_softcap": None,
    },
    "window": {"window": 5, "value_embeddings": 1, "attention_scale": 0.3},
    "one key head": {"heads": 4, "kv_heads": 1, "width": 48},
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What a test finds out about the compiler ends with it, and so do its threads."""
    library.library.cache_clear()
    yield
    library.library.cache_clear()
    torch.set_num_threads(1)


def in_eight_bits(x: Tensor) -> Tensor:
    """`x` (rows, in) as the kernels round it: in groups of 32 inputs."""
    rows, columns = x.shape
    groups = torch.nn.functional.pad(x, (0, -columns % 32)).view(rows, -1, 32)
    most = groups.abs().amax(-1, keepdim=True)
    factor = torch.where(most > 0, 127 / most, 0)
    return ((groups * factor).round() * (most / 127)).view(rows, -1)[:, :columns]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize(("out", "inside"), [(48, 64), (37, 45), (5, 7), (130, 100)])
def test_products_of_every_number_of_rows(bits: Bits, out: int, inside: int) -> None:
    generator = torch.Generator().manual_seed(out)
    weight, bias = torch.randn(out, inside, generator=generator), torch.randn(out, generator=generator)
    weight[1] = 0
    packed = PackedWeight(bits, out, inside)
    packed.take(weight)
    dense = packed.dequantized(torch.float32)
    assert (dense - weight).abs().max() < {"bf16": 0.02, "int8": 0.02, "int4": 0.5}[bits]
    assert torch.equal(packed.rows(torch.tensor([3, 1])), dense[[3, 1]])
    for rows in range(1, 18):
        x = torch.randn(inside, rows, generator=generator).T  # not contiguous
        x[:, :32] *= 100  # another scale than the other groups
        expected = (x if bits == "bf16" else in_eight_bits(x)) @ dense.T + bias
        found = packed.linear(x, bias)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3 * expected.abs().max()), rows
        torch.set_num_threads(2)
        assert torch.equal(packed.linear(x, bias), found)
        torch.set_num_threads(1)


def test_a_product_keeps_the_shape_and_dtype_of_its_input() -> None:
    packed = PackedWeight("int8", 8, 32)
    packed.take(torch.randn(8, 32))
    assert packed.linear(torch.zeros(2, 3, 32), None).shape == (2, 3, 8)
    assert packed.linear(torch.zeros(3, 32, dtype=torch.bfloat16), None).dtype == torch.bfloat16
    x = torch.randn(3, 32, requires_grad=True)
    packed.linear(x, None).sum().backward()
    assert torch.allclose(x.grad, packed.dequantized(torch.float32).sum(0).expand(3, -1), atol=1e-5)
    assert packed.half().scales.dtype == torch.float32  # what is stored does not change


def test_without_vector_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a CPU that has none of AVX-512 gives the same."""
    packed = {bits: PackedWeight(bits, 40, 70) for bits in ALL_BITS}
    for weight in packed.values():
        weight.take(torch.randn(40, 70))
    x = torch.randn(9, 70)
    fast = {bits: weight.linear(x, None) for bits, weight in packed.items()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FLAGS", tuple(flag for flag in library.FLAGS if "march" not in flag))
    library.library.cache_clear()
    for bits, weight in packed.items():
        assert torch.allclose(weight.linear(x, None), fast[bits], rtol=1e-4, atol=1e-4)
    assert len(list(tmp_path.rglob("*.so"))) == 1
    assert library.is_built()


def steps_equal(model: Decoder, dtype: torch.dtype) -> float:
    """The largest distance of the native step from the model, relative to its logits, over passes of many shapes."""
    assert not reason_against(model)
    step, generator, worst = NativeStep(model), torch.Generator().manual_seed(0), 0.0
    ours, theirs = (KVCache(model.config, 3, 30, model.device, dtype) for _ in range(2))
    for cache in (ours, theirs):  # what lies in the slots that are not filled is never read
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
    with torch.no_grad():
        for counts in ([4, 4, 4], [1, 1, 1], [1, 3, 2], [1, 1, 1]):
            ids = [torch.randint(VOCAB, (count,), generator=generator).tolist() for count in counts]
            found = step(ids, ours, last_only=False)
            width = max(counts)
            padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
            theirs.values.nan_to_num_()  # PyTorch multiplies what it masks by zero
            theirs.keys.nan_to_num_()
            expected = model(padded, cache=theirs, counts=counts)
            expected = torch.cat([row[:count] for row, count in zip(expected, counts, strict=True)])
            worst = max(worst, ((found - expected).norm() / expected.norm()).item())
            assert ours.lengths == theirs.lengths
    return worst


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bits", [None, *ALL_BITS])
def test_a_step_equals_the_decoder(name: str, bits: Bits | None) -> None:
    model = tiny_model(**CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    if bits is not None:
        quantize(model, bits)
    # Rounding to 8 bits may fall to the other side where the inputs differ in their last bit.
    assert steps_equal(model, torch.float32) < (2e-6 if bits in (None, "bf16") else 0.03)
    assert steps_equal(model, torch.bfloat16) < (0.004 if bits in (None, "bf16") else 0.04)


def test_a_step_gives_the_logits_that_are_asked_for() -> None:
    model = tiny_model()
    whole, last = (KVCache(model.config, 2, 8, model.device, torch.float32) for _ in range(2))
    ids, step = [[5, 6, 7], [8]], NativeStep(model)
    assert torch.equal(step(ids, whole, last_only=False)[[2, 3]], step(ids, last, last_only=True))
    torch.set_num_threads(2)
    assert torch.equal(step([[1], []], whole, last_only=True)[0], step([[1], []], last, last_only=True)[0])
    assert whole.lengths == [4, 1]
    with pytest.raises(ValueError, match="holds 8"):
        step([[1] * 9, [2]], whole, last_only=True)
    with pytest.raises(IndexError, match="not among the model's"):
        step([[VOCAB], []], whole, last_only=True)


@pytest.mark.parametrize("bits", [None, "int8"])
def test_rows_without_ids_change_nothing(bits: Bits | None) -> None:
    """As a draft has them, of which few rows are asked: more outputs than tokens, and one of them of the same token."""
    model = tiny_model()
    if bits is not None:
        quantize(model, bits)
    step = NativeStep(model)

    def logits(ids: list[list[int]]) -> Tensor:
        return step(ids, KVCache(model.config, len(ids), 8, model.device, torch.float32), last_only=True)

    assert torch.equal(logits([[], [5], *[[]] * 40])[1], logits([[5]])[0])


def test_weights_are_read_where_they_lie() -> None:
    model = tiny_model()
    step = NativeStep(model)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight.mul_(2)

    def logits(step: NativeStep) -> Tensor:
        return step([[3, 4]], KVCache(model.config, 1, 8, model.device, torch.float32), last_only=True)

    assert torch.equal(logits(step), logits(NativeStep(model)))


def test_what_a_step_cannot_run() -> None:
    assert "document" in reason_against(tiny_model(document_start=0))
    assert "form" in reason_against(tiny_model().half())
    model = tiny_model(position="learned")
    model.position_embedding.weight.data = model.position_embedding.weight.data.bfloat16()
    quantize(model, "int8")
    assert "form" in reason_against(model)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    models = {bits: tiny_model() for bits in ALL_BITS}
    expected = models["bf16"](torch.tensor([[3, 4, 5]]))
    for bits, model in models.items():
        quantize(model, bits)
        assert reason_against(model)
        with torch.no_grad():
            found = model(torch.tensor([[3, 4, 5]]))
        assert (found - expected).norm() < {"bf16": 0.02, "int8": 0.04, "int4": 0.2}[bits] * expected.norm()
    assert isinstance(models["int8"].blocks[0].mlp.up.quantized, TorchInt8)
    assert isinstance(models["int4"].blocks[0].mlp.up.quantized, TorchInt4)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "no C++ compiler" in lines[0]


@pytest.mark.parametrize("kind", [TorchInt8, TorchInt4])
def test_products_without_a_compiler(kind: type[TorchInt8]) -> None:
    for out, inside in ((48, 64), (37, 45)):
        packed, weight, x = kind(out, inside), torch.randn(out, inside), torch.randn(2, 3, inside)
        packed.take(weight)
        dense = packed.dequantized(torch.float32)
        assert (dense - weight).norm() < 0.1 * weight.norm()
        assert torch.allclose(packed.linear(x, torch.ones(out)), x @ dense.T + 1, atol=0.2)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(UserError, match="does not compile"):
        library.build()
    assert not list(tmp_path.rglob("*.so"))


def test_the_library_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library.build()
    monkeypatch.setattr(library.subprocess, "run", None)
    assert library.build() == path and ctypes.CDLL(str(path)).step


def test_a_directory_that_others_write_into_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = library.build()
    assert library.build() == built
    built.parent.chmod(0o777)
    with pytest.raises(UserError, match="others may write into"):
        library.build()


def test_without_a_home_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    library.library.cache_clear()
    try:
        assert not library.is_built() and not library.available()
    finally:
        library.library.cache_clear()
