"""By what an adapter knows the base that it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from model.adapters.attach import base_parameters
from model.decoder import Decoder
from model.slots import Linear

SAMPLES = 256  # values of each tensor
QUANTIZED = "quantized"  # instead of a hash of the linear layers


def base_fingerprint(model: Decoder, trained: Collection[str] = ()) -> str:
    """Hashes of names, shapes and some values of the base, without the parameters `trained`.

    Four of them, joined by dashes: embeddings, norms and biases rounded to bf16, then by way of fp16, and the same of
    the linear layers. So copies of one base in fp32, bf16 and fp16, quantized or not, can be told from another base.
    """
    inside = model.blocks.named_modules(prefix="blocks")  # the head is no linear layer here
    linears = {key: module for key, module in inside if isinstance(module, Linear)}
    quantized = any(module.quantized is not None for module in linears.values())
    hashes = {(linear, half): hashlib.sha256() for linear in (False, True) for half in (False, True)}
    for key, parameter in base_parameters(model).items():
        if key in trained:
            continue
        module, _, last = key.rpartition(".")
        sample = _sample(parameter.detach())
        for half in (False, True):
            rounded = (sample.half() if half else sample).bfloat16()
            found = hashes[last == "weight" and module in linears, half]
            found.update(f"{key} {tuple(parameter.shape)}\n".encode())
            found.update(rounded.view(torch.int16).numpy().tobytes())
    words = [QUANTIZED if linear and quantized else found.hexdigest()[:16] for (linear, _), found in hashes.items()]
    return "-".join(words)


def compare_bases(first: str, second: str) -> Literal["same", "alike", "different"]:
    """Two fingerprints; "alike" when all that can be compared is the same, because one base is quantized."""
    parts = [dict(enumerate(text.split("-"))) for text in (first, second)]
    agree = {number: word == parts[1].get(number) for number, word in parts[0].items()}
    if not (agree[0] or agree[1]):
        return "different"
    if QUANTIZED in (parts[0].get(2), parts[1].get(2)):
        return "same" if agree[2] else "alike"
    return "same" if agree[2] or agree[3] else "different"


def _sample(tensor: Tensor) -> Tensor:
    """Values at fixed places, fp32 on the CPU."""
    count = min(SAMPLES, tensor.numel())
    places = torch.arange(count, device=tensor.device) * tensor.numel() // max(count, 1)
    return tensor.flatten()[places].float().cpu()
