"""What is kept in memory: for the backward pass, and of a data set of any size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.shards import Shard, TokenStream
from model import Decoder, ModelConfig
from model.device import Precision
from training.batches import Batches

CONFIG = ModelConfig(
    vocab_size=97,
    context_length=48,
    layers=3,
    width=64,
    heads=2,
    value_embeddings=1,
    dropout=0.2,
    zero_init_projections=False,
)


class Kept(TorchDispatchMode):
    """Counts the bytes made within that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def forward_and_backward(checkpointing: Any) -> tuple[int, dict[str, Tensor], Tensor]:
    """Bytes kept for the backward pass, all gradients, and the random state in the end."""
    torch.manual_seed(0)
    model = Decoder(CONFIG).train()
    model.activation_checkpointing = checkpointing
    ids = torch.randint(0, 97, (4, 49))
    with Kept() as kept:
        loss = model(ids[:, :-1], ids[:, 1:])
    size = kept.bytes()
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return size, gradients, torch.get_rng_state()


def test_checkpointing_gives_the_same_gradients_for_less_memory() -> None:
    """With dropout on: the second time has to draw the masks of the first."""
    everything, expected, state = forward_and_backward("none")
    assert expected.keys() == dict(Decoder(CONFIG).named_parameters()).keys()
    sizes = [everything]
    for checkpointing in ("selective", "full"):
        size, gradients, after = forward_and_backward(checkpointing)
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(gradients[name], value, atol=1e-6, rtol=1e-6)
        assert torch.equal(after, state), "later draws would differ"
        sizes.append(size)
    assert sizes[1] < 0.7 * sizes[0] and sizes[2] < 0.5 * sizes[1], sizes


def test_no_weight_is_kept_in_the_format_of_autocast() -> None:
    """What the context keeps for itself lasts as long as it does."""
    model = Decoder(CONFIG).train()
    model.activation_checkpointing = "full"
    ids = torch.randint(0, 97, (4, 49))
    with Kept() as kept, Precision("bf16", "").autocast(torch.device("cpu")):
        loss = model(ids[:, :-1], ids[:, 1:])
        within = kept.bytes()
    assert within == kept.bytes() and loss.requires_grad


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_resident_memory_stays_flat_however_much_is_read(tmp_path: Path) -> None:
    """5,000 micro-batches from all over four sparse gigabytes; a memory map would keep every page it has touched."""
    path, tokens = tmp_path / "train_00000.bin", 2 * 10**9
    path.touch()
    os.truncate(path, 2 * tokens)
    batches = Batches(TokenStream([Shard(path, tokens)], np.dtype("<u2")), context_length=1024, seed=0)
    for number in range(100):
        batches.micro_batch(range(4 * number, 4 * number + 4), 1024)
    before = resident_bytes()
    seen = set()
    for number in range(100, 5100):
        inputs = batches.micro_batch(range(4 * number, 4 * number + 4), 1024).inputs
        seen.add(batches.position(4 * number))
    assert inputs.shape == (4, 1024) and len(seen) == 5000 and max(seen) - min(seen) > 0.9 * tokens
    assert resident_bytes() - before < 16 * 2**20
