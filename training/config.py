"""Everything a run is made from; a file in `configs/` builds one `RunConfig`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from common.errors import UserError
from model.activations import Checkpointing
from model.config import ModelConfig
from model.device import DeviceName, PrecisionName


@dataclass(frozen=True)
class DataConfig:
    """Which curated data to train on."""

    directory: str = "data/mini"
    """Directory made by `python -m data_pipeline`."""


@dataclass(frozen=True)
class BatchConfig:
    """How many tokens one optimizer step sees; gradient accumulation follows from it."""

    tokens_per_step: int = 65_536
    """Tokens per optimizer step over all processes."""
    micro_batch_size: int = 8
    """Sequences that one process holds at a time, at most; lower it when memory runs out."""


@dataclass(frozen=True)
class OpeningConfig:
    """A first part of the run with smaller steps or shorter sequences, if a fresh model learns as much from them.

    A training window of the full context is cut into shorter ones, so the place in the data means the same throughout.
    """

    fraction: float = 0.0
    """Fraction of the budget that the opening takes; 0 for none."""
    tokens_per_step: int | None = None
    """Tokens per optimizer step in the opening; by default as many as later."""
    context_length: int | None = None
    """Length of its sequences, which must divide the model's context; by default as long as later."""


Strategy = Literal["ddp", "fsdp"]
CompileSetting = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class DistributionConfig:
    """How several processes share the work; without effect on one process, and on the result."""

    strategy: Strategy = "ddp"
    """"ddp": every process keeps the whole model. "fsdp": weights, gradients and optimizer state are split over all."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Muon for the weight matrices in the blocks, AdamW (arXiv 1711.05101) for everything else."""

    matrices: Literal["muon", "adamw"] = "muon"
    """What trains the weight matrices in the blocks."""
    lr: float = 0.01
    """Peak learning rate of the weight matrices in the blocks; AdamW wants about a tenth of Muon's."""
    embedding_lr: float = 3e-3
    """Peak learning rate of embeddings, a tied head among them."""
    head_lr: float = 3e-3
    """Peak learning rate of an untied head."""
    scalar_lr: float = 3e-3
    """Peak learning rate of gains, biases and residual scalars."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the weight matrices in the blocks; nothing else decays."""
    momentum: float = 0.95
    """Muon: decay of the running mean of gradients."""
    momentum_start: float = 0.85
    """Muon: that decay at the first step, when the mean still holds little; it rises over `momentum_warmup`."""
    momentum_warmup: float = 0.0
    """Fraction of the budget over which the momentum rises; 0 for none."""
    cautious_decay: bool = False
    """Decay a weight only where the update shrinks it as well (arXiv 2411.16085, arXiv 2510.12402)."""
    beta1: float = 0.9
    """AdamW: decay of the running mean of gradients."""
    beta2: float = 0.95
    """AdamW: decay of the running mean of squared gradients."""
    eps: float = 1e-8
    """AdamW: added to the denominator."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    skip_spikes: float | None = None
    """Skip a step whose loss or gradient norm exceeds the mean of the last 128 by so many standard deviations."""
    ema: float | None = None
    """Decay of a running average of the weights, which is then what is validated, sampled and evaluated."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a function of the fraction of the budget that is used."""

    kind: Literal["cosine", "wsd"] = "wsd"
    """Cosine decay, or warm-up, stable, linear decay (arXiv 2404.06395)."""
    warmup: float = 0.02
    """Fraction of the budget over which the rate rises from zero."""
    cooldown: float = 0.5
    """Fraction of the budget over which `wsd` decays at the end."""
    final: float = 0.05
    """Rate at the end, as a fraction of the peak."""


@dataclass(frozen=True)
class BudgetConfig:
    """When a run stops: at the first of these that is reached. One given on the command line replaces them all."""

    tokens: int | None = None
    """Stop after this many tokens."""
    steps: int | None = None
    """Stop after this many optimizer steps."""
    minutes: float | None = None
    """Stop after this much wall time, compiling included, over all resumptions."""


@dataclass(frozen=True)
class ValidationConfig:
    """When the whole validation split is scored and samples are written."""

    every: int = 250
    """Steps between validations; the last step is always validated."""
    prompts: tuple[str, ...] = ("The history of", "from __future__ import annotations")
    """Prompts continued at every validation."""
    sample_tokens: int = 64
    """Tokens generated for each prompt; 0 turns samples off."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When and how many checkpoints are written; a new best validation loss and the end always write one."""

    every: int | None = 500
    """Steps between checkpoints."""
    minutes: float | None = None
    """Minutes between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept; the best one is kept beside them."""


