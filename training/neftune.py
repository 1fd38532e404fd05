"""Noise on the embeddings of the input while a model is fine-tuned (NEFTune, Jain et al. 2023, arXiv 2310.05914)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model import Decoder


def add_noise(model: Decoder, alpha: float) -> None:
    """While `model` trains, add uniform noise of at most alpha / sqrt(time * width) to what its embedding gives."""

    def noisy(module: nn.Module, inputs: Any, rows: Tensor) -> Tensor | None:  # (batch, time, width)
        if not model.training:
            return None
        bound = alpha / (rows.shape[1] * rows.shape[2]) ** 0.5
        return rows + torch.empty_like(rows).uniform_(-bound, bound)

    model.embedding.register_forward_hook(noisy)
