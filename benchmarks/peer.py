"""nanoGPT, from a checkout that the user has, trained as its own `train.py` would, on our data and under autocast.

Only its `model.py` is loaded. The loop is written here because its `train.py` runs on import, has no autocast on the
CPU and reads nothing but its own files; what it does is kept: windows at random places with replacement, its
optimizer, linear warm-up, cosine to a tenth of the peak, clipping at 1.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from model.config import ModelConfig
from model.device import Precision, PrecisionName, choose_precision

CPU, BF16 = torch.device("cpu"), Precision("bf16", "as its own train.py has it")
BETAS, WEIGHT_DECAY, GRAD_CLIP = (0.9, 0.95), 0.1, 1.0  # the defaults of its train.py
WARMUP = 0.05  # of the steps


def load_nanogpt(path: str) -> ModuleType:
    """The `model.py` of a nanoGPT checkout.

    Raises:
        UserError: there is none at `path`.
    """
    file = Path(path) / "model.py"
    if not file.is_file():
        raise UserError(
            f"{path} is not a nanoGPT checkout: it has no model.py; clone karpathy/nanoGPT and give its path"
        )
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def precision_without_scaler(device: torch.device, name: PrecisionName) -> Precision:
    """The precision of a loop that does not scale its loss.

    Raises:
        UserError: it is fp16, whose small gradients would be lost.
    """
    precision = choose_precision(device, name)
    if precision.name == "fp16":
        raise UserError("benchmarks have no gradient scaler for fp16; choose --precision bf16 or fp32")
    return precision


class Peer:
    """One nanoGPT model in training."""

    def __init__(
        self,
        path: str,
        shape: ModelConfig,
        lr: float,
        seed: int,
        compiled: bool,
        device: torch.device = CPU,
        precision: Precision = BF16,
    ) -> None:
        """`shape` gives layers, width, heads, vocabulary and context; nothing else of it is used."""
        self.device, self.precision = device, precision
        module = load_nanogpt(path)
        torch.manual_seed(seed)
        config: Any = module.GPTConfig(
            block_size=shape.context_length,
            vocab_size=shape.vocab_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=False,
        )
        self.model = module.GPT(config).to(device)
        self.optimizer = self.model.configure_optimizers(WEIGHT_DECAY, lr, BETAS, device.type)
        self.lr = lr
        self.network: Callable[[Tensor, Tensor], Any] = torch.compile(self.model) if compiled else self.model

    def step(self, micro_batches: Iterable[tuple[Tensor, Tensor]], accumulation: int) -> float:
        """One optimizer step over micro-batches of (inputs, targets), each (batch, time); returns the mean loss."""
        total = 0.0
        for inputs, targets in micro_batches:
            with self.precision.autocast(self.device):
                loss = self.network(inputs.to(self.device), targets.to(self.device))[1] / accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def set_rate(self, step: int, steps: int) -> None:
        """The rate of step `step` (from 0) of `steps`."""
        warmup = max(1, round(WARMUP * steps))
        factor = (step + 1) / (warmup + 1)
        if step >= warmup:
            factor = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor

    @torch.no_grad()
    def losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Nats of every target, (batch, time) fp32 on the CPU."""
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        with self.precision.autocast(self.device):
            logits = self.model(inputs, targets)[0]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).cpu()


def random_windows(tokens: np.ndarray, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """Windows at random places, as nanoGPT draws them: two (batch, context) int64 tensors."""
    starts = torch.randint(len(tokens) - context, (batch,))
    rows = torch.stack([torch.from_numpy(tokens[start : start + context + 1].astype(np.int64)) for start in starts])
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
