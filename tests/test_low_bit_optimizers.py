"""AdamW with a state of eight bits: that it learns, what its state takes, and that checkpoints give it back."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.runs import Run
from model import Decoder, ModelConfig
from training.checkpoints import load_checkpoint, save_checkpoint, take_snapshot
from training.low_bit_optimizers import adamw_8bit, can_page

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=96, context_length=32, layers=2, width=64, heads=2)


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("bitsandbytes")


def model_and_optimizer(seed: int = 0, paged: bool = False) -> tuple[Decoder, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Decoder(CONFIG)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": 3e-3, "peak_lr": 3e-3, "weight_decay": 0.1},
        {"params": others, "lr": 1e-3, "peak_lr": 1e-3, "weight_decay": 0.0},
    ]
    return model, adamw_8bit(groups, (0.9, 0.95), 1e-8, paged)


def train(model: Decoder, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.param_groups[0]["lr"] = 3e-3 / (1 + step)  # as a schedule would
        ids = torch.randint(96, (4, 17), generator=torch.Generator().manual_seed(step % 2))
        loss = model(ids[:, :-1], ids[:, 1:]) / 64
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_it_learns_and_its_state_has_eight_bits() -> None:
    model, optimizer = model_and_optimizer()
    losses = train(model, optimizer, range(20))
    assert losses[-1] < losses[0] - 0.5
    sizes = {torch.uint8: 0, torch.float32: 0}
    for parameter in model.parameters():
        for state in ("state1", "state2"):
            tensor = optimizer.state[parameter][state]
            assert tensor.dtype == (torch.uint8 if parameter.numel() >= 4096 else torch.float32)
            sizes[tensor.dtype] += 1
    assert min(sizes.values()) > 0
    of_matrix = optimizer.state[model.embedding.weight]
    bits = 8 * sum(of_matrix[key].nbytes for key in ("state1", "state2", "absmax1", "absmax2"))
    assert bits / model.embedding.weight.numel() == pytest.approx(16.25)


def test_it_follows_adamw_of_full_precision() -> None:
    model, optimizer = model_and_optimizer()
    reference, _ = model_and_optimizer()
    pairs = list(zip(model.parameters(), reference.parameters(), strict=True))
    groups = [
        {**group, "params": [twin for mine in group["params"] for one, twin in pairs if one is mine]}
        for group in optimizer.param_groups
    ]
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, optimizer, range(5))
    train(reference, torch.optim.AdamW(groups), range(5))
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        moved = (theirs - start[name]).norm()
        assert moved > 0 and (mine - theirs).norm() <= 0.15 * moved, name


def test_a_checkpoint_gives_it_back_bit_for_bit(tmp_path: Path) -> None:
    whole, optimizer = model_and_optimizer()
    expected = train(whole, optimizer, range(8))

    first, optimizer = model_and_optimizer()
    assert train(first, optimizer, range(5)) == expected[:5]
    run = Run(tmp_path)
    snapshot = take_snapshot(first, [optimizer], None, keep=True)
    checkpoint = save_checkpoint(run, snapshot, {"step": 5}, [])

    second, fresh = model_and_optimizer(seed=1)
    load_checkpoint(checkpoint, second, [fresh], None)
    for parameter, twin in zip(first.parameters(), second.parameters(), strict=True):
        stored, restored = optimizer.state[parameter], fresh.state[twin]
        assert stored.keys() == restored.keys() and stored["step"] == restored["step"] == 5
        for key, tensor in stored.items():
            if isinstance(tensor, torch.Tensor):
                assert tensor.dtype == restored[key].dtype and torch.equal(tensor, restored[key]), key
    assert train(second, fresh, range(5, 8)) == expected[5:]
    for parameter, twin in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(parameter, twin)


def test_a_cpu_pages_nothing_and_nothing_warns() -> None:
    assert not can_page(CPU) and can_page(torch.device("cuda", 0))
    plain, paged = model_and_optimizer(), model_and_optimizer(paged=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(*paged, range(3)) == train(*plain, range(3))
    assert type(paged[1]) is type(plain[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_pages() -> None:
    weight = torch.nn.Parameter(torch.ones(512, 512, device="cuda"))
    optimizer = adamw_8bit([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}], (0.9, 0.95), 1e-8, paged=True)
    weight.sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["state1"].is_paged
    torch.testing.assert_close(weight, torch.full_like(weight, 0.9))


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[quantization\]'"):
        model_and_optimizer()
