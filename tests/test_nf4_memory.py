"""A model whose fp32 weights are never in memory is streamed into four bits and learns there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest
from inference_fixtures import ROOT

from model.config import ModelConfig
from model.presets import preset

PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from model.adapters.attach import attach
from model.adapters.config import AdapterConfig
from model.config import ModelConfig
from model.device import choose_precision
from model.nf4_weight import Nf4Weight
from model.weights import Storage, empty_decoder, fill

def random_weights(model):
    noise = (0.02 * torch.randn(2**20)).bfloat16()
    for name, weight in list(model.weights()):
        count = weight.shape.numel()
        ones = torch.ones(weight.shape) if len(weight.shape) == 1 else None
        yield name, noise.repeat(-(-count // len(noise)))[:count].view(weight.shape) if ones is None else ones

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

torch.manual_seed(0)
config, dtype, precision = ModelConfig(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3]
cpu, times = torch.device("cpu"), [time.perf_counter()]
before = peak()
model = empty_decoder(config, cpu, Storage("nf4", dtype))
fill(model, random_weights(model), "random weights")
weights = [module for module in model.modules() if isinstance(module, Nf4Weight)]
attach(model, AdapterConfig(method="lora", rank=32, alpha=64))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
filled = peak()
times.append(time.perf_counter())
ids = torch.randint(config.vocab_size, (1, 129))
losses = []
for _ in range(3):
    with choose_precision(cpu, precision).autocast(cpu):
        loss = model.train()(ids[:, :-1], ids[:, 1:]) / 128
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    times.append(time.perf_counter())
print(json.dumps({
    "values": sum(weight.shape.numel() for weight in weights),
    "bytes": sum(weight.nf4.nbytes for weight in weights),
    "trained": sum(parameter.numel() for parameter in trained),
    "parameters": model.parameter_count(),
    "losses": losses,
    "seconds": [later - earlier for earlier, later in zip(times, times[1:])],
    "before": before, "filled": filled, "peak": peak(),
}))
"""

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads the largest resident memory from /proc")


def train(config: ModelConfig, dtype: str, precision: str) -> dict[str, Any]:
    """Three steps of LoRA, rank 32, on all linear layers, in a process of its own; what it measured."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asdict(config)), dtype, precision],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_proc
@pytest.mark.parametrize(("dtype", "precision"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_a_small_model_in_four_bits_learns(dtype: str, precision: str) -> None:
    sizes = {"layers": 2, "width": 128, "heads": 4, "kv_heads": 2, "mlp_width": 256, "vocab_size": 512}
    found = train(replace(preset("llama-3.2-3b"), context_length=128, **sizes), dtype, precision)
    assert found["losses"][2] < found["losses"][0]
    assert 8 * found["bytes"] / found["values"] == pytest.approx(4.127, abs=0.01)
    block = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256
    assert found["values"] == 2 * block
    assert found["parameters"] - found["trained"] == 2 * (block + 2 * 128) + 128 + 512 * 128


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "precision"), [("bf16", "auto"), ("fp32", "fp32")])
def test_llama_of_three_billion_learns_in_eight_gigabytes(dtype: str, precision: str) -> None:
    found = train(replace(preset("llama-3.2-3b"), context_length=512), dtype, precision)
    fill, *steps = found["seconds"]
    print(
        f"{dtype}, {precision}: {found['values'] / 1e9:.2f} billion weights in {found['bytes'] / 1e9:.2f} GB; peak "
        f"{found['filled'] / 1e9:.2f} GB while filled ({fill:.0f} s), {found['peak'] / 1e9:.2f} GB while trained "
        f"({', '.join(f'{step:.0f}' for step in steps)} s a step); losses {found['losses']}"
    )
    assert found["trained"] == 48_627_712
    assert 8 * found["bytes"] / found["values"] == pytest.approx(4.127, abs=1e-3)
    assert found["losses"][2] < found["losses"][0]
    assert found["peak"] < 8e9
