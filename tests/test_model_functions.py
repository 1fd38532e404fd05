"""The hand-written attention and loss against the plain expressions, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import functions
from model.frozen import linear
from model.functions import IGNORE, causal_attention, linear_cross_entropy, token_losses


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = (hidden @ weight.mT).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("ignored", [0, 7, 23])
def test_chunked_loss_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, ignored: int
) -> None:
    monkeypatch.setattr(functions, "CHUNK_LOGITS", 4 * 31)  # chunks of four positions, the last of three
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    targets = torch.randint(0, 31, (23,))
    targets[torch.randperm(23)[:ignored]] = IGNORE
    expected = plain_loss(hidden, weight, targets, softcap)
    loss = linear_cross_entropy(hidden, weight, targets, softcap)
    torch.testing.assert_close(loss, expected.sum())
    torch.testing.assert_close(token_losses(hidden, weight, targets, softcap), expected.detach())
    wanted = torch.autograd.grad(3 * expected.sum(), (hidden, weight))
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_loss_of_huge_logits_is_finite() -> None:
    hidden, weight = torch.full((2, 4), 1e4, requires_grad=True), torch.eye(4)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]), None)
    loss.backward()
    assert loss.item() == pytest.approx(2 * torch.tensor(4.0).log().item()) and hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_frozen_weights_and_frozen_inputs_get_no_gradient() -> None:
    hidden, weight, targets = torch.randn(5, 4, requires_grad=True), torch.randn(6, 4), torch.randint(0, 6, (5,))
    linear_cross_entropy(hidden, weight, targets, None).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight.requires_grad_(), targets, None).requires_grad


def test_loss_in_bf16_is_close_and_its_gradients_have_the_dtype_of_their_tensors() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    targets = torch.randint(0, 50, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, 15.0)
    found = torch.autograd.grad(loss, (hidden, weight))
    expected = plain_loss(hidden, weight, targets, 15.0).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_the_logits_are_never_whole() -> None:
    """The largest tensor made on the way is a chunk of the logits, not all of them."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            sizes.extend([result.numel()] if isinstance(result, Tensor) else [])
            return result

    vocab, positions = 2**14, 2**12
    hidden, weight = torch.randn(positions, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    with Watch():
        linear_cross_entropy(hidden, weight, torch.randint(0, vocab, (positions,)), 15.0).backward()
    assert max(sizes) == functions.CHUNK_LOGITS < vocab * positions


@pytest.mark.parametrize("time", [1, 5, 8, 21])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_attention_in_blocks_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch, time: int, scale: float) -> None:
    monkeypatch.setattr(functions, "QUERY_BLOCK", 8)
    torch.manual_seed(0)
    tensors = [torch.randn(2, time, 3, 4).transpose(1, 2).requires_grad_() for _ in range(3)]
    expected = F.scaled_dot_product_attention(*tensors, is_causal=True, scale=scale)
    found = causal_attention(*tensors, scale)
    torch.testing.assert_close(found, expected)
    outer = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, tensors, outer), torch.autograd.grad(expected, tensors, outer), atol=1e-5, rtol=1e-5
    )


def test_attention_in_bf16_is_as_close_as_the_fused_kernel() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, 300, 32) for _ in range(3)]
    exact = F.scaled_dot_product_attention(*tensors, is_causal=True)
    low = [tensor.bfloat16() for tensor in tensors]
    mine = causal_attention(low[0], low[1], low[2], 32**-0.5).float()
    fused = F.scaled_dot_product_attention(*low, is_causal=True).float()
    assert (mine - exact).norm() < 2 * (fused - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_has_aligned_rows_and_a_power_of_two_of_them(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(functions, "CHUNK_LOGITS", 7 * 31)
    weight = torch.randn(31, 8, dtype=dtype)
    for positions, rows in ((23, 4), (3, 3), (0, 0)):
        room = functions._chunk_room(torch.randn(positions, 8), weight)
        assert room.shape == (rows, 31) and room.dtype == dtype
        assert room.stride(0) * room.itemsize == 64 * (2 if dtype == torch.float32 else 1) and room.stride(1) == 1
    monkeypatch.setattr(functions, "CHUNK_LOGITS", 7)  # fewer than one position has
    assert functions._chunk_room(torch.randn(5, 8), weight).shape == (1, 31)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_in_fp32_are_the_same_with_and_without_gradients(shape: tuple[int, ...], bias: bool) -> None:
    """Which is another library's product on a CPU."""
    weight, offset = torch.randn(7, 5, requires_grad=True), torch.randn(7) if bias else None
    for x in (torch.randn(shape), torch.randn(*shape[:-1], 10)[..., ::2]):
        found = linear(x, weight, offset)
        found.sum().backward()  # there are gradients
        with torch.no_grad():
            torch.testing.assert_close(linear(x, weight, offset), found)
            torch.testing.assert_close(linear(x, weight.mT.contiguous().mT, offset), found)
