"""One run from config to trained weights: everything around the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.console import Console

from common.cli import to_dict
from common.errors import UserError
from common.files import atomic_write, only_process_in, read_json, write_json
from common.runs import RUNS_ROOT, Checkpoint, Run
from inference.asking import EXAMPLES
from model.adapters.attach import trained_of_base
from model.adapters.fingerprint import base_fingerprint
from model.convert.opening import check_base, open_source
from model.device import Precision, choose_device, choose_precision
from training.averaging import WeightAverage
from training.checkpoints import load_checkpoint, newest_whole, restore_random_state
from training.compilation import set_up_compilation
from training.config import RunConfig
from training.config_checks import check
from training.console import ProgressDisplay
from training.distribution import World, distribute, process_group, world_from_environment
from training.examples import ExampleData
from training.hardware import peak_flops
from training.histograms import HistogramRecorder
from training.job import Job
from training.journal import Journal, StopRequest, gives_up
from training.leaving import how_to_sample
from training.loop import train
from training.optimizers import make_optimizers
from training.plan import BatchSplit, print_plan, split_batch, split_opening
from training.schedules import Progress, check_budget
from training.spikes import SpikeGuard
from training.starting import make_model, open_data
from training.tracking import Tracker

# What a resumed run may not change, because the part already trained would mean something else.
# The data may move: what they contain is compared.
FIXED_FIELDS = (
    *("model", "start_from", "adapter", "storage", "seed", "optimizer.matrices", "optimizer.adamw"),
    *("examples.packing", "examples.group_by_length", "examples.max_length"),
    "validation.tokens",  # losses on other rows do not compare with the best so far
)


def run_training(config: RunConfig, dry_run: bool = False, later: Sequence[Run] = ()) -> bool:
    """Train `config`, or go on training it where its newest whole checkpoint left off; returns whether it is finished.

    Args:
        later: runs that begin with what this one ends with; where one of them has begun, this one is not trained on.

    Raises:
        UserError: whatever keeps the run from starting or going on, with what to do about it.
    """
    check(config)
    world = world_from_environment()
    device = choose_device(config.device, world.local_rank)
    precision = choose_precision(device, config.precision)
    # Markup off: samples and paths may hold square brackets.
    console = Console(stderr=True, quiet=not world.is_main, markup=False, highlight=False)
    check_budget(config.budget)
    split = split_batch(config, world.size)
    split_opening(config, split)  # for its errors, before anything is loaded
    if world.is_main:
        print_plan(config, split, device, precision, console)
    if dry_run:
        return False
    run = Run(RUNS_ROOT / config.name)
    with trouble_explained(config, run, device), process_group(world, device), ExitStack() as stack:
        job = make_job(config, run, split, world, device, precision)
        if world.is_main:
            stack.enter_context(only_process_in(run.path))
        state = resume(job, console)
        for line in [] if state else job.data.report():
            console.print(line, soft_wrap=True)
        if is_over(job, state, console):
            if world.is_main:
                write_what_is_learned(job)  # again: it may have been lost or damaged since
            return True
        check_nothing_follows(job, later)
        if world.is_main:
            prepare_directory(job)
        job.compiled = compile_on_the_clock(job, state, console)
        record(job, state, console)
        if world.is_main:
            say_what_next(run, job, console)
        return not job.stopped


@contextmanager
def trouble_explained(config: RunConfig, run: Run, device: torch.device) -> Iterator[None]:
    """Raises UserError where the machine refuses something inside: a file, or memory."""
    try:
        yield
    except OSError as error:
        of_network = isinstance(error, ConnectionError | TimeoutError)
        likely = "the network, the other processes" if of_network else "room on the disk, permissions"
        raise UserError(
            f"{run.path} cannot go on: {error}; mend that ({likely}), then run the same command again: checkpoints are "
            "whole or absent"
        ) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory on {device}: lower --batch.micro-batch-size (now {config.batch.micro_batch_size}; tokens "
            "per step, and with them the result, stay the same). Where the model alone is too large for it, spread it "
            "over several with --distribution.strategy fsdp, or make it smaller"
        ) from error


def make_job(
    config: RunConfig, run: Run, split: BatchSplit, world: World, device: torch.device, precision: Precision
) -> Job:
    """A new run of `config`, not yet resumed.

    Raises:
        UserError: the data is missing, damaged or made for another model.
    """
    adapted = config.adapter.method != "none"
    begins = adapted or not run.checkpoints()  # a base is not in the checkpoints
    source = open_source(config.start_from) if config.start_from is not None and begins else None
    data = open_data(config, run, source, split)
    model = make_model(config, source, data.tokenizer, device)
    base = base_fingerprint(model, trained_of_base(model)) if adapted else None
    network = distribute(model, config.distribution.strategy, world, device, precision)
    optimizers = make_optimizers(model, config, device, precision)
    model.activation_checkpointing = config.activation_checkpointing
    torch.manual_seed(config.seed + 1 + world.rank)  # different on each: dropout masks should differ
    return Job(
        config=config,
        run=run,
        model=model,
        network=network,
        optimizers=optimizers,
        scaler=torch.amp.GradScaler(device.type, enabled=precision.name == "fp16"),
        data=data,
        base_fingerprint=base,
        split=split,
        opening=split_opening(config, split),
        spikes=SpikeGuard(config.optimizer.skip_spikes),
        average=WeightAverage(model, config.optimizer.ema) if config.optimizer.ema else None,
        progress=Progress(),
        world=world,
        device=device,
        precision=precision,
        peak_flops=peak_flops(device, precision),
    )


def resume(job: Job, console: Console) -> dict[str, Any]:
    """Load the newest whole checkpoint into `job`; returns its state, empty for a new run.

    Config and tokenizer of the run are not touched: what is refused here leaves the run as it was.

    Raises:
        UserError: every checkpoint is damaged, or config or data are not those that the run was started with.
    """
    step = None
    if job.world.is_main:
        newest, damage = newest_whole(job.run)
        for line in damage:
            console.print(f"warning: {line}; falling back to the checkpoint before", soft_wrap=True)
        step = newest.step if newest else None
    step = job.world.gather(step)[0]  # the main process chooses for all
    if step is None:
        return {}
    checkpoint = Checkpoint(job.run.checkpoint_path(step), step)
    check_unchanged(job.run, to_dict(job.config), console)
    if checkpoint.state["data_fingerprint"] != job.data.fingerprint:
        raise UserError(
            f"{job.data.place} has changed since {checkpoint.path} was written, or holds other data; restore "
            "the data, or start a new run with --name"
        )
    before, base = checkpoint.state.get("base_fingerprint"), str(job.config.start_from)
    check_base(job.base_fingerprint, before, f"{job.run.path} trains an adapter of", base)
    state = load_checkpoint(checkpoint, job.model, job.optimizers, job.average)
    if "spikes" in state:  # not in checkpoints of versions that did not watch for them
        job.spikes.restore(state["spikes"])
    if job.scaler.is_enabled() and state["scaler"]:
        job.scaler.load_state_dict(state["scaler"])
    job.progress = Progress(**{key: state[key] for key in Progress().to_dict()})
    restore_random_state(checkpoint, job.world.rank, job.device)  # last: nothing may draw numbers after it
    console.print(f"resuming {job.run.path} at step {job.progress.step}, {job.progress.tokens:,} tokens")
    return state


def is_over(job: Job, state: dict[str, Any], console: Console) -> bool:
    """Whether there is nothing to do for a resumed run, which is then said."""
    without_gain = int(state.get("validations_without_gain", 0))
    if job.fraction_used() >= 1 and not state.get("cut_short"):
        console.print(f"{job.run.path} has used its budget at step {job.progress.step}; nothing to do")
        return True
    if gives_up(job.config.validation, without_gain):
        console.print(
            f"{job.run.path} stopped early at step {job.progress.step}, after {without_gain} validations that were not "
            "better than the best; to go on, raise --validation.patience"
        )
        return True
    return False


def check_nothing_follows(job: Job, later: Sequence[Run]) -> None:
    """Raises UserError when `job` has steps left to take, and a later run has begun with what it was before them."""
    begun = next((run for run in later if run.checkpoints()), None)
    if begun is not None and job.fraction_used() < 1:
        raise UserError(
            f"{job.run.path} would train on from step {job.progress.step}, but {begun.path} has begun with what it was "
            "before: set the budget back, or start new runs with --name, or delete the runs after it and give the same "
            "command again"
        )


def check_unchanged(run: Run, values: dict[str, Any], console: Console) -> None:
    """Compare the config with that of the run so far; what may change is said.

    Raises:
        UserError: a field was changed that may not.
    """
    try:
        changed = differences(read_json(run.config), values, to_dict(RunConfig()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{run.config} is damaged ({error}); restore it, or start a new run with --name") from error
    fixed = [line for field, line in changed.items() if f"{field}.".startswith(tuple(f"{f}." for f in FIXED_FIELDS))]
    if fixed:
        raise UserError(
            f"{run.path} was started with another config:\n  "
            + "\n  ".join(fixed)
            + "\nchange it back, or start a new run with --name"
        )
    for line in changed.values():
        console.print(f"changed since this run was started: {line}", soft_wrap=True)


def differences(old: dict[str, Any], new: dict[str, Any], default: Any, prefix: str = "") -> dict[str, str]:
    """`field: old -> new` for every leaf that differs between two configs.

    A field that the old one lacks is younger than it, and had its `default` then.
    """
    lines: dict[str, str] = {}
    for key in {**old, **new}:
        by_default = default.get(key) if isinstance(default, dict) else None
        before, after = old.get(key, by_default), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines |= differences(before, after, by_default, f"{prefix}{key}.")
        elif before != after:
            lines[prefix + key] = f"{prefix}{key}: {before} -> {after}"
    return lines


def prepare_directory(job: Job) -> None:
    """Write the resolved config and the tokenizer into the run, and of a fine-tune what it learns."""
    write_json(job.run.config, to_dict(job.config))
    with atomic_write(job.run.tokenizer, "wb") as file:
        file.write(job.data.tokenizer.content)
    write_what_is_learned(job)


def write_what_is_learned(job: Job) -> None:
    """Write of a fine-tune what it learns from, how its examples ask, and how much is trained."""
    if isinstance(job.data, ExampleData):
        write_json(job.run.path / EXAMPLES, job.data.to_dict())
        trained = sum(parameter.numel() for parameter in job.model.parameters() if parameter.requires_grad)
        sizes = {"trainable_parameters": trained, "total_parameters": job.model.parameter_count()}
        write_json(job.run.path / "adapter.json", {"start_from": job.config.start_from, **sizes})


def compile_on_the_clock(job: Job, state: dict[str, Any], console: Console) -> bool:
    """Whether the blocks were compiled. The time that it takes is part of the run's, the same on all processes."""
    started = time.monotonic()
    compiled = set_up_compilation(job, state.get("compiled"), console)
    (seconds,) = job.world.sum([time.monotonic() - started], job.device)
    job.progress.seconds += seconds / job.world.size
    return compiled


