"""Speed of training steps: python -m benchmarks.training [--config FILE] [--rounds N] [--json FILE]."""

from common.threads import bind_threads, keep_freed_memory

bind_threads()

import ctypes  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402

from benchmarks.table import Measurement, alternate, report  # noqa: E402
from common.cli import load_config, run_command  # noqa: E402
from common.threads import M_MMAP_MAX, M_TRIM_THRESHOLD  # noqa: E402
from data_pipeline.shards import Shard, TokenStream  # noqa: E402
from model import Decoder  # noqa: E402
from model.device import Precision, choose_device, choose_precision  # noqa: E402
from training.batches import Batches  # noqa: E402
from training.config import RunConfig  # noqa: E402
from training.optimizers import follow_schedule, make_optimizers  # noqa: E402
from training.plan import measure_matmul, split_batch  # noqa: E402


@dataclass(frozen=True)
class BenchmarkCommand:
    """Measure training steps of a config on random tokens, its variants in alternation."""

    config: str = "configs/quickstart.py"
    """Run config to measure."""
    rounds: int = 5
    """Rounds after one that warms up."""
    json: str | None = None
    """Also write the figures to this file."""


class Stepper:
    """Training steps on a file of random tokens, with the time of each phase."""

    def __init__(self, config: RunConfig, precision: Precision, directory: Path) -> None:
        self.precision, self.device = precision, choose_device(config.device)
        self.split = split_batch(config, world_size=1)
        path = directory / "random.bin"
        tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 5_000_000)
        tokens.astype("<u2").tofile(path)
        self.batches = Batches(TokenStream([Shard(path, len(tokens))], np.dtype("<u2")), self.split.context, 0)
        torch.manual_seed(0)
        self.model = Decoder(config.model).to(self.device)
        self.optimizers = make_optimizers(self.model, config.optimizer, self.device, precision)
        follow_schedule(config, self.optimizers, 0.3)
        self.windows = 0

    def step(self) -> Measurement:
        clock = Clock(self.device)
        for _ in range(self.split.accumulation):
            inputs, targets = self.batches.micro_batch(self.windows, self.split.micro_batch, self.split.context)
            self.windows += self.split.micro_batch
            clock.lap("load")
            with self.precision.autocast(self.device):
                loss = self.model(inputs.to(self.device), targets.to(self.device)) / self.split.tokens_per_step
            clock.lap("forward")
            loss.backward()
            clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        clock.lap("update")
        seconds = sum(clock.laps.values())
        speed = self.split.tokens_per_step / seconds
        shares = {f"{name} %": 100 * spent / seconds for name, spent in clock.laps.items()}
        return {"tokens/s": speed, "GFLOP/s": speed * self.model.flops_per_token() / 1e9, **shares}


class Clock:
    """Seconds spent in each named phase."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps = device, dict.fromkeys(("load", "forward", "backward", "update"), 0.0)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] += now - self._last
        self._last = now


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`: glibc's own defaults, fixed."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 65_536)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 128 * 1024)


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(BenchmarkCommand, args=argv, prog="python -m benchmarks.training")
    config = load_config(command.config, RunConfig)
    device = choose_device(config.device)
    chosen = choose_precision(device, config.precision)
    with tempfile.TemporaryDirectory() as directory:

        def variant(precision: Precision, memory: Callable[[], None]) -> Callable[[], Measurement]:
            stepper = Stepper(config, precision, Path(directory))

            def measure() -> Measurement:
                memory()
                stepper.step()
                return stepper.step()

            return measure

        variants: dict[str, Callable[[], Measurement]] = {chosen.name: variant(chosen, keep_freed_memory)}
        if device.type == "cpu":
            variants[f"{chosen.name}, freed memory returned"] = variant(chosen, return_freed_memory)
        if chosen.name != "fp32":
            variants["fp32"] = variant(Precision("fp32", "to compare"), keep_freed_memory)
        results = alternate(variants, command.rounds)
        peak = measure_matmul(device, chosen.dtype)
    title = f"{command.config} on {device}, matrix products alone {peak / 1e9:,.0f} GFLOP/s ({chosen.name})"
    report(title, results, "tokens/s", command.json)


if __name__ == "__main__":
    run_command(main)
