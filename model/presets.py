"""Architectures by name, with the shapes as published."""

from __future__ import annotations

from dataclasses import replace

from common.errors import UserError
from model.config import ModelConfig

_STOCK = ModelConfig(  # without what this project's recipe adds
    norm_gain=True,
    qk_norm=False,
    embedding_norm=False,
    residual_scalars=False,
    logit_softcap=None,
    init_std=0.02,
    zero_init_projections=False,
)

_GPT2 = replace(
    _STOCK,
    vocab_size=50_257,
    context_length=1024,
    activation="gelu",
    norm="layer",
    bias=True,
    position="learned",
)

_LLAMA = replace(
    _STOCK,
    vocab_size=128_256,
    context_length=131_072,
    activation="swiglu",
    norm="rms",
    position="rope",
    rope_base=500_000.0,
)

PRESETS = {
    # This project's own recipe, and about its size in the layout of Llama.
    "mini": ModelConfig(layers=8, width=448, tied=False, logit_softcap=None),
    "mini-llama": replace(
        _LLAMA, vocab_size=32_768, context_length=1024, layers=12, width=512, heads=8, kv_heads=4, mlp_width=1408
    ),
    # Radford et al. 2019.
    "gpt2": replace(_GPT2, layers=12, width=768, heads=12),
    "gpt2-medium": replace(_GPT2, layers=24, width=1024, heads=16),
    "gpt2-large": replace(_GPT2, layers=36, width=1280, heads=20),
    "gpt2-xl": replace(_GPT2, layers=48, width=1600, heads=25),
    # arXiv 2407.21783, and the two small models that were distilled from it.
    "llama-3.2-1b": replace(_LLAMA, layers=16, width=2048, heads=32, kv_heads=8, mlp_width=8192, rope_factor=32.0),
    "llama-3.2-3b": replace(_LLAMA, layers=28, width=3072, heads=24, kv_heads=8, mlp_width=8192, rope_factor=32.0),
    "llama-3.1-8b": replace(
        _LLAMA, layers=32, width=4096, heads=32, kv_heads=8, mlp_width=14_336, rope_factor=8.0, tied=False
    ),
}


def preset(name: str) -> ModelConfig:
    """The architecture called `name`. Raises UserError when there is none; the message lists those there are."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
