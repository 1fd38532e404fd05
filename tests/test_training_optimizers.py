"""Which parameter of an adapter is trained at which rate."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from peft_models import ours, theirs, write_base

from model.adapters.attach import attach
from model.adapters.config import AdapterConfig
from model.device import Precision
from training.config import OptimizerConfig, RunConfig
from training.low_bit_optimizers import can_page
from training.optimizers import make_optimizers

CPU, FP32 = torch.device("cpu"), Precision("fp32", "for tests")


def rates(optimizer: torch.optim.Optimizer) -> list[tuple[float, tuple[tuple[int, ...], ...]]]:
    """Every rate with the shapes of what is trained at it."""
    return sorted(
        (group["lr"], tuple(sorted(tuple(parameter.shape) for parameter in group["params"])))
        for group in optimizer.param_groups
        if group["params"]
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_plus_has_the_rates_of_peft(tmp_path: Path, family: str) -> None:
    base = write_base(family, tmp_path)
    embedding = {"gpt2": "wte", "llama": "embed_tokens"}[family]
    linear = {"gpt2": "c_fc", "llama": "up_proj"}[family]
    model = ours(base)
    attach(model, AdapterConfig(method="lora", rank=4, targets=(linear, embedding), lr_ratio=16.0))
    config = RunConfig(
        adapter=AdapterConfig(method="lora", lr_ratio=16.0),
        optimizer=OptimizerConfig(matrices="adamw", lr=1e-4, embedding_lr=1e-6, weight_decay=0.0),
    )
    (mine,) = make_optimizers(model, config, CPU, FP32)
    wrapped = peft.get_peft_model(theirs(base), peft.LoraConfig(r=4, target_modules=[linear, embedding]))
    wanted = create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16.0)
    assert rates(mine) == rates(wanted)
    assert {round(rate, 9) for rate, _ in rates(mine)} == {1e-6, 1e-4, 1.6e-3}


def test_without_a_ratio_all_of_an_adapter_has_one_rate_and_only_matrices_decay(tmp_path: Path) -> None:
    model = ours(write_base("llama", tmp_path))
    attach(model, AdapterConfig(method="lora", rank=4, dora=True, targets=("up_proj", "q_proj")))
    config = RunConfig(
        adapter=AdapterConfig(method="lora"), optimizer=OptimizerConfig(matrices="adamw", lr=1e-3, weight_decay=0.1)
    )
    (optimizer,) = make_optimizers(model, config, CPU, FP32)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    for group in optimizer.param_groups:
        assert all((parameter.ndim == 2) == (group["weight_decay"] == 0.1) for parameter in group["params"])
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["8bit", "paged-8bit"])
def test_adamw_of_eight_bits_by_choice(tmp_path: Path, kind: str) -> None:
    model = ours(write_base("llama", tmp_path))
    attach(model, AdapterConfig(method="lora", rank=4))
    config = RunConfig(
        adapter=AdapterConfig(method="lora"),
        optimizer=OptimizerConfig(matrices="adamw", adamw=kind),  # type: ignore[arg-type]
    )
    (optimizer,) = make_optimizers(model, config, CPU, FP32)
    assert type(optimizer).__module__.startswith("bitsandbytes") and not can_page(CPU)
    assert all(group["peak_lr"] == group["lr"] for group in optimizer.param_groups)
