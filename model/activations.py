"""Activation checkpointing: computing activations again in the backward pass instead of keeping them.

Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model.cache import KVCache
from model.layers import Block

Checkpointing = Literal["none", "selective", "full"]

# What "selective" keeps: the outputs of linear layers, which are most of the work and little of the memory.
KEPT = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]


def run_block(
    block: Block,
    x: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    own_values: Tensor | None,
    cache: KVCache | None,
    checkpointing: Checkpointing,
) -> Tensor:
    """`block(x, ...)`; with checkpointing, only its input (and with "selective" the outputs of linear layers) is kept.

    The random state is replayed, so dropout masks are the same the second time.
    """
    if checkpointing == "none" or not torch.is_grad_enabled():
        return block(x, rotary, own_values, cache)
    if checkpointing == "full":
        return checkpoint(block, x, rotary, own_values, cache, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(block, x, rotary, own_values, cache, use_reentrant=False, context_fn=contexts)
