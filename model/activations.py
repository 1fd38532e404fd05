"""Activation checkpointing: computing activations again in the backward pass instead of keeping them.

Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "selective", "full"]

# What "selective" keeps: the outputs of linear layers, which are most of the work and little of the memory.
KEPT = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]


def checkpointed(function: Callable[..., Tensor], checkpointing: Checkpointing, *arguments: Any) -> Tensor:
    """`function(*arguments)`, of which only the arguments are kept, and with "selective" the outputs of linear layers.

    The random state is replayed, so dropout masks are the same the second time.
    """
    if checkpointing == "none" or not torch.is_grad_enabled():
        return function(*arguments)
    if checkpointing == "full":
        return checkpoint(function, *arguments, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)
