"""What a device can do at best, and how much memory was used."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from model.device import Precision

# Dense matrix products, TFLOP/s in bf16 or fp16 with fp32 sums, from the makers' data sheets; the longest name that
# occurs in the device's own name counts. V100, T4 and the like have no bf16.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "T4": 65.0,
    "V100": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}

# Words of a name that say that the device is less than the one of its name: a slice of it, or a slower kind.
LESS = ("MIG", "Laptop", "Mobile", "Max Q", "4090 D")


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s that `device` can reach in `precision`; None where the table does not say."""
    if device.type != "cuda" or precision.name == "fp32":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(device_name: str) -> float | None:
    """FLOP/s in half precision of a device of that name, or None for one that is not in the table."""
    words = device_name.replace("-", " ").split()
    if any(f" {less} " in f" {' '.join(words)} " for less in LESS):
        return None
    matches = [name for name in PEAK_TFLOPS if all(word in words for word in name.split())]
    return PEAK_TFLOPS[max(matches, key=len)] * 1e12 if matches else None


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: on a GPU those of PyTorch's tensors, else all resident ones."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):  # elsewhere than on Linux, where the other number may be that of the parent process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
