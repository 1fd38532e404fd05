"""One variant of a training benchmark in a process of its own: it takes a step whenever it is asked, and reports.

A process of its own gives each variant its own memory, threads and allocator settings. `benchmarks.training` starts
these, one after the other is asked, so that a machine that slows down slows all of them.
"""

from common.threads import bind_threads, keep_freed_memory

bind_threads()

import ctypes  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

from benchmarks.peer import Peer, precision_without_scaler, random_windows  # noqa: E402
from benchmarks.process import peak_held  # noqa: E402
from data_pipeline.shards import Shard, TokenStream, token_dtype  # noqa: E402
from model import Decoder  # noqa: E402
from model.device import choose_device  # noqa: E402
from training.batches import Batches  # noqa: E402
from training.compilation import compile_blocks  # noqa: E402
from training.config import RunConfig  # noqa: E402
from training.distribution import clip_gradients, distribute, process_group, without_exchange, world_from_environment  # noqa: E402
from training.optimizers import follow_schedule, make_optimizers  # noqa: E402
from training.plan import measure_matmul, split_batch  # noqa: E402

TOKENS = 5_000_000  # of the file of random tokens that the loader reads
PHASES = ("load", "forward", "backward", "update")


@dataclass(frozen=True)
class Variant:
    """What one worker measures."""

    config: RunConfig
    peer: str = ""
    """Path of a nanoGPT checkout, to train its model of the same shape instead of ours."""
    peer_compiled: bool = False
    keep_freed: bool = True
    """Let freed memory stay in the process."""
    processes: int = 1

    def to_json(self) -> str:
        values = {**asdict(self), "config": TypeAdapter(RunConfig).dump_python(self.config, mode="json")}
        return json.dumps(values)

    @staticmethod
    def from_json(text: str) -> "Variant":
        return TypeAdapter(Variant).validate_python(json.loads(text))


class Clock:
    """Seconds spent in each named phase."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps = device, dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        self.laps[name] += now - self._last
        self._last = now


class Ours:
    """Training steps as `training/loop.py` takes them, with the time of each phase.

    Left out is what belongs to no phase or costs next to nothing: the loss, the norm and the clock that processes agree
    on, the number of targets (here it is known), the gradient scaler, spikes, the average of the weights, logging. Each
    micro-batch is read and copied before its pass, not all of them at the start of the step.
    """

    def __init__(self, config: RunConfig, directory: Path) -> None:
        self.config, self.world = config, world_from_environment()
        self.device = choose_device(config.device, self.world.local_rank)
        self.precision = precision_without_scaler(self.device, config.precision)
        self.split = split_batch(config, self.world.size)
        self.batches = Batches(random_tokens(config, directory), self.split.context, config.seed)
        torch.manual_seed(config.seed)
        self.model = Decoder(config.model).to(self.device)
        self.model.activation_checkpointing = config.activation_checkpointing
        if config.compile == "on":
            compile_blocks(self.model)
        self.network = distribute(self.model, config.distribution.strategy, self.world, self.device, self.precision)
        self.optimizers = make_optimizers(self.model, config, self.device, self.precision)
        follow_schedule(config, self.optimizers, 0.3)
        self.windows = 0
        self.activations = 0.0

    def step(self) -> dict[str, float]:
        clock, split = Clock(self.device), self.split
        for number in range(split.accumulation):
            first = self.windows + (number * self.world.size + self.world.rank) * split.micro_batch
            batch = self.batches.micro_batch(range(first, first + split.micro_batch), split.sequence).to(self.device)
            clock.lap("load")
            before = held(self.device) if not self.activations else 0.0
            last = number == split.accumulation - 1
            with nullcontext() if last else without_exchange(self.network):
                with self.precision.autocast(self.device):
                    loss = self.network(batch.inputs, batch.targets) / split.tokens_per_step
                clock.lap("forward")
                self.activations = self.activations or held(self.device) - before
                loss.backward()
            clock.lap("backward")
        self.windows += split.windows_per_step
        clip_gradients(self.model, self.config.optimizer.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        clock.lap("update")
        seconds = sum(clock.laps.values())
        shares = {f"{name} %": 100 * spent / seconds for name, spent in clock.laps.items()}
        return {
            "tokens/s": split.tokens_per_step / seconds,
            "kept for backward MiB": self.activations / 2**20,
            **shares,
        }

    def flops_per_token(self) -> int:
        return self.model.flops_per_token()


class Theirs:
    """The same for nanoGPT; its own loop does not tell phases apart."""

    def __init__(self, variant: Variant, directory: Path) -> None:
        config = variant.config
        self.split = split_batch(config, world_size=1)
        self.tokens = random_tokens(config, directory)
        device = choose_device(config.device)
        precision = precision_without_scaler(device, config.precision)
        self.peer = Peer(variant.peer, config.model, 1e-3, config.seed, variant.peer_compiled, device, precision)
        with torch.device("meta"):
            self.flops = Decoder(config.model).flops_per_token()

    def step(self) -> dict[str, float]:
        clock, split = Clock(self.peer.device), self.split
        tokens = np.memmap(self.tokens.shards[0].path, dtype=self.tokens.dtype, mode="r")
        batches = (random_windows(tokens, split.micro_batch, split.context) for _ in range(split.accumulation))
        self.peer.step(batches, split.accumulation)
        clock.lap("update")
        return {"tokens/s": split.tokens_per_step / sum(clock.laps.values())}

    def flops_per_token(self) -> int:
        return self.flops


def random_tokens(config: RunConfig, directory: Path) -> TokenStream:
    """A stream of random ids, so that what is measured does not depend on any data."""
    path, dtype = directory / "random.bin", token_dtype(config.model.vocab_size)
    ids = np.random.default_rng(0).integers(0, config.model.vocab_size, TOKENS)
    ids.astype(dtype).tofile(path)
    return TokenStream([Shard(path, TOKENS)], dtype)


def held(device: torch.device) -> float:
    """Bytes that this process has in memory: on a GPU those of its tensors, elsewhere all of them, less what is free.

    0 where it cannot be read.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if not sys.platform.startswith("linux"):
        return 0.0
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def serve(variant: Variant) -> None:
    """Answer every line on standard input with the figures of one step; processes beyond the first follow it."""
    if variant.keep_freed:
        keep_freed_memory()
    world = world_from_environment()
    device = choose_device(variant.config.device, world.local_rank)
    with tempfile.TemporaryDirectory() as directory, process_group(world, device):
        stepper = Theirs(variant, Path(directory)) if variant.peer else Ours(variant.config, Path(directory))
        dtype = precision_without_scaler(device, variant.config.precision).dtype
        fastest = 0.0  # FLOP/s of matrix products
        while True:
            asked = [sys.stdin.readline() if world.is_main else ""]
            if world.size > 1:
                dist.broadcast_object_list(asked)
            if not asked[0]:
                return
            figures = stepper.step()
            (peak,) = world.sum([peak_held(device)], device)
            figures["peak memory GiB"] = peak / 2**30
            if world.is_main:
                speed = figures["tokens/s"] * stepper.flops_per_token()
                figures["GFLOP/s"] = speed / 1e9
                fastest = max(fastest, measure_matmul(device, dtype))  # so far: single measurements are disturbed
                figures["% of matrix product"] = 100 * speed / (fastest * world.size)
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    serve(Variant.from_json(sys.argv[1]))