@dataclass(frozen=True)
class TrackingConfig:
    """What is logged, and where to; metrics.jsonl is always written."""

    log_every: int = 10
    """Steps between logged steps."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases: "auto" is online when an API key is set up, offline when not."""
    wandb_project: str = "mini-gpt"
    """Project that runs appear in."""
    wandb_group: str | None = None
    """W&B group that the run belongs to, such as the experiment it is one of."""
    wandb_tags: tuple[str, ...] = ()
    """W&B tags of the run."""
    artifacts: Literal["none", "best", "all"] = "none"
    """Which checkpoints become W&B artifacts, aliased "best" and "latest"; each is copied and uploaded whole."""
    histograms_every: int | None = None
    """Steps between histograms of all weights and gradients, which are logged steps then; unset takes none."""
    tensorboard: bool = False
    """Write event files for TensorBoard beside everything else."""


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    name: str = "run"
    """The run lives in runs/NAME; the same command again resumes it."""
    start_from: str | None = None
    """Begin with the weights of a run (name or path), a Hugging Face directory, or a model of its hub (hf://ORG/NAME or
    hf://ORG/NAME@REVISION); `model` is then that of these, of which vocab_size, context_length, window, document_start
    and dropout may be set to something else."""
    other_tokenizer: bool = False
    """With `start_from`: the data have another tokenizer than the weights, though ids then mean other text."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    opening: OpeningConfig = field(default_factory=OpeningConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    """Fixes the initial weights, the order of the data and dropout."""
    precision: PrecisionName = "auto"
    """Number format of matrix products; "auto" takes the fastest that the device has instructions for."""
    device: DeviceName = "auto"
    """Where to run; "auto" prefers CUDA, then MPS, then the CPU."""
    compile: CompileSetting = "auto"
    """Compile the blocks with torch.compile; "auto" does where a measurement says that this run gains from it."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again instead of keeping it: nothing, all but matrix products, whole blocks."""

    def check(self) -> None:
        """Raises UserError for a value out of range, which would only fail, or mislead, in the middle of a run."""
        self.model.check()
        for section, values in asdict(self).items():
            for name, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, float) and not math.isfinite(value):
                    raise UserError(f"{section}.{name} must be a finite number, not {value}")
        at_least_one = {
            "batch.tokens_per_step": self.batch.tokens_per_step,
            "batch.micro_batch_size": self.batch.micro_batch_size,
            "validation.every": self.validation.every,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep": self.checkpoint.keep,
            "tracking.log_every": self.tracking.log_every,
            "opening.tokens_per_step": self.opening.tokens_per_step,
            "opening.context_length": self.opening.context_length,
            "tracking.histograms_every": self.tracking.histograms_every,
        }
        for field_name, number in at_least_one.items():
            if number is not None and number < 1:
                raise UserError(f"{field_name} must be at least 1, not {number}")
        fractions = {f"schedule.{name}": getattr(self.schedule, name) for name in ("warmup", "cooldown", "final")}
        fractions["optimizer.momentum_warmup"] = self.optimizer.momentum_warmup
        fractions["opening.fraction"] = self.opening.fraction
        for field_name, fraction in fractions.items():
            if fraction is not None and not 0 <= fraction <= 1:
                raise UserError(f"{field_name} is a fraction: it must be between 0 and 1, not {fraction}")
        if self.schedule.kind == "wsd" and self.schedule.warmup + self.schedule.cooldown > 1:
            raise UserError(
                f"schedule.warmup {self.schedule.warmup} and schedule.cooldown {self.schedule.cooldown} follow each "
                "other: they must be at most 1 together"
            )
        for name in ("momentum", "momentum_start", "beta1", "beta2", "ema"):
            decay = getattr(self.optimizer, name)
            if decay is not None and not 0 <= decay < 1:
                raise UserError(f"optimizer.{name} is a decay: it must be at least 0 and below 1, not {decay}")
        not_negative = {
            "seed": self.seed,
            "validation.sample_tokens": self.validation.sample_tokens,
            "checkpoint.minutes": self.checkpoint.minutes or 0,
            "optimizer.grad_clip": self.optimizer.grad_clip,
            **{
                f"optimizer.{name}": getattr(self.optimizer, name)
                for name in ("lr", "embedding_lr", "head_lr", "scalar_lr", "eps", "weight_decay")
            },
        }
        for field_name, amount in not_negative.items():
            if amount < 0:
                raise UserError(f"{field_name} must not be negative, not {amount}")
        if self.optimizer.skip_spikes is not None and self.optimizer.skip_spikes <= 0:
            raise UserError(f"optimizer.skip_spikes must be positive, not {self.optimizer.skip_spikes}; or unset it")
        shorter = self.opening.context_length
        if shorter and self.model.context_length % shorter:
            raise UserError(
                f"opening.context_length {shorter} does not divide model.context_length {self.model.context_length}"
            )
        for field_name, budget in asdict(self.budget).items():
            if budget is not None and budget <= 0:
                raise UserError(f"budget.{field_name} must be positive, not {budget}")
        if not self.name or self.name in (".", "..") or "/" in self.name or "\\" in self.name:
            raise UserError(f"name {self.name!r} must be a plain directory name: the run lives in runs/NAME")
        self._check_that_all_matters()

    def _check_that_all_matters(self) -> None:
        """Raises UserError for settings that would do nothing without another one."""
        opening, optimizer = self.opening, self.optimizer
        if self.other_tokenizer and self.start_from is None:
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
        if optimizer.matrices == "adamw":
            of_muon = {"momentum_warmup": optimizer.momentum_warmup, "cautious_decay": optimizer.cautious_decay}
            for name in (name for name, value in of_muon.items() if value):
                raise UserError(f"optimizer.{name} is Muon's and does nothing with optimizer.matrices adamw; unset it")
