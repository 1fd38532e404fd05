"""Where and in which precision the network runs, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from common.errors import UserError
from common.threads import unbind

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """The asked device, or with "auto" the best one present: CUDA, then Apple's MPS, then the CPU.

    Unless it is the CPU, whose threads each keep a core, this thread is free to run on all cores from then on.

    Raises:
        UserError: the asked device is not on this machine, or there are fewer GPUs than processes.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "auto" and not present[name]:
        found = ", ".join(device for device, here in present.items() if here)
        raise UserError(f"device {name!r} is not available here (found: {found}); use --device auto")
    kind = next(device for device, here in present.items() if here) if name == "auto" else name
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise UserError(
            f"process {local_rank + 1} of this machine has no GPU, there being {gpus}; start at most as many processes "
            f"as GPUs (torchrun --nproc-per-node {gpus}), or use --device cpu"
        )
    if kind != "cpu":
        unbind()
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


@dataclass(frozen=True)
class Precision:
    """The number format of matrix products; weights and optimizer state are always fp32."""

    name: Literal["fp32", "bf16", "fp16"]
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    def autocast(self, device: torch.device, keep_weights: bool = False) -> AbstractContextManager[None]:
        """The context in which forward passes run.

        With `keep_weights` it keeps the weights in its own format from one use to the next, for many short passes. A
        single pass uses each once, and copies that stay are not only large: lying among what is freed, they leave no
        room there for the next block's tensors.
        """
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype, cache_enabled=keep_weights)


def choose_precision(device: torch.device, name: PrecisionName) -> Precision:
    """The asked precision, or with "auto" the fastest one that the hardware has instructions for."""
    if name != "auto":
        return Precision(name, "as configured")
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return Precision("bf16", "this GPU has bf16 tensor cores")
        if capability >= (7, 0):
            return Precision("fp16", "this GPU has fp16 but no bf16 tensor cores")
        return Precision("fp32", "this GPU has no tensor cores")
    if device.type == "cpu":
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
            return Precision("bf16", "this CPU has bf16 instructions")
        return Precision("fp32", "this CPU has no bf16 instructions")
    return Precision("fp32", "the safe choice on this device")
