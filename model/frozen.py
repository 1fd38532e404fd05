"""Products with a matrix that learns nothing: no gradient by it is worked out, and no copy of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.functions import compute_dtype

# Inductor writes products with this operator too; there is no other way to oneDNN's products in fp32.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for a weight that, when it is frozen, may be stored in another dtype than the product runs in.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,).
    """
    if weight.dtype == compute_dtype(x) == torch.float32:
        return exact_linear(x, weight, bias)
    if weight.requires_grad:
        return F.linear(x, weight, bias)
    return frozen_linear(x, weight.to, bias)


def exact_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of fp32 tensors. Without gradients on a CPU it is oneDNN that multiplies, which on a processor of AMD
    is up to 2.3 times as fast as MKL (docs/log.md)."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or not ONEDNN or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def frozen_linear(x: Tensor, dense: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias in the dtype of autocast or, without it, of `x`; shapes as in `linear`.

    Between the two directions neither `x` nor the weight in that dtype is kept: each makes the weight anew.

    Args:
        dense: gives the weight in a dtype.
    """
    return _FrozenProduct.apply(x, dense, bias)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
        dtype = compute_dtype(x)
        ctx.dense, ctx.dtype = dense, x.dtype
        return F.linear(x.to(dtype), dense(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = gradients
        by_x = (outer @ ctx.dense(outer.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        by_bias = outer.reshape(-1, outer.shape[-1]).sum(dim=0) if ctx.needs_input_grad[2] else None
        return by_x, None, by_bias
