"""Whether to compile the blocks: decided by a measurement at the start of a run, and kept when it is resumed."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import Console

from model import Decoder
from training.distribution import is_sharded, without_exchange
from training.job import Job
from training.plan import BatchSplit

SHORTEST_RUN = 600.0  # seconds: compiling takes up to a minute and saves about a tenth
SMALLEST_GAIN = 1.03


class CompilationFailed(Exception):
    """On some process; the message says how."""


def set_up_compilation(job: Job, decided: bool | None, console: Console) -> bool:
    """Compile the blocks of `job.model` or leave them, on all processes alike; returns which.

    Says why in one line, except where nobody asked: with "off", or "auto" in a run that is too short.

    Args:
        decided: what the run did before it was interrupted, if it was: with "auto" its numbers must not change.
    """
    setting = job.config.compile
    wanted = decided if setting == "auto" else setting == "on"  # None where it is to be measured
    if wanted is False:
        return False
    reason = first_of(job, reason_against(job))
    if reason:
        if wanted:
            console.print(f"compile: off, {reason}", soft_wrap=True)
        return False
    try:
        with scratch_pass(job):
            return try_compiling(job, wanted is None, console)
    except CompilationFailed as error:
        undo(job)
        console.print(f"compile: off, it failed ({error})", soft_wrap=True)
        return False


def first_of(job: Job, words: str) -> str:
    """The first of all processes' `words` that is not empty."""
    return next(filter(None, job.world.gather(words)), "")


def reason_against(job: Job) -> str:
    """Why this run cannot, or with "auto" should not, be compiled; empty when nothing speaks against trying."""
    if job.config.examples.used and not job.config.examples.packing:
        return "examples differ in length, and each length would be compiled anew; --examples.packing makes them equal"
    if is_sharded(job.model):
        return "FSDP gathers weights inside the blocks"
    if job.device.type == "mps":
        return "not supported on this device"
    if job.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return "there is no C++ compiler (g++) here"
    return ""


def try_compiling(job: Job, measured: bool, console: Console) -> bool:
    """Compile and, if `measured`, go back when a pass has not become faster, or the run is too short to repay it."""
    if measured and seconds_left(job, math.inf) < SHORTEST_RUN:
        return False  # the clock alone says so
    eager = time_on_all(job, job.split)
    if measured and seconds_left(job, eager) < SHORTEST_RUN:
        return False
    started = time.monotonic()
    gain = eager / time_on_all(job, job.split, lambda job: compile_blocks(job.model))
    keep = not measured or gain >= SMALLEST_GAIN
    if not keep:
        undo(job)
    elif (opening := job.current_split()) != job.split:
        time_on_all(job, opening)  # has shapes of its own: compiled here, where it may fail
    spent = time.monotonic() - started
    console.print(f"compile: {'on' if keep else 'off'}, a pass is {gain:.2f}x as fast; it took {spent:.0f} s")
    return keep


def compile_blocks(model: Decoder) -> None:
    """All blocks have one code, so it is compiled once; weights keep their names."""
    for block in model.blocks:
        block.compile(dynamic=False)


def undo(job: Job) -> None:
    for block in job.model.blocks:
        block._compiled_call_impl = None


@contextlib.contextmanager
def scratch_pass(job: Job) -> Iterator[None]:
    """Whatever runs within leaves no gradients and no trace in the random state."""
    devices = [job.device] if job.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for parameter in job.model.parameters():
            parameter.grad = None


def time_pass(job: Job, split: BatchSplit) -> float:
    """Seconds of a forward and backward pass of one micro-batch, the better of two after one that warms up."""
    batch = job.data.micro_batch(range(split.micro_batch), split.sequence).to(job.device)
    times = []
    for _ in range(3):
        started = time.monotonic()
        with without_exchange(job.network), job.precision.autocast(job.device):
            loss = job.network(batch.inputs, batch.targets, documents=batch.documents, learned=batch.learned)
        with without_exchange(job.network):
            (loss / batch.losses).backward()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return min(times[1:])


def time_on_all(job: Job, split: BatchSplit, prepare: Callable[[Job], None] = lambda job: None) -> float:
    """Seconds of a pass of `split`, after `prepare`: the mean over all processes, so that all decide alike.

    Raises:
        CompilationFailed: on all processes, when it failed on one of them.
    """
    own, failure = 0.0, ""
    try:
        prepare(job)
        own = time_pass(job, split)
    except Exception as error:
        failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    failure = first_of(job, failure)
    if failure:
        raise CompilationFailed(failure)
    (total,) = job.world.sum([own], job.device)
    return total / job.world.size


def seconds_left(job: Job, seconds_of_pass: float) -> float:
    """How long the rest of the run takes at that speed, roughly."""
    budget, split = job.config.budget, job.split
    step = seconds_of_pass * split.accumulation
    left = 1 - job.fraction_used()
    lengths = [
        budget.steps * step if budget.steps else None,
        budget.epochs * job.data.windows_per_epoch / split.windows_per_step * step if budget.epochs else None,
        budget.tokens / split.tokens_per_step * step if budget.tokens else None,
        budget.minutes * 60 if budget.minutes else None,
    ]
    return left * min(length for length in lengths if length is not None)


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Within, compiled blocks run as they were written: for sampling, whose shapes never repeat."""
    return torch.compiler.set_stance("force_eager")
