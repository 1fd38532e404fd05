"""One run from config to trained weights: everything around the loop."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from rich.console import Console

from common.cli import to_dict
from common.errors import UserError
from common.files import read_json, write_json
from common.runs import RUNS_ROOT, Run
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from model import Decoder
from model.device import choose_device, choose_precision
from training.batches import Batches
from training.checkpoints import load_checkpoint, newest_whole, restore_random_state
from training.config import RunConfig
from training.console import ProgressDisplay
from training.distribution import process_group, world_from_environment
from training.job import Job
from training.journal import Journal, StopRequest
from training.loop import train
from training.optimizers import make_optimizers
from training.plan import check_data, print_plan, split_batch
from training.schedules import Progress, check_budget, fraction_used
from training.tracking import Tracker

# What a resumed run may not change, because the part already trained would mean something else.
FIXED_FIELDS = ("model", "data", "seed")


def run_training(config: RunConfig, dry_run: bool = False) -> None:
    """Train `config`, or go on training it where its newest whole checkpoint left off.

    Raises:
        UserError: whatever keeps the run from starting or going on, with what to do about it.
    """
    world = world_from_environment()
    device = choose_device(config.device, world.local_rank)
    precision = choose_precision(device, config.precision)
    console = Console(stderr=True, quiet=not world.is_main)
    check_budget(config.budget)
    split = split_batch(config, world.size)
    print_plan(config, split, device, precision, console)
    if dry_run:
        return
    with process_group(world, device):
        dataset = Dataset(config.data.directory)
        check_data(config, dataset)
        run = Run(RUNS_ROOT / config.name)
        tokenizer = prepare_run_directory(run, config, dataset, console) if world.is_main else None
        world.barrier()
        tokenizer = tokenizer or Tokenizer(run.tokenizer)

        torch.manual_seed(config.seed)  # equal on all processes: they start from the same weights
        model = Decoder(config.model).to(device)
        job = Job(
            config=config,
            run=run,
            model=model,
            optimizers=make_optimizers(model, config.optimizer, device, precision),
            scaler=torch.amp.GradScaler(device.type, enabled=precision.name == "fp16"),
            dataset=dataset,
            tokenizer=tokenizer,
            batches=Batches(dataset.split("train"), config.model.context_length, config.seed),
            split=split,
            progress=Progress(),
            world=world,
            device=device,
            precision=precision,
        )
        torch.manual_seed(config.seed + 1 + world.rank)  # different on each: dropout masks should differ
        state = resume(job, console)
        if fraction_used(config.budget, job.progress) >= 1:
            console.print(f"{run.path} has used its budget at step {job.progress.step}; nothing to do")
            return
        record(job, state, console)
        if world.is_main:
            say_what_next(run, job.progress, console)


def record(job: Job, state: dict[str, Any], console: Console) -> None:
    """Run the loop with its journal open.

    Raises:
        UserError: training diverged, or the disk takes no more; the checkpoints so far are whole.
    """
    tracker = display = None
    stop = StopRequest()
    if job.world.is_main:
        wandb_id = state.get("wandb_id")
        tracker = Tracker(job.run, job.config, to_dict(job.config), job.progress.step, wandb_id)
        display = ProgressDisplay(console)
    try:
        try:
            train(job, Journal(tracker, display, stop, state, job.progress.seconds))
        finally:
            stop.close()
            if display:
                display.close()
            if tracker:
                tracker.close()
    except OSError as error:
        raise UserError(
            f"cannot write to {job.run.path}: {error}; make room, then run the same command again to go on"
        ) from error


def resume(job: Job, console: Console) -> dict[str, Any]:
    """Load the newest whole checkpoint into `job`; returns its state, empty for a new run.

    Raises:
        UserError: every checkpoint is damaged, or the data is not that of the checkpoint.
    """
    checkpoint, damage = newest_whole(job.run)
    for line in damage:
        console.print(f"warning: {line}; falling back to the checkpoint before", soft_wrap=True)
    if checkpoint is None:
        return {}
    state = load_checkpoint(checkpoint, job.model, job.optimizers)
    if state["data_fingerprint"] != job.dataset.fingerprint:
        raise UserError(
            f"{job.dataset.directory} has changed since {checkpoint.path} was written; restore the data, or start a "
            "new run with --name"
        )
    if job.scaler.is_enabled() and state["scaler"]:
        job.scaler.load_state_dict(state["scaler"])
    job.progress = Progress(**{key: state[key] for key in Progress().to_dict()})
    restore_random_state(checkpoint, job.world.rank, job.device)  # last: nothing may draw numbers after it
    console.print(f"resuming {job.run.path} at step {job.progress.step}, {job.progress.tokens:,} tokens")
    return state


def prepare_run_directory(run: Run, config: RunConfig, dataset: Dataset, console: Console) -> Tokenizer:
    """Write the resolved config and the tokenizer into the run, or check that they fit what is there.

    Raises:
        UserError: the data's tokenizer is not the one in its manifest, or a field that may not change was changed.
    """
    tokenizer = Tokenizer(dataset.tokenizer_path)
    if tokenizer.sha256 != dataset.tokenizer_sha256:
        raise UserError(
            f"{tokenizer.path} is not the tokenizer that {dataset.directory} was made with (sha256 differs from "
            f"manifest.json); make both again with: {dataset.recipe_command()}"
        )
    values = to_dict(config)
    if run.config.is_file() and run.checkpoints():
        changed = differences(read_json(run.config), values)
        fixed = [line for field, line in changed.items() if field.split(".")[0] in FIXED_FIELDS]
        if fixed:
            raise UserError(
                f"{run.path} was started with another config:\n  "
                + "\n  ".join(fixed)
                + "\nchange it back, or start a new run with --name"
            )
        for line in changed.values():
            console.print(f"changed since this run was started: {line}", soft_wrap=True)
    try:
        write_json(run.config, values)
        shutil.copyfile(dataset.tokenizer_path, run.tokenizer)
    except OSError as error:
        raise UserError(f"cannot write to {run.path}: {error}") from error
    return tokenizer


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`field: old -> new` for every leaf that differs between two configs."""
    lines: dict[str, str] = {}
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines[prefix + key] = f"{prefix}{key}: {before} -> {after}"
    return lines


def say_what_next(run: Run, progress: Progress, console: Console) -> None:
    console.print(
        f"{run.path}: {progress.step:,} steps, {progress.tokens:,} tokens in {progress.seconds:,.0f} s\n"
        f"next: python -m evaluation {run.path}\n"
        f'      python sample.py --run {run.path} --prompt "The history of"',
        highlight=False,
        soft_wrap=True,
    )
