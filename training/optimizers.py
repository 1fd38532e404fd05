"""Which parameter is trained how: one table of groups."""

from __future__ import annotations

import torch

from model import Decoder
from training.config import OptimizerConfig


def make_optimizer(model: Decoder, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over three groups; `peak_lr` in each is what the schedule's factor multiplies."""
    named = dict(model.named_parameters())
    embeddings = [p for name, p in named.items() if name.endswith("embedding.weight") or name == "head.weight"]
    taken = {id(p) for p in embeddings}
    matrices = [p for p in named.values() if p.ndim == 2 and id(p) not in taken]
    scalars = [p for p in named.values() if p.ndim != 2]
    groups = [
        {"params": matrices, "peak_lr": config.lr, "weight_decay": config.weight_decay},
        {"params": embeddings, "peak_lr": config.embedding_lr, "weight_decay": config.weight_decay},
        {"params": scalars, "peak_lr": config.scalar_lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),  # one pass over each tensor instead of a dozen
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Give every group its peak rate times `factor`; returns the rate of the first group, for logging."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