def record(job: Job, state: dict[str, Any], console: Console) -> None:
    """Run the loop with its journal open.

    Raises:
        UserError: training diverged; the checkpoints so far are whole.
    """
    # A step that a request to stop had cut short was not logged: that is still to come. Nor was anything of a new run.
    logged = job.progress.step - bool(state.get("cut_short")) if state else -1
    with ExitStack() as stack:
        stop = StopRequest()
        stack.callback(stop.close)
        tracker = display = None
        if job.world.is_main:
            tracker = Tracker(job, logged, state.get("wandb_id"))
            stack.push(lambda kind, error, trace: tracker.close(error is not None, stop.asked))
            display = ProgressDisplay(console)
            stack.callback(display.close)
        histograms = None
        if job.config.tracking.histograms_every is not None:
            histograms = HistogramRecorder(job, job.config.tracking.histograms_every)
            stack.callback(histograms.close)
        train(job, Journal(tracker, display, histograms, stop, state, job.progress.seconds))
        # Also in its last step, or while it was saved: what would follow the run is not to begin then.
        job.stopped = any(job.world.gather(stop.asked))


def say_what_next(run: Run, job: Job, console: Console) -> None:
    progress = job.progress
    done = f"{run.path}: {progress.step:,} steps, {progress.tokens:,} tokens in {progress.seconds:,.0f} s"
    steps = [f"python -m evaluation {run.path}", f'python sample.py --run {run.path} --prompt "The history of"']
    if job.config.examples.used:
        steps = [how_to_sample(run)]
    console.print(done + "\nnext: " + "\n      ".join(steps), soft_wrap=True)
