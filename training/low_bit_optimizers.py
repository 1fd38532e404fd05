"""AdamW whose state takes eight bits a number instead of 32 (Dettmers et al. 2022, arXiv 2110.02861)."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from common.errors import UserError

NOT_PAGED = "the optimizer's state stays where it is: only a CUDA device can page it, so paged 8-bit AdamW is plain"


def can_page(device: torch.device) -> bool:
    """Whether `adamw_8bit` can move its state out of the memory of `device`; where it cannot, `NOT_PAGED` says so."""
    return device.type == "cuda"


def adamw_8bit(
    groups: list[dict[str, Any]], betas: tuple[float, float], eps: float, paged: bool
) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes; tensors of fewer than 4,096 numbers keep their state in fp32.

    Args:
        groups: as `torch.optim.AdamW` takes them, each with its `lr` and `weight_decay`.
        betas: decay of the means of the gradients and of their squares.
        eps: added to the root of the latter.
        paged: move state that the GPU has no room for to the CPU's memory, if `can_page`.

    Raises:
        UserError: bitsandbytes is not installed, or cannot be loaded here.
    """
    try:
        optimizers = importlib.import_module("bitsandbytes.optim")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"8-bit AdamW needs bitsandbytes, which cannot be loaded ({error}); "
            "install it with: pip install -c constraints.txt -e '.[quantization]'"
        ) from error
    devices = {parameter.device for group in groups for parameter in group["params"]}
    kind = optimizers.PagedAdamW8bit if paged and all(map(can_page, devices)) else optimizers.AdamW8bit
    return kind(groups, betas=betas, eps=eps)
