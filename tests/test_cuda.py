"""What the CPU tests say, said of a GPU; left out where there is none."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training_resume import assert_same_checkpoint
from tiny import PROJECT, environment, losses, read_metrics, run_train, torchrun

from common.runs import Run
from model import Decoder, KVCache, ModelConfig
from model.device import Precision
from model.presets import preset
from training.hardware import peak_flops

DEVICE = torch.device("cuda", 0)
ON_DEVICE = ("--device", DEVICE.type)
SMALL = {"vocab_size": 320, "context_length": 32, "layers": 2, "width": 64, "heads": 2, "kv_heads": None}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def assert_it_learned(run: Path) -> None:
    rows = read_metrics(run)
    assert rows[-1]["step"] == 12 and rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.2
    assert rows[-1]["val/loss"] < rows[0]["train/loss"] - 0.2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns_and_is_saved(project: Path, precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    run_train(project, *ON_DEVICE, "--precision", precision)
    run = Run(project / "runs" / "tiny")
    assert_it_learned(run.path)
    assert len(run.samples.read_text().splitlines()) == 2
    checkpoint = run.checkpoints()[-1]
    checkpoint.verify()
    assert DEVICE.type in load_file(checkpoint.path / "random_00000.safetensors"), "dropout draws from its generator"
    weights = load_file(checkpoint.path / "model.safetensors")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())


def test_a_compiled_run_learns(project: Path) -> None:
    torch._dynamo.reset()
    result = run_train(project, *ON_DEVICE, "--compile", "on")
    torch._dynamo.reset()
    assert "compile: on, a pass is" in result.stderr
    assert_it_learned(project / "runs" / "tiny")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_share_of_the_peak_is_logged_or_said_to_be_unknown(project: Path, precision: str) -> None:
    result = run_train(project, *ON_DEVICE, "--precision", precision, "--budget.steps", "2")
    known = peak_flops(DEVICE, Precision("fp32" if precision == "fp32" else "bf16", "")) is not None
    assert ("logged as mfu" in result.stderr) is known and ("n/a: " in result.stderr) is not known
    assert all(("mfu" in row) is known for row in read_metrics(project / "runs" / "tiny"))


VARIANTS = {
    **{name: preset(name) for name in ("mini", "gpt2", "mini-llama")},
    "windowed": ModelConfig(window=5),
    "by document": ModelConfig(document_start=3),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_loss_logits_and_gradients_are_those_of_the_cpu(config: ModelConfig) -> None:
    torch.manual_seed(0)
    config = replace(config, **SMALL, init_std=0.1, zero_init_projections=False)  # type: ignore[arg-type]
    here = Decoder(config)
    there = Decoder(config).to(DEVICE)
    there.load_state_dict(here.state_dict())
    ids = torch.randint(0, 320, (4, 33))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    expected, found = here(inputs), there(inputs.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    expected, found = (
        model(inputs.to(device), targets.to(device)) / targets.numel()
        for model, device in ((here, torch.device("cpu")), (there, DEVICE))
    )
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    expected.backward()
    found.backward()
    others = dict(there.named_parameters())
    for name, parameter in here.named_parameters():
        gradient, other = parameter.grad, others[name].grad
        assert (gradient is None) is (other is None), name
        if gradient is not None and other is not None:
            torch.testing.assert_close(other.cpu(), gradient, atol=1e-4, rtol=1e-4, msg=name)


@torch.inference_mode()
def test_the_cache_gives_what_recomputing_gives() -> None:
    torch.manual_seed(0)
    config = replace(ModelConfig(), **SMALL, zero_init_projections=False)  # type: ignore[arg-type]
    model = Decoder(config).to(DEVICE).eval()
    ids = torch.randint(0, 320, (3, 32), device=DEVICE)
    cache = KVCache(config, 3, 32, DEVICE, torch.float32)
    parts = [model(ids[:, :20], cache=cache)] + [model(ids[:, at : at + 1], cache=cache) for at in range(20, 32)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_rows_of_different_lengths_share_a_cache(config: ModelConfig) -> None:
    torch.manual_seed(0)
    config = replace(config, **SMALL, init_std=0.1, zero_init_projections=False)  # type: ignore[arg-type]
    model, counts = Decoder(config).to(DEVICE).eval(), [20, 3, 11]
    ids = torch.randint(0, 320, (3, 32), device=DEVICE)
    cache = KVCache(config, 3, 32, DEVICE, torch.float32)
    model(ids[:, :20], cache=cache, counts=counts)
    following = torch.stack([row[count] for row, count in zip(ids, counts, strict=True)])[:, None]
    found, expected = model(following, cache=cache), model(ids)
    for number, count in enumerate(counts):
        torch.testing.assert_close(found[number, 0], expected[number, count], atol=1e-4, rtol=1e-4)


def test_a_killed_run_ends_in_the_same_bits(project: Path) -> None:
    """In fp32, where the kernels of this size are deterministic; killed in step 6, it goes on from step 4."""
    arguments = (*ON_DEVICE, "--checkpoint.every", "4", "--optimizer.ema", "0.9")
    command = [sys.executable, str(PROJECT / "tests" / "rank_programs.py"), "sigkill_eventful", "tiny.py", *arguments]

    def train(**extra: str) -> subprocess.CompletedProcess[str]:
        variables = environment(CUBLAS_WORKSPACE_CONFIG=":4096:8", **extra)
        return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, timeout=300)

    done = train()
    assert done.returncode == 0, done.stderr
    run, straight = project / "runs" / "tiny", project / "straight"
    shutil.move(run, straight)
    done = train(KILL_IN_STEP="6")
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = train()
    assert done.returncode == 0 and "resuming runs/tiny at step 4" in done.stderr, done.stderr
    assert losses(straight) == losses(run)
    assert_same_checkpoint(straight, run)


@two_gpus
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_equal_one(project: Path, strategy: str) -> None:
    arguments = (*ON_DEVICE, "--model.dropout", "0")
    run_train(project, *arguments)
    one, two = project / "one", project / "runs" / "tiny"
    shutil.move(two, one)
    torchrun(project, *arguments, "--distribution.strategy", strategy)
    for left, right in zip(read_metrics(one), read_metrics(two), strict=True):
        for key in ("train/loss", "grad_norm", "val/loss"):
            assert left.get(key) == pytest.approx(right.get(key), abs=1e-3), (left["step"], key)
    Run(two).checkpoints()[-1].verify()
    result = run_train(project, *arguments, "--budget.steps", "14")
    assert "resuming runs/tiny at step 12" in result.stderr
