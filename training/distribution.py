"""Processes: who this one is, what they exchange, and how the network is spread over them."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError
from model import Decoder
from model.device import Precision
from model.layers import Block
from training.config import Strategy


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Element-wise sum over all processes, in double precision."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device if device.type == "cuda" else "cpu")
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in rank order."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def world_from_environment() -> World:
    """What `torchrun` says of this process; a world of one when it was started plainly."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
    )


# How long one process may keep the others waiting before they give up: the main process alone writes, syncs, hashes and
# verifies checkpoints, which takes longer than NCCL's ten minutes where the model is large and the disk slow.
PATIENCE = timedelta(hours=1)
LAST_DROPS = 0.1  # seconds in which others can have the interpreter's lock
_replicated: WeakSet[DistributedDataParallel] = WeakSet()  # what the process group must not end before


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the other processes, over NCCL between GPUs and gloo between CPUs; leave when the block ends.

    Within another such block there is nothing to do: a group that has ended cannot begin again.

    Raises:
        UserError: several processes on a device between which nothing can be exchanged.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():
        yield
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"several processes cannot train on {device.type}; start one process, or use --device cpu")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        # A thread of gloo may still be waiting for the interpreter's lock, to drop the tensors of its last exchange.
        # It must have had it before this process ends, or PyTorch aborts.
        time.sleep(LAST_DROPS)
        # A reducer that outlives the group would end it while it holds that lock, and wait for the thread: a deadlock.
        for network in _replicated:
            network.reducer = network.logger = None
        dist.destroy_process_group()


def distribute(
    model: Decoder, strategy: Strategy, world: World, device: torch.device, precision: Precision
) -> nn.Module:
    """What forward and backward passes go through so that gradients are averaged over all processes.

    "ddp" wraps the model, of which every process keeps a whole copy. "fsdp" (FSDP2) turns the parameters of `model`
    itself into DTensors: each process keeps its rows of every parameter, of its gradient and of its optimizer state,
    and whole matrices are gathered block by block when a pass needs them. One process alone needs neither.

    The numbers are the same, up to the order of sums. Under FSDP too, master weights, gradient sums and the residual
    stream are fp32 and matrix products run under autocast. Only what travels differs: in bf16 and fp16 the matrices
    and biases of the blocks are rounded before they are gathered, as autocast would round them afterwards, and their
    gradients are summed over processes in fp32. Embeddings, head, norm gains and scalars travel in fp32.

    Must run before optimizers are made, because FSDP replaces the parameters.
    """
    if world.size == 1:
        return model
    if strategy == "ddp":
        # Its new name, which the warning is about, is not in the oldest PyTorch that is supported.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
        network = DistributedDataParallel(model, broadcast_buffers=False)
        _replicated.add(network)
        return network
    shard(model, init_device_mesh(device.type, (world.size,)), precision)
    return model


def shard(model: Decoder, mesh: DeviceMesh, precision: Precision) -> None:
    """Spread the parameters of `model` over the processes of a `mesh` of one dimension."""
    # The warning is of in-place operations on a group's output; the decoder has none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    rounded = MixedPrecisionPolicy(precision.dtype, torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy() if precision.name == "fp32" else rounded
    for block in model.blocks:
        assert isinstance(block, Block)
        # One group, so one gather and one reduction a block. Its norm gains, if any, go with the rest of the model.
        fully_shard([block.attention, block.mlp], mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass of `model` needs all processes."""
    return isinstance(model, FSDPModule)


@contextmanager
def without_exchange(network: nn.Module) -> Iterator[None]:
    """Keep the gradients of the forward and backward passes inside on this process.

    Under FSDP they are then whole ones, 4 bytes a parameter on every process until the next exchange.
    """
    if isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)
    else:
        yield


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale all gradients down to a global norm of `largest` (0: leave them); returns the norm they had.

    The norm is that of the whole gradient and the same on every process: where one has a value that is not finite,
    all see it.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest or math.inf)
    return float(whole(norm).item())


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be spread over processes."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def release_gathered(model: nn.Module) -> None:
    """Let go of whole parameters that a forward pass without a backward one leaves gathered under FSDP."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes; all of them must ask for it at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's share of a `tensor` that all have whole, spread as `like` is; the tensor itself if that is not.

    Not `distribute_tensor`, which sends the data of the main process and gives its random state to all.
    """
    if not isinstance(like, DTensor):
        return tensor
    everywhere = DTensor.from_local(tensor.to(like.device), like.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=like.placements)


@contextmanager
def in_lockstep(model: Decoder) -> Iterator[None]:
    """Within, every process gets the main process's outputs from a sharded `model`, so that all decide alike.

    Sampling then ends after the same token everywhere, even where the hardware of two processes rounds differently.
    """
    if not is_sharded(model):
        yield
        return

    def receive(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        dist.broadcast(logits, src=0)

    hook = model.register_forward_hook(receive)
    try:
        yield
    finally:
        hook.remove()
