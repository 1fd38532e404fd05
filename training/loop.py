"""The training loop."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from training.diagnosis import check_gradients, diverged
from training.distribution import clip_gradients, without_exchange
from training.job import Job
from training.journal import Journal, Step
from training.optimizers import follow_schedule
from training.plan import BatchSplit

SMALLEST_SCALE = 2.0**-10  # of the fp16 loss: gradients that overflow even then are not the fault of their scale


def train(job: Job, journal: Journal) -> None:
    """Take optimizer steps until the budget is used or a stop was asked for; both end with a checkpoint."""
    config, world = job.config, job.world
    job.model.train()
    started = time.monotonic() - job.progress.seconds
    journal.begin(job)
    ended = journal.complete_step(job)
    while not ended:
        step_started = time.monotonic()
        split = job.current_split()
        losses, targets, tokens = accumulate_gradients(job, split)
        ahead = job.progress.after(tokens, split.windows_per_step)
        lr = follow_schedule(config, job.optimizers, job.fraction_used(ahead))
        check_gradients(job)
        for optimizer in job.optimizers:
            job.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(job.model, config.optimizer.grad_clip)
        # What all processes must agree on before the weights are touched: the loss, the gradient norm, which may differ
        # in its last bit between unlike GPUs, the clock, a request to stop.
        agreed = [losses.sum().item(), grad_norm, time.monotonic() - started, journal.stop_requested]
        loss_sum, norm_sum, elapsed, stops = world.sum(agreed, job.device)
        loss, grad_norm = loss_sum / targets, norm_sum / world.size

        refused = job.spikes.take_note(loss, grad_norm)
        # In fp16 gradients may overflow: the step is skipped then, and the scaler lowers its scale.
        may_overflow = job.scaler.is_enabled() and job.scaler.get_scale() >= SMALLEST_SCALE and math.isfinite(loss)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)) and not (refused or may_overflow):
            raise diverged(job, split, losses, lr, f"loss {loss}, gradient norm {grad_norm}")
        skipped = refused or not math.isfinite(grad_norm)
        for optimizer in job.optimizers:
            if not skipped:
                job.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        job.scaler.update()
        if job.average and not skipped:
            job.average.update(ahead.step)

        job.progress = replace(ahead, seconds=elapsed / world.size)
        seconds = time.monotonic() - step_started
        step = Step(finite(loss), lr, finite(grad_norm), tokens, split.sequence, seconds, skipped)
        ended = journal.after_step(job, step, stopping=stops > 0)


def finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def accumulate_gradients(job: Job, split: BatchSplit) -> tuple[Tensor, int, int]:
    """Gradients of the mean loss over all targets of the step, on every process.

    Returns this process's summed loss of each micro-batch, (accumulation,), and the step's numbers of targets and of
    tokens, over all processes.
    """
    world = job.world
    micro_batches = [
        job.data.micro_batch(job.windows_of(split, number), split.sequence) for number in range(split.accumulation)
    ]
    counted = [sum(batch.losses for batch in micro_batches), sum(batch.tokens for batch in micro_batches)]
    micro_batches = [batch.to(job.device) for batch in micro_batches]
    targets, tokens = world.sum(counted, job.device)
    losses = torch.zeros(split.accumulation, device=job.device)
    for number, batch in enumerate(micro_batches):
        # Gradients are exchanged once a step, during the last backward pass.
        last = number == split.accumulation - 1
        with nullcontext() if last else without_exchange(job.network):
            with job.precision.autocast(job.device):
                loss = job.network(batch.inputs, batch.targets, documents=batch.documents, learned=batch.learned)
            # DDP and FSDP average over processes; the mean over all targets of the step is wanted.
            job.scaler.scale(loss * (world.size / targets)).backward()
        losses[number] = loss.detach()
    return losses, int(targets), int(tokens)
