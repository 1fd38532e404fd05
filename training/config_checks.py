"""What a run's config must satisfy, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from operator import attrgetter

from common.errors import UserError
from data_pipeline.examples.dataset import check_options
from model.weights import Storage
from training.config import RunConfig


def check(config: RunConfig) -> None:
    """Raises UserError for a value out of range, which would only fail, or mislead, in the middle of a run."""
    config.model.check()
    config.adapter.check()
    _check_ranges(config)
    _check_schedule(config)
    for field_name, budget in asdict(config.budget).items():
        if budget is not None and budget <= 0:
            raise UserError(f"budget.{field_name} must be positive, not {budget}")
    if not config.name or config.name in (".", "..") or "/" in config.name or "\\" in config.name:
        raise UserError(f"name {config.name!r} must be a plain directory name: the run lives in runs/NAME")
    _check_that_all_matters(config)
    _check_fine_tuning(config)


def _check_ranges(config: RunConfig) -> None:
    for section, values in asdict(config).items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{section}.{name} must be a finite number, not {value}")
    at_least_one = {
        "batch.tokens_per_step": config.batch.tokens_per_step,
        "batch.examples_per_step": config.batch.examples_per_step,
        "batch.micro_batch_size": config.batch.micro_batch_size,
        "validation.every": config.validation.every,
        "validation.tokens": config.validation.tokens,
        "validation.patience": config.validation.patience,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "tracking.log_every": config.tracking.log_every,
        "opening.tokens_per_step": config.opening.tokens_per_step,
        "opening.context_length": config.opening.context_length,
        "tracking.histograms_every": config.tracking.histograms_every,
    }
    for field_name, number in at_least_one.items():
        if number is not None and number < 1:
            raise UserError(f"{field_name} must be at least 1, not {number}")
    for name in ("momentum", "momentum_start", "beta1", "beta2", "ema"):
        decay = getattr(config.optimizer, name)
        if decay is not None and not 0 <= decay < 1:
            raise UserError(f"optimizer.{name} is a decay: it must be at least 0 and below 1, not {decay}")
    not_negative = {
        "seed": config.seed,
        "validation.sample_tokens": config.validation.sample_tokens,
        "validation.temperature": config.validation.temperature,
        "examples.neftune_alpha": config.examples.neftune_alpha,
        "checkpoint.minutes": config.checkpoint.minutes or 0,
        "optimizer.grad_clip": config.optimizer.grad_clip,
        **{
            f"optimizer.{name}": getattr(config.optimizer, name) or 0
            for name in ("lr", "embedding_lr", "head_lr", "scalar_lr", "eps", "weight_decay")
        },
    }
    for field_name, amount in not_negative.items():
        if amount < 0:
            raise UserError(f"{field_name} must not be negative, not {amount}")
    if config.optimizer.skip_spikes is not None and config.optimizer.skip_spikes <= 0:
        raise UserError(f"optimizer.skip_spikes must be positive, not {config.optimizer.skip_spikes}; or unset it")


def _check_schedule(config: RunConfig) -> None:
    fractions = {f"schedule.{name}": getattr(config.schedule, name) for name in ("warmup", "cooldown", "final")}
    fractions["optimizer.momentum_warmup"] = config.optimizer.momentum_warmup
    fractions["opening.fraction"] = config.opening.fraction
    for field_name, fraction in fractions.items():
        if fraction is not None and not 0 <= fraction <= 1:
            raise UserError(f"{field_name} is a fraction: it must be between 0 and 1, not {fraction}")
    if config.schedule.kind == "wsd" and config.schedule.warmup + config.schedule.cooldown > 1:
        raise UserError(
            f"schedule.warmup {config.schedule.warmup} and schedule.cooldown {config.schedule.cooldown} follow each "
            "other: they must be at most 1 together"
        )
    shorter = config.opening.context_length
    if shorter and config.model.context_length % shorter:
        raise UserError(
            f"opening.context_length {shorter} does not divide model.context_length {config.model.context_length}"
        )


def _check_that_all_matters(config: RunConfig) -> None:
    """Raises UserError for settings that would do nothing without another one."""
    opening, optimizer = config.opening, config.optimizer
    if config.other_tokenizer and config.start_from is None:
        raise UserError("other_tokenizer does nothing without start_from; unset it")
    changes = opening.tokens_per_step is not None or opening.context_length is not None
    if opening.fraction and not changes:
        raise UserError(
            f"opening.fraction {opening.fraction} does nothing by itself: set --opening.tokens-per-step, "
            "--opening.context-length or both, or leave the fraction at 0"
        )
    if changes and not opening.fraction:
        raise UserError(
            "opening.tokens_per_step and opening.context_length do nothing in an opening of no length: set "
            "--opening.fraction, 0.1 say, or unset them"
        )
    idle = {}  # what does nothing, and why
    if not optimizer.momentum_warmup:
        idle["optimizer.momentum_start"] = "does nothing without optimizer.momentum_warmup"
    if optimizer.matrices == "adamw":
        for name in ("momentum", "momentum_start", "momentum_warmup", "cautious_decay"):
            idle[f"optimizer.{name}"] = "is Muon's and does nothing with optimizer.matrices adamw"
    if config.schedule.kind == "cosine":
        idle["schedule.cooldown"] = "does nothing with schedule.kind cosine"
    if config.examples.used and not config.examples.validates:
        idle["validation.patience"] = "does nothing where nothing is held out"
    for place, why in idle.items():
        value, usual = attrgetter(place)(config), attrgetter(place)(RunConfig())
        if value != usual:
            raise UserError(f"{place} {value} {why}; unset it (by default it is {usual})")


def _check_fine_tuning(config: RunConfig) -> None:
    """Raises UserError for settings of examples and adapters that contradict each other or the rest."""
    examples, default = config.examples, type(config.examples)()
    if not examples.used:
        for name, value in asdict(examples).items():
            if value != getattr(default, name):
                raise UserError(f"examples.{name} does nothing without examples.files or examples.stages; unset it")
    if examples.files and examples.stages:
        raise UserError("examples.files and examples.stages exclude each other: name the files in one of them")
    if examples.stages and examples.folds:
        raise UserError("examples.stages and examples.folds exclude each other; unset one")
    if examples.files:
        every_fold = examples.folds and examples.fold is None
        check_options(examples.files, replace(examples, fold=0) if every_fold else examples)
    if examples.packing and examples.group_by_length:
        raise UserError("examples.group_by_length does nothing with examples.packing: all rows are full; unset one")
    if examples.used and config.opening.fraction:
        raise UserError("opening.fraction is for curated data and does nothing with examples; unset it")
    for what, wanted in (("examples", examples.used), ("adapter.method", config.adapter.method != "none")):
        if wanted and config.start_from is None:
            raise UserError(
                f"{what} needs weights to begin with: set --start-from to a run or a Hugging Face directory"
            )
    if config.adapter.positions and not examples.used:
        raise UserError(
            f"adapter.method {config.adapter.method} takes positions before every text, and windows of curated data "
            "fill the whole context: train it on examples.files, or take lora"
        )
    if config.storage != Storage() and config.adapter.method == "none":
        raise UserError(
            "storage keeps frozen weights in fewer bits, and without an adapter none is frozen: set --adapter.method"
        )
    if config.distribution.strategy == "fsdp" and config.storage != Storage():
        raise UserError("FSDP shares out weights of fp32 only: use --distribution.strategy ddp, or unset storage")
    if config.distribution.strategy == "fsdp" and config.optimizer.adamw != "torch":
        raise UserError("the 8-bit state of optimizer.adamw is not shared out by FSDP: use ddp, or adamw torch")
    if config.adapter.method != "none" and config.optimizer.matrices == "muon":
        raise UserError("adapters are trained by AdamW: set --optimizer.matrices adamw, and a rate that suits it")
