"""Schedules, batches, optimizer groups and config files, each by itself."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from rich.console import Console

from common.errors import UserError
from data_pipeline.shards import Dataset, Shard, TokenStream, token_dtype
from model import Decoder, ModelConfig
from model.device import Precision, choose_device, choose_precision
from model.presets import preset
from training.averaging import WeightAverage
from training.batches import Batches
from training.config import (
    BatchConfig,
    BudgetConfig,
    OpeningConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from training.config_checks import check as check_run
from training.console import ProgressDisplay
from training.distribution import World, process_group
from training.hardware import peak_flops, peak_of
from training.muon import Muon, orthogonalize
from training.optimizers import follow_schedule, make_optimizers
from training.plan import describe_peak, split_batch, split_opening
from training.schedules import Progress, fraction_used, learning_rate_factor, momentum_at
from training.spikes import PATIENCE, WINDOW, SpikeGuard

PROJECT = Path(__file__).resolve().parent.parent


def test_wsd_schedule_in_closed_form() -> None:
    schedule = ScheduleConfig(kind="wsd", warmup=0.1, cooldown=0.4, final=0.2)
    expected = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.35: 1.0, 0.6: 1.0, 0.8: 0.6, 1.0: 0.2, 1.5: 0.2}
    for fraction, factor in expected.items():
        assert learning_rate_factor(schedule, fraction) == pytest.approx(factor)


def test_wsd_without_a_cooldown_stays_at_the_peak() -> None:
    schedule = ScheduleConfig(kind="wsd", warmup=0.1, cooldown=0.0, final=0.2)
    assert [learning_rate_factor(schedule, fraction) for fraction in (0.1, 0.5, 1.0, 1.5)] == [1.0] * 4


def test_cosine_schedule_in_closed_form() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup=0.2, final=0.1)
    for fraction, factor in {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.55, 1.0: 0.1, 2.0: 0.1}.items():
        assert learning_rate_factor(schedule, fraction) == pytest.approx(factor)


def test_the_nearest_end_of_several_budgets_counts() -> None:
    budget = BudgetConfig(tokens=1000, steps=10, minutes=1)
    assert fraction_used(budget, Progress(step=5, tokens=100, seconds=6), 7) == 0.5
    assert fraction_used(budget, Progress(step=1, tokens=900, seconds=6), 7) == 0.9
    assert fraction_used(budget, Progress(step=1, tokens=100, seconds=60), 7) == 1.0
    assert fraction_used(BudgetConfig(epochs=2), Progress(step=1, windows=7), 14) == 0.25


def make_stream(directory: Path, sizes: list[int]) -> TokenStream:
    shards, first = [], 0
    for number, size in enumerate(sizes):
        path = directory / f"train_{number:05d}.bin"
        np.arange(first, first + size, dtype="<u2").tofile(path)
        shards.append(Shard(path, size))
        first += size
    return TokenStream(shards, np.dtype("<u2"))


def test_stream_reads_across_shards(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [10, 1, 7])
    assert len(stream) == 18
    for start in range(18):
        for count in (1, 3, 12, 30):
            assert stream.read(start, count).tolist() == list(range(start, min(18, start + count)))


def test_scoring_windows_predict_every_token_once(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [10, 13])
    windows = stream.scoring_windows(context_length=5, eos_id=99)
    pairs = [(int(i), int(t)) for number in range(len(windows)) for i, t in zip(*windows[number], strict=True)]
    assert pairs == [(99, 0)] + [(n - 1, n) for n in range(1, 23)]


def test_each_epoch_visits_every_window_once(tmp_path: Path) -> None:
    batches = Batches(make_stream(tmp_path, [100, 33]), context_length=4, seed=3)
    n = batches.windows_per_epoch
    assert n == 33
    epochs = [[int(batches.window(e * n + i)[0]) for i in range(n)] for e in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(0, 132, 4))
    assert epochs[0] != epochs[1] != epochs[2]
    again = Batches(make_stream(tmp_path, [100, 33]), context_length=4, seed=3)
    assert [int(again.window(i)[0]) for i in range(n)] == epochs[0]


def test_targets_are_the_next_tokens(tmp_path: Path) -> None:
    batch = Batches(make_stream(tmp_path, [100]), context_length=4, seed=0).micro_batch(range(3), 4)
    inputs, targets = batch.inputs, batch.targets
    assert torch.equal(inputs + 1, targets) and inputs.shape == (3, 4)


def test_data_order_ignores_global_random_state(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [200])
    first = Batches(stream, 4, 0).micro_batch(range(5), 4).inputs
    np.random.seed(1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(Batches(stream, 4, 0).micro_batch(range(5), 4).inputs, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_little_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than one window"):
        Batches(make_stream(tmp_path, [8]), context_length=8, seed=0)


def test_dtype_follows_the_vocabulary() -> None:
    assert token_dtype(65_536) == np.dtype("<u2") and token_dtype(65_537) == np.dtype("<u4")


def test_dataset_reads_its_manifest(project: Path) -> None:
    dataset = Dataset(project / "data" / "tiny")
    documents = dataset.split("val").documents()
    assert len(documents) == 20
    assert int(documents["tokens"].sum()) == len(dataset.split("val"))
    (project / "data" / "tiny" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged.*python -m data_pipeline"):
        Dataset(project / "data" / "tiny")


CPU, FP32 = torch.device("cpu"), Precision("fp32", "exact")


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize(
    "config", [ModelConfig(), ModelConfig(tied=False, value_embeddings=1), preset("gpt2"), preset("mini-llama")]
)
def test_every_parameter_is_in_exactly_one_group(config: ModelConfig, matrices: Literal["muon", "adamw"]) -> None:
    model = Decoder(replace(config, layers=2, width=64, heads=2, kv_heads=None, vocab_size=50))
    optimizers = make_optimizers(model, RunConfig(optimizer=OptimizerConfig(matrices=matrices)), CPU, FP32)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    counted = Counter(id(p) for group in groups for p in group["params"])
    assert set(counted.values()) == {1}
    assert set(counted) == {id(p) for p in model.parameters()}
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    rates = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        if "embedding" in name and p.ndim == 2:
            assert rates[id(p)] == (3e-3 if matrices == "muon" else OptimizerConfig().lr), name
    assert decayed == {id(p) for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2}


def test_groups_keep_their_ratio_of_rates() -> None:
    model = Decoder(ModelConfig(vocab_size=50, layers=1, width=16, heads=1, tied=False))
    config = OptimizerConfig(lr=1.0, embedding_lr=3.0, head_lr=4.0, scalar_lr=5.0)
    optimizers = make_optimizers(model, RunConfig(optimizer=config), CPU, FP32)
    run = RunConfig(optimizer=config, schedule=ScheduleConfig(warmup=0.2))
    assert follow_schedule(run, optimizers, 0.1) == 0.5
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.5, 1.5, 2.0, 2.5]


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96)])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    together = orthogonalize(matrices)
    values = torch.linalg.svdvals(together)
    assert values.min() > 0.6 and values.max() < 1.3
    for matrix, result in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalize(matrix[None])[0], result, atol=1e-4, rtol=1e-4)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert ((left @ right) * result).sum() / min(shape) == pytest.approx(1.0, abs=0.2)  # the same directions
    assert torch.isfinite(orthogonalize(torch.zeros(1, *shape))).all()


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96)])
def test_orthogonalizing_in_bf16_is_close(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    exact, low = orthogonalize(matrices), orthogonalize(matrices.bfloat16()).float()
    values = torch.linalg.svdvals(low)
    assert values.min() > 0.6 and values.max() < 1.3 and (values.amax(-1) / values.amin(-1)).max() < 4
    assert (low - exact).norm() < 0.05 * exact.norm()


def test_muon_step_in_its_parts() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4))
    before, gradient = weight.detach().clone(), torch.randn(8, 4)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5, compute_dtype=torch.float32).step()
    average = 0.1 * gradient
    update = orthogonalize((0.1 * gradient + 0.9 * average)[None])[0] * 2**0.5
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * update)


def test_cautious_decay_spares_weights_that_the_update_enlarges() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4))
    before, gradient = weight.detach().clone(), torch.randn(8, 4)
    weight.grad = gradient.clone()
    Muon([weight], 0.1, 0.0, 0.5, torch.float32, cautious=True).step()
    update = orthogonalize(gradient[None])[0] * 2**0.5
    shrinking = update * before > 0
    assert shrinking.any() and not shrinking.all()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.05 * shrinking) - 0.1 * update)


def test_momentum_rises_over_its_warm_up() -> None:
    optimizer = OptimizerConfig(momentum=0.95, momentum_start=0.85, momentum_warmup=0.2)
    for fraction, momentum in {0.0: 0.85, 0.1: 0.9, 0.2: 0.95, 0.9: 0.95}.items():
        assert momentum_at(optimizer, fraction) == pytest.approx(momentum)
    assert momentum_at(OptimizerConfig(), 0.0) == 0.95
    model = Decoder(ModelConfig(vocab_size=50, layers=1, width=16, heads=1))
    muon, _ = make_optimizers(model, RunConfig(optimizer=optimizer), CPU, FP32)
    follow_schedule(RunConfig(optimizer=optimizer), [muon], 0.1)
    assert muon.param_groups[0]["momentum"] == pytest.approx(0.9)


def test_the_opening_cuts_windows_into_shorter_sequences(tmp_path: Path) -> None:
    batches = Batches(make_stream(tmp_path, [100]), context_length=8, seed=0)
    whole, short = batches.micro_batch(range(3), 8), batches.micro_batch(range(3), 2)
    assert short.inputs.shape == (12, 2) and torch.equal(short.inputs.flatten(), whole.inputs.flatten())
    assert torch.equal(short.targets.flatten(), whole.targets.flatten())


def test_the_opening_split_keeps_its_tokens() -> None:
    opening = OpeningConfig(fraction=0.5, tokens_per_step=3 * 1024, context_length=256)
    config = RunConfig(batch=BatchConfig(tokens_per_step=8192, micro_batch_size=2), opening=opening)
    main = split_batch(config, 1)
    split = split_opening(config, main)
    assert (split.tokens_per_step, split.micro_batch, split.accumulation, split.sequence) == (3072, 1, 3, 256)
    with pytest.raises(UserError, match="2,048 or 4,096"):
        split_opening(config, split_batch(config, 2))
    with pytest.raises(UserError, match="does not divide"):
        check_run(replace(config, opening=OpeningConfig(context_length=300)))


def test_spikes_are_refused_after_enough_steps_only() -> None:
    guard = SpikeGuard(6.0)
    rng = np.random.default_rng(0)
    assert not guard.take_note(100.0, 1.0)  # nothing to compare with yet
    for loss in rng.normal(3.0, 0.1, WINDOW):
        assert not guard.take_note(float(loss), 1.0 + float(rng.normal(0, 0.1)))
    again = SpikeGuard(6.0)
    again.restore(json.loads(json.dumps(guard.state())))
    for one in (guard, again):
        assert not one.take_note(3.2, 1.2)
        assert one.take_note(5.0, 1.0) and one.take_note(3.0, 9.0)
    assert not SpikeGuard(None).take_note(math.nan, math.nan)


def test_what_is_not_finite_is_passed_over_with_limited_patience() -> None:
    guard = SpikeGuard(6.0)
    assert [guard.take_note(math.nan, 1.0) for _ in range(PATIENCE + 1)] == [True] * PATIENCE + [False]
    assert not guard.take_note(3.0, 1.0) and guard.take_note(3.0, math.inf)


def test_the_average_of_the_weights_follows_them() -> None:
    model = Decoder(ModelConfig(vocab_size=50, layers=1, width=16, heads=1))
    average = WeightAverage(model, 0.5)
    before = model.embedding.weight.detach().clone()
    with torch.no_grad():
        model.embedding.weight.add_(1.0)
    average.update(step=1000)
    with average.in_place_of_weights(model):
        torch.testing.assert_close(model.embedding.weight.detach(), before + 0.5)
    torch.testing.assert_close(model.embedding.weight.detach(), before + 1.0)
    average.update(step=0)  # an early step counts for more
    torch.testing.assert_close(average.averages["embedding.weight"], before + 0.95)


def test_share_of_the_peak_is_unknown_on_unknown_devices() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12 and peak_of("Tesla T4") == 65e12
    assert peak_of("NVIDIA GeForce RTX 4090") == 165.2e12
    assert peak_of("NVIDIA A10G") == 70e12 and peak_of("NVIDIA A10") == 125e12
    assert peak_of("Some Device T400") is None
    assert peak_flops(CPU, Precision("bf16", "")) is None


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D"),
        *("NVIDIA RTX 3090 with Max-Q Design", "NVIDIA A10 Mobile"),
    ],
)
def test_a_lesser_device_is_not_taken_for_the_one_of_its_name(name: str) -> None:
    assert peak_of(name) is None


def test_the_plan_says_why_there_is_no_share_of_the_peak() -> None:
    assert describe_peak(CPU, Precision("bf16", "")) == "n/a: not in the table of devices"
    assert describe_peak(CPU, FP32) == "n/a: peaks of fp32 are not in the table of devices"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="--nproc-per-node 2"):
        choose_device("auto", 2)


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_a_gpu_computes_in_what_it_has_units_for(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    assert choose_precision(torch.device("cuda"), "auto").name == name


def test_several_processes_need_a_device_that_can_exchange() -> None:
    with pytest.raises(UserError, match="start one process, or use --device cpu"):
        with process_group(World(size=2), torch.device("mps")):
            pass


def test_the_time_left_is_never_negative() -> None:
    """A budget in minutes is used up before its last step ends."""
    console = Console(file=io.StringIO())
    row = {"step": 9, "train/loss": 1.0, "lr": 0.1, "tokens_per_second": 5.0}
    ProgressDisplay(console).update(row, 1.01, -0.4)
    assert isinstance(console.file, io.StringIO) and "ETA 0 s" in console.file.getvalue()
