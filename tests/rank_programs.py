"""What the processes of a test run under torchrun: train.py with one event added, or one of its parts by itself.

`torchrun tests/rank_programs.py PROGRAM tiny.py [--field value ...]`. Every process leaves what it saw in rank_N.json.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import train
import training.checkpoints
import training.journal
import training.loop
import training.spikes
from common.cli import parse_command
from common.errors import UserError
from common.runs import RUNS_ROOT, Run
from model import Decoder
from model.device import choose_precision
from model.functions import IGNORE
from model.layers import Block
from training.batches import Batches
from training.checkpoints import take_snapshot
from training.config import RunConfig
from training.data import MicroBatch
from training.diagnosis import TrainingDiverged
from training.distribution import clip_gradients, local_part, process_group, whole, world_from_environment
from training.job import Job
from training.loop import accumulate_gradients
from training.plan import BatchSplit, split_batch
from training.run import make_job, resume
from training.validation import validate

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
CPU = torch.device("cpu")
STRATEGIES = ("ddp", "fsdp")


def leave(**seen: Any) -> None:
    Path(f"rank_{RANK}.json").write_text(json.dumps(seen), encoding="utf-8")


def join_again(backend: str, **options: Any) -> None:
    """Start one process group of several: torchrun's store still has the addresses of those before."""
    store, rank, size = next(rendezvous("env://"))
    join(backend, **options, store=dist.PrefixStore(f"group_{next(numbers)}", store), rank=rank, world_size=size)


numbers, join = itertools.count(), dist.init_process_group
dist.init_process_group = join_again


def before_gradients(event: Callable[[Job], None]) -> None:
    """Have `event` happen in every step, before its gradients are computed."""

    def with_event(job: Job, split: BatchSplit) -> tuple[Any, ...]:
        event(job)
        return accumulate_gradients(job, split)

    training.loop.accumulate_gradients = with_event


def in_turn(argv: list[str]) -> None:
    """Several runs one after the other, their command lines apart by a `+`; says which reducers outlived their group.

    One that does ends it while it holds the interpreter's lock, which can be a deadlock.
    """
    outlived: list[bool] = []
    reducers: list[weakref.ref[Any]] = []
    destroy = dist.destroy_process_group

    def event(job: Job) -> None:
        if isinstance(job.network, DistributedDataParallel):
            reducers.append(weakref.ref(job.network.reducer))

    def destroying() -> None:
        outlived.extend(reducer() is not None for reducer in reducers)
        destroy()

    before_gradients(event)
    dist.destroy_process_group = destroying
    while "+" in argv:
        end = argv.index("+")
        train.main(argv[:end])
        argv = argv[end + 1 :]
    train.main(argv)
    leave(outlived=outlived)


def sigkill_in_step(argv: list[str]) -> None:
    """The last process is killed in its fifth step."""

    def event(job: Job) -> None:
        if RANK == WORLD - 1 and job.progress.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    before_gradients(event)
    train.main(argv)


