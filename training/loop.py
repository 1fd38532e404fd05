"""The training loop."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from model.functions import IGNORE
from training.distribution import clip_gradients, without_exchange
from training.job import Job
from training.journal import Journal, Step, TrainingDiverged
from training.optimizers import set_learning_rates
from training.schedules import fraction_used, learning_rate_factor

SMALLEST_SCALE = 2.0**-10  # of the fp16 loss: gradients that overflow even then are not the fault of their scale


def train(job: Job, journal: Journal) -> None:
    """Take optimizer steps until the budget is used or a stop was asked for; both end with a checkpoint."""
    config, world, split = job.config, job.world, job.split
    job.model.train()
    started = time.monotonic() - job.progress.seconds
    finished, stopping = journal.complete_step(job)
    while not (finished or stopping):
        step_started = time.monotonic()
        ahead = job.progress.after(split.tokens_per_step, split.windows_per_step)
        factor = learning_rate_factor(config.schedule, fraction_used(config.budget, ahead))
        lr = set_learning_rates(job.optimizers, factor)

        loss_sum, tokens = accumulate_gradients(job, job.network)
        for optimizer in job.optimizers:
            job.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(job.model, config.optimizer.grad_clip)
        overflow = not math.isfinite(grad_norm)
        if overflow and (not job.scaler.is_enabled() or job.scaler.get_scale() < SMALLEST_SCALE):
            # Every process sees the same norm, so all stop here, before the weights are touched.
            raise TrainingDiverged(job, f"gradient norm {grad_norm}")
        for optimizer in job.optimizers:
            if not overflow:  # in fp16 an overflow skips the step, and the scaler lowers its scale
                job.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        job.scaler.update()

        # The loss, and what all processes must agree on: the clock and a request to stop.
        now = time.monotonic()
        loss_sum, elapsed, stops = world.sum([loss_sum, now - started, journal.stop_requested], job.device)
        job.progress = replace(ahead, seconds=elapsed / world.size)
        finished, stopping = fraction_used(config.budget, job.progress) >= 1, stops > 0
        step = Step(loss_sum / tokens, lr, grad_norm, now - step_started)
        stopping = journal.after_step(job, step, finished, stopping)


def accumulate_gradients(job: Job, network: nn.Module) -> tuple[float, int]:
    """Gradients of the mean loss over all tokens of the step, on every process.

    Returns this process's summed loss and the step's number of tokens over all processes.
    """
    split, world = job.split, job.world
    mine = range(world.rank, split.accumulation * world.size, world.size)
    micro_batches = [
        job.batches.micro_batch(job.progress.windows + number * split.micro_batch, split.micro_batch) for number in mine
    ]
    counted = sum(int((targets != IGNORE).sum()) for _, targets in micro_batches)
    (tokens,) = world.sum([counted], job.device)
    loss_sum = torch.zeros((), device=job.device)
    for number, (inputs, targets) in enumerate(micro_batches):
        # Gradients are exchanged once a step, during the last backward pass.
        last = number == split.accumulation - 1
        with nullcontext() if last else without_exchange(network):
            with job.precision.autocast(job.device):
                loss = network(inputs.to(job.device), targets.to(job.device))
            # DDP and FSDP average over processes; the mean over all tokens of the step is wanted.
            job.scaler.scale(loss * (world.size / tokens)).backward()
        loss_sum += loss.detach()
    return loss_sum.item(), int(tokens)
