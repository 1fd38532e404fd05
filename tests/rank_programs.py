"""What the processes of a test run under torchrun: train.py with one event added, or one of its parts by itself.

`torchrun tests/rank_programs.py PROGRAM tiny.py [--field value ...]`. Every process leaves what it saw in rank_N.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import train
import training.checkpoints
import training.loop
from common.cli import parse_command
from common.errors import UserError
from common.runs import RUNS_ROOT, Run
from model import Decoder
from model.decoder import IGNORE
from model.device import Precision
from training.batches import Batches
from training.checkpoints import take_snapshot
from training.config import RunConfig
from training.distribution import process_group, whole, world_from_environment
from training.job import Job
from training.journal import TrainingDiverged
from training.loop import accumulate_gradients
from training.plan import split_batch
from training.run import make_job, resume
from training.validation import validate

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
CPU, FP32 = torch.device("cpu"), Precision("fp32", "exact")


def leave(**seen: Any) -> None:
    Path(f"rank_{RANK}.json").write_text(json.dumps(seen), encoding="utf-8")


def before_gradients(event: Callable[[Job], None]) -> None:
    """Have `event` happen in the middle of every step, before its gradients are computed."""

    def with_event(job: Job, network: nn.Module) -> tuple[float, int]:
        event(job)
        return accumulate_gradients(job, network)

    training.loop.accumulate_gradients = with_event


def signal_in_step(argv: list[str]) -> None:
    """One process alone is sent a signal in the middle of a step: SIGNAL_RANK, SIGNAL_STEP and SIGNAL say which."""
    steps: list[int] = []

    def event(job: Job) -> None:
        steps.append(job.progress.step + 1)
        if int(os.environ["SIGNAL_RANK"]) == RANK and steps[-1] == int(os.environ["SIGNAL_STEP"]):
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

    before_gradients(event)
    train.main(argv)
    leave(last_step=steps[-1])


def sigterm_in_validation(argv: list[str]) -> None:
    """The last process is sent SIGTERM in the second batch of the first validation."""
    batches = 0
    forward = Decoder.forward

    def counting(self: Decoder, ids: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal batches
        batches += not self.training
        if RANK == WORLD - 1 and not self.training and batches == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, ids, *arguments, **keywords)

    Decoder.forward = counting  # type: ignore[method-assign]
    train.main(argv)
    leave(batches=batches)


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


def nan_on_one_rank(argv: list[str]) -> None:
    """An activation of the last process alone is NaN in its third step; every process says what came of it."""
    before: dict[str, torch.Tensor] = {}
    jobs: list[Job] = []

    def poison(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan

    def event(job: Job) -> None:
        jobs.append(job)
        if job.progress.step == 2:
            before.update({name: local(value).clone() for name, value in job.model.named_parameters()})
            if RANK == WORLD - 1:
                job.model.blocks[-1].register_forward_hook(poison)

    before_gradients(event)
    try:
        train.main(argv)
    except TrainingDiverged as error:
        after = {name: local(value) for name, value in jobs[-1].model.named_parameters()}
        untouched = after.keys() == before.keys() and all(before[name].equal(value) for name, value in after.items())
        leave(error=str(error), step=jobs[-1].progress.step, untouched=untouched)
        wait_for_all()  # torchrun ends the others as soon as one has failed
        sys.exit(2)


def wait_for_all() -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(Path(f"rank_{rank}.json").exists() for rank in range(WORLD)):
        time.sleep(0.05)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def count_exchanges(argv: list[str]) -> None:
    """Count the reductions of gradients: a hook in DDP sees each of its own, a profile shows FSDP's."""
    hooked = reduced = 0
    buckets = set()

    def counting(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal hooked
        hooked += 1
        buckets.add(bucket.index())
        return allreduce_hook(dist.group.WORLD, bucket)

    def event(job: Job) -> None:
        if job.progress.step == 0 and isinstance(job.network, DistributedDataParallel):
            job.network.register_comm_hook(None, counting)

    before_gradients(event)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train.main(argv)
    reduced = sum(e.count for e in profiled.key_averages() if e.key == "c10d::_reduce_scatter_base_")
    leave(all_reduces=hooked, buckets=len(buckets), reduce_scatters=reduced)


def uneven_gradients(argv: list[str]) -> None:
    """Gradients of one step in which every window has another number of targets, as the optimizers see them."""
    micro_batch = Batches.micro_batch

    def uneven(self: Batches, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = micro_batch(self, first, count)
        targets = targets.clone()
        for row in range(count):
            targets[row, 1 + (first + row) ** 2 % 31 :] = IGNORE
        return inputs, targets

    Batches.micro_batch = uneven  # type: ignore[method-assign]
    with loaded(argv) as job:
        loss, tokens = accumulate_gradients(job, job.network)
        gradients = {name: whole(value.grad) for name, value in job.model.named_parameters() if value.grad is not None}
        (loss,) = job.world.sum([loss], job.device)
        if RANK == 0:
            save_file(gradients, "gradients.safetensors")
        leave(loss=loss, tokens=tokens)


def validate_spread(argv: list[str]) -> None:
    """Score the validation split with the newest checkpoint, one window at a time."""
    with loaded(argv) as job:
        result = validate(job.model, job.dataset, job.world, job.device, job.precision, batch=1)
        assert result is not None
        windows = len(job.dataset.split("val").scoring_windows(job.config.model.context_length, 0))
        leave(loss=result.loss, windows=windows)


def load_and_gather(argv: list[str]) -> None:
    """Load the newest checkpoint and gather it again: every tensor must come out as it lies in the files."""
    with loaded(argv) as job:
        snapshot = take_snapshot(job.model, job.optimizers, keep=job.world.is_main)
        values = [
            value for optimizer in job.optimizers for state in optimizer.state.values() for value in state.values()
        ]
        bytes_held = sum(local(value).untyped_storage().nbytes() for value in values)
        checkpoint = job.run.checkpoints()[-1]
        equal = {}
        for name, tensors in (("model", snapshot.weights), ("optimizer", snapshot.optimizer)):
            saved = load_file(checkpoint.path / f"{name}.safetensors")
            same = saved.keys() == tensors.keys() and all(value.equal(tensors[key]) for key, value in saved.items())
            equal[name] = same if RANK == 0 else not tensors  # only the main process keeps anything
        saved_bytes = sum(value.nbytes for value in load_file(checkpoint.path / "optimizer.safetensors").values())
        leave(**equal, share=bytes_held / saved_bytes, scalars=snapshot.optimizer_scalars)


class loaded:
    """The job of a command line, resumed from its newest checkpoint if it has one, inside its process group."""

    def __init__(self, argv: list[str]) -> None:
        self.config = parse_command(train.TrainCommand, RunConfig, argv, "rank_programs.py").config
        self.world = world_from_environment()
        self.group = process_group(self.world, CPU)

    def __enter__(self) -> Job:
        self.group.__enter__()
        split = split_batch(self.config, self.world.size)
        job = make_job(self.config, Run(RUNS_ROOT / self.config.name), split, self.world, CPU, FP32)
        resume(job, Console(stderr=True, quiet=True))
        return job

    def __exit__(self, *error: Any) -> None:
        self.group.__exit__(*error)


PROGRAMS = {
    program.__name__: program
    for program in (
        signal_in_step,
        sigterm_in_validation,
        sigkill_in_save,
        nan_on_one_rank,
        count_exchanges,
        uneven_gradients,
        validate_spread,
        load_and_gather,
    )
}

if __name__ == "__main__":
    try:
        PROGRAMS[sys.argv[1]](sys.argv[2:])
    except UserError as error:
        sys.exit(f"error: {error}")