def eventful(job: Job, split: BatchSplit) -> tuple[Any, ...]:
    """A step that draws from every random generator and overflows once in fp16; SIGKILL comes where asked for."""
    if job.progress.step == 0:
        random.seed(1)
        np.random.seed(1)
    random.gauss(0, 1), np.random.standard_normal(), torch.rand(1)
    result = accumulate_gradients(job, split)
    if job.scaler.is_enabled() and job.progress.step == 2:
        assert job.model.embedding.weight.grad is not None
        job.model.embedding.weight.grad[0, 0] = torch.inf
    if job.progress.step + 1 == int(os.environ.get("KILL_IN_STEP", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def sigkill_eventful(argv: list[str]) -> None:
    training.loop.accumulate_gradients = eventful
    train.main(argv)


def sigkill_in_save(argv: list[str]) -> None:
    """The main process is killed while it writes the optimizer file of its second checkpoint."""
    calls = 0

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 + WORLD + 2:  # each checkpoint has two files, and one more for each process
            os.kill(os.getpid(), signal.SIGKILL)
        save_file(*arguments)

    training.checkpoints.save_file = dying
    train.main(argv)


def sigterm(argv: list[str]) -> None:
    """The last process alone is sent SIGTERM: in its sixth step, and after resuming in the first validation."""
    steps, batches = [0], 0
    forward = Decoder.forward

    def event(job: Job) -> None:
        steps.append(job.progress.step + 1)
        if RANK == WORLD - 1 and job.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    def counting(self: Decoder, ids: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal batches
        batches += not self.training
        if RANK == WORLD - 1 and not self.training and batches == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, ids, *arguments, **keywords)

    before_gradients(event)
    train.main(argv)
    stopped_after = steps[-1]
    Decoder.forward = counting  # type: ignore[method-assign]
    train.main(argv)
    leave(stopped_after=[stopped_after, steps[-1]], batches=batches)


def sigterm_before_samples(argv: list[str]) -> None:
    """The last process alone is sent SIGTERM right after the validation before the first step."""

    def validating(*arguments: Any) -> Any:
        result = validate(*arguments)
        if RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    training.journal.validate = validating
    train.main(argv)


def nan_on_one_rank(argv: list[str]) -> None:
    """In the third step an activation of the last process alone is NaN; every process says what came of it."""
    jobs: list[Job] = []
    before: dict[str, torch.Tensor] = {}

    def event(job: Job) -> None:
        if job.progress.step == 2:
            jobs.append(job)
            before.update({name: local_part(value).detach().clone() for name, value in job.model.named_parameters()})
            if RANK == WORLD - 1:
                job.model.blocks[-1].register_forward_hook(lambda module, inputs, output: output * torch.nan)

    before_gradients(event)
    said = {}
    for strategy in STRATEGIES:
        try:
            train.main([*argv, "--distribution.strategy", strategy, "--name", strategy])
        except TrainingDiverged as error:
            after = {name: local_part(value).detach() for name, value in jobs[-1].model.named_parameters()}
            untouched = after.keys() == before.keys() and all(
                value.equal(before[name]) for name, value in after.items()
            )
            said[strategy] = {"error": str(error), "step": jobs[-1].progress.step, "untouched": untouched}
    leave(**said)
    deadline = time.monotonic() + 20  # torchrun ends the others as soon as one has failed
    while time.monotonic() < deadline and not all(Path(f"rank_{rank}.json").exists() for rank in range(WORLD)):
        time.sleep(0.05)
    sys.exit(2 if said else 0)


def spikes_on_one_rank(argv: list[str]) -> None:
    """The last process alone has a loss far too large in step 8, NaN in step 10 and a norm far too large in step 11.

    All say which steps did nothing.
    """
    training.spikes.WINDOW = 6
    before: dict[str, torch.Tensor] = {}
    unchanged: list[int] = []
    steps: list[int] = []

    def spiking(job: Job, split: BatchSplit) -> tuple[Any, ...]:
        steps.append(job.progress.step)
        weights = {name: local_part(value).detach().clone() for name, value in job.model.named_parameters()}
        if job.progress.step and all(value.equal(before[name]) for name, value in weights.items()):
            unchanged.append(job.progress.step)
        before.update(weights)
        last = RANK == WORLD - 1
        hook = job.model.blocks[-1].register_forward_hook(
            lambda module, inputs, output: output * torch.nan if last and job.progress.step == 9 else None
        )
        losses, *counted = accumulate_gradients(job, split)
        hook.remove()
        return losses * (100 if last and job.progress.step == 7 else 1), *counted

    def clip(model: nn.Module, largest: float) -> float:
        norm = clip_gradients(model, largest)
        return norm * (1e6 if RANK == WORLD - 1 and steps[-1] == 10 else 1)

    training.loop.accumulate_gradients, training.loop.clip_gradients = spiking, clip
    said = {}
    for strategy in STRATEGIES:
        unchanged.clear()
        train.main([*argv, "--distribution.strategy", strategy, "--name", strategy])
        said[strategy] = list(unchanged)
    leave(**said)


def failing_compilation(argv: list[str]) -> None:
    """On the last process alone the blocks cannot be compiled."""

    def fail(block: Block, **options: Any) -> None:
        if RANK == WORLD - 1:
            raise RuntimeError("no such compiler\nand much more")

    Block.compile = fail  # type: ignore[method-assign]
    train.main(argv)


def overflow_on_one_rank(argv: list[str]) -> None:
    """In the third step a gradient overflows that the last process alone holds; every process says its scales."""
    scales = []

    def overflowing(job: Job, split: BatchSplit) -> tuple[Any, ...]:
        scales.append(job.scaler.get_scale())
        result = accumulate_gradients(job, split)
        if RANK == WORLD - 1 and job.progress.step == 2:
            assert job.model.embedding.weight.grad is not None
            local_part(job.model.embedding.weight.grad)[0, 0] = torch.inf
        return result

    training.loop.accumulate_gradients = overflowing
    train.main(argv)
    leave(scales=scales)


def count_exchanges(argv: list[str]) -> None:
    """Count the reductions of gradients: a hook in DDP sees each of its own, a profile shows FSDP's."""
    all_reduces: list[int] = []

    def counting(state, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations, which are strings here
        all_reduces.append(bucket.index())
        return allreduce_hook(dist.group.WORLD, bucket)

    def event(job: Job) -> None:
        if job.progress.step == 0 and isinstance(job.network, DistributedDataParallel):
            job.network.register_comm_hook(None, counting)

    before_gradients(event)
    said = {}
    for strategy in STRATEGIES:
        all_reduces.clear()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            train.main([*argv, "--distribution.strategy", strategy, "--name", strategy])
        scatters = sum(event.count for event in profiled.key_averages() if event.key == "c10d::_reduce_scatter_base_")
        said[strategy] = [len(all_reduces), len(set(all_reduces)), scatters]
    leave(**said)


def uneven_gradients(argv: list[str]) -> None:
    """Gradients of one step in which every window has another number of targets."""
    micro_batch = Batches.micro_batch

    def uneven(self: Batches, windows: range, sequence: int) -> MicroBatch:
        batch = micro_batch(self, windows, sequence)
        targets = batch.targets.clone()
        for row, window in enumerate(windows):
            targets[row, 1 + window**2 % 29 :] = IGNORE
        return replace(batch, targets=targets)

    Batches.micro_batch = uneven  # type: ignore[method-assign]
    said = {}
    for strategy, job in jobs_of(argv):
        losses, tokens, _ = accumulate_gradients(job, job.split)
        gradients = {name: whole(value.grad) for name, value in job.model.named_parameters() if value.grad is not None}
        said[strategy] = [*job.world.sum([losses.sum().item()], job.device), tokens]
        if RANK == 0:
            save_file(gradients, f"gradients_{WORLD}_{strategy}.safetensors")
    leave(**said)
    Batches.micro_batch = micro_batch  # type: ignore[method-assign]


def validate_spread(argv: list[str]) -> None:
    """Score the validation split with the newest checkpoint, one window at a time."""
    said: dict[str, Any] = {}
    for strategy, job in jobs_of(argv):
        result = validate(job.model, job.data.validation, job.world, job.device, job.precision, batch=1)
        assert result is not None
        said[strategy] = result.loss
        said["patience"] = dist.group.WORLD._get_backend(CPU).options._timeout.total_seconds()
        said["windows"] = len(job.data.validation.rows)
    leave(**said)


def load_and_gather(argv: list[str]) -> None:
    """Load the newest checkpoint and gather it again: every tensor must come out as it lies in the files."""
    said = {}
    for strategy, job in jobs_of(argv):
        snapshot = take_snapshot(job.model, job.optimizers, job.average, keep=job.world.is_main)
        checkpoint = job.run.checkpoints()[-1]
        files = [load_file(checkpoint.path / f"{name}.safetensors") for name in ("model", "optimizer")]
        same = [
            saved.keys() == tensors.keys() and all(value.equal(tensors[key]) for key, value in saved.items())
            for saved, tensors in zip(files, (snapshot.weights, snapshot.optimizer), strict=True)
        ]
        kept = bool(snapshot.weights or snapshot.optimizer)
        states = [state for optimizer in job.optimizers for state in optimizer.state.values()]
        held = [local_part(value).detach().untyped_storage().nbytes() for state in states for value in state.values()]
        share = sum(held) / sum(value.nbytes for value in files[1].values())
        said[strategy] = {"same": same, "kept": kept, "share": share}
    leave(**said)


def jobs_of(argv: list[str]) -> Iterator[tuple[str, Job]]:
    """The job of a command line under each strategy, resumed from its newest checkpoint if it has one."""
    world = world_from_environment()
    with process_group(world, CPU):
        for strategy in STRATEGIES:
            arguments = [*argv, "--distribution.strategy", strategy]
            config = parse_command(train.TrainCommand, RunConfig, arguments, "rank_programs.py").config
            run = Run(RUNS_ROOT / config.name)
            precision = choose_precision(CPU, config.precision)
            job = make_job(config, run, split_batch(config, world.size), world, CPU, precision)
            resume(job, Console(stderr=True, quiet=True))
            yield strategy, job


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2:])
    except UserError as error:
        sys.exit(f"error: {error}")
