"""Which parameter is trained how: one table of groups."""

from __future__ import annotations

from typing import Any

import torch

from model import Decoder
from model.device import Precision
from training.config import OptimizerConfig, RunConfig
from training.muon import Muon
from training.schedules import learning_rate_factor, momentum_at


def make_optimizers(
    model: Decoder, config: OptimizerConfig, device: torch.device, precision: Precision
) -> list[torch.optim.Optimizer]:
    """The optimizers that together hold every parameter once; `peak_lr` in a group is what the schedule scales."""
    matrices: list[Any] = []
    embeddings: list[Any] = []
    head: list[Any] = []
    scalars: list[Any] = []
    for name, parameter in model.named_parameters():
        if name == "head.weight":
            head.append(parameter)
        elif parameter.ndim < 2:
            scalars.append(parameter)
        else:
            (embeddings if "embedding" in name else matrices).append(parameter)

    def group(parameters: list[Any], lr: float, weight_decay: float) -> dict[str, Any]:
        return {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}

    of_matrices = group(matrices, config.lr, config.weight_decay)
    of_others = [
        group(embeddings, config.embedding_lr, 0.0),
        group(head, config.head_lr, 0.0),
        group(scalars, config.scalar_lr, 0.0),
    ]
    adamw = torch.optim.AdamW(
        [g for g in ([of_matrices] if config.matrices == "adamw" else []) + of_others if g["params"]],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),  # one pass over each tensor instead of a dozen
    )
    if config.matrices == "adamw":
        return [adamw]
    # Half precision is enough for the direction of an update; a run in fp32 asks for exactness.
    dtype = torch.bfloat16 if precision.name == "bf16" else torch.float32
    muon = Muon([of_matrices], config.lr, config.momentum, config.weight_decay, dtype, config.cautious_decay)
    return [muon, adamw]


def follow_schedule(config: RunConfig, optimizers: list[torch.optim.Optimizer], fraction: float) -> float:
    """Set rates and momentum for a step that ends with `fraction` of the budget used, its own time aside.

    Returns the rate of the block matrices, for logging.
    """
    factor = learning_rate_factor(config.schedule, fraction)
    momentum = momentum_at(config.optimizer, fraction)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            if "momentum" in group:
                group["momentum"] = momentum
    return float(optimizers[0].param_groups[0]["lr"])
