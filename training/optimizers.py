"""Which parameter is trained how: one table of groups."""

from __future__ import annotations

from typing import Any

import torch

from model import Decoder
from model.device import Precision
from training.config import RunConfig
from training.low_bit_optimizers import adamw_8bit
from training.muon import Muon
from training.schedules import learning_rate_factor, momentum_at

BESIDE_MUON = 3e-3
LORA_PLUS_EMBEDDINGS = 1e-6  # as in PEFT


def make_optimizers(
    model: Decoder, config: RunConfig, device: torch.device, precision: Precision
) -> list[torch.optim.Optimizer]:
    """The optimizers that together hold every trained parameter once; `peak_lr` in a group is what the schedule
    scales."""
    optimizer = config.optimizer
    groups: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(group_of(name, parameter), []).append(parameter)
    ratio = config.adapter.lr_ratio
    # Where AdamW trains all, what has no rate of its own has that of the matrices; Muon's would not suit it.
    others = BESIDE_MUON if optimizer.matrices == "muon" else optimizer.lr
    rates = {  # and weight decay
        "matrices": (optimizer.lr, optimizer.weight_decay),
        "embeddings": (_or(optimizer.embedding_lr, others), 0.0),
        "head": (_or(optimizer.head_lr, others), 0.0),
        "scalars": (_or(optimizer.scalar_lr, others), 0.0),
        # Those of adapters have one rate, but for LoRA+ (Hayou et al. 2024, arXiv 2402.12354).
        "adapter matrices": (optimizer.lr, optimizer.weight_decay),
        "adapter matrices behind": (optimizer.lr * ratio, optimizer.weight_decay),
        "adapter vectors": (optimizer.lr * ratio, 0.0),
        "adapter embeddings": (
            optimizer.lr if ratio == 1 else _or(optimizer.embedding_lr, LORA_PLUS_EMBEDDINGS),
            optimizer.weight_decay,
        ),
    }
    by_muon = groups.pop("matrices", []) if optimizer.matrices == "muon" else []
    of_adamw = [_group(groups[name], *rates[name]) for name in rates if name in groups]
    made: list[torch.optim.Optimizer] = []
    if by_muon:
        # Half precision is enough for the direction of an update; a run in fp32 asks for exactness.
        dtype = torch.bfloat16 if precision.name == "bf16" else torch.float32
        made.append(
            Muon(
                [_group(by_muon, *rates["matrices"])],
                optimizer.lr,
                optimizer.momentum,
                optimizer.weight_decay,
                dtype,
                optimizer.cautious_decay,
            )
        )
    betas = (optimizer.beta1, optimizer.beta2)
    if optimizer.adamw != "torch":
        return [*made, adamw_8bit(of_adamw, betas, optimizer.eps, paged=optimizer.adamw == "paged-8bit")]
    # Fused: one pass over each tensor instead of a dozen.
    made.append(torch.optim.AdamW(of_adamw, betas=betas, eps=optimizer.eps, fused=device.type in ("cpu", "cuda")))
    return made


def _or(rate: float | None, otherwise: float) -> float:
    return otherwise if rate is None else rate


def group_of(name: str, parameter: torch.Tensor) -> str:
    """Which row of the table a parameter belongs to."""
    if ".slot." in name or name.startswith("virtual."):
        if parameter.ndim < 2:
            return "adapter vectors"
        if "lora_embedding" in name:
            return "adapter embeddings"
        return "adapter matrices behind" if "lora_B" in name else "adapter matrices"
    if name == "head.weight":
        return "head"
    if parameter.ndim < 2:
        return "scalars"
    return "embeddings" if "embedding" in name else "matrices"


def _group(parameters: list[Any], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}


def follow_schedule(config: RunConfig, optimizers: list[torch.optim.Optimizer], fraction: float) -> float:
    """Set rates and momentum for a step that ends with `fraction` of the budget used, its own time aside.

    Returns the rate of the first group, that of the block matrices where they are trained, for logging.
    """
    factor = learning_rate_factor(config.schedule, fraction)
    momentum = momentum_at(config.optimizer, fraction)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            if "momentum" in group:
                group["momentum"] = momentum
    return float(optimizers[0].param_groups[0]["lr"])
