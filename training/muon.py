"""Muon: momentum whose update is made orthogonal, for the weight matrices of the blocks.

Keller Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the coefficients of Polar Express (Amsel et al.
2025, arXiv 2505.16932) and decoupled weight decay, plain or cautious (Liang et al. 2024, arXiv 2411.16085).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from training.distribution import share_of, whole

# One (a, b, c) an iteration: X becomes a X + b (X X^T) X + c (X X^T)^2 X.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix of each, roughly: singular values come out near 1. (n, rows, columns)"""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the shorter side first: X X^T is then the smaller square
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)).contiguous()
    for a, b, c in POLAR_EXPRESS:
        square = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are stacked and made orthogonal together, which keeps the products large."""

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float,
        weight_decay: float,
        compute_dtype: torch.dtype,
        cautious: bool = False,
    ) -> None:
        """`compute_dtype` is that of the matrix products; state and weights keep their own.

        With `cautious`, a weight decays only where the update moves it the same way.
        """
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "cautious": cautious}
        super().__init__(parameters, defaults)
        self.compute_dtype = compute_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "Muon evaluates nothing itself"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices that all have the same shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"]))  # Nesterov's look-ahead
        # Under FSDP a process has some rows of each matrix, but orthogonality needs whole ones. So each process
        # gathers the stack, makes all of it orthogonal, as each does under DDP, and keeps its rows: that costs one
        # gather of the block matrices a step, in `compute_dtype`, and the memory of one whole stack at a time.
        updates = orthogonalize(whole(ahead.to(self.compute_dtype))).to(parameters[0].dtype)
        rows, columns = parameters[0].shape
        updates *= max(1.0, rows / columns) ** 0.5  # equal size of the output whatever the shape
        updates = share_of(updates, like=ahead)
        decay = group["lr"] * group["weight_decay"]
        for parameter, update in zip(parameters, updates.unbind(), strict=True):
            if group["cautious"]:
                parameter.mul_(1 - decay * (update * parameter > 0))
            else:
                parameter.mul_(1 - decay)
            parameter.add_(update, alpha=-group["lr"])
