"""Everything a run is made from; a file in `configs/` builds one `RunConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.examples.dataset import ExampleOptions
from model.activations import Checkpointing
from model.adapters.config import AdapterConfig
from model.config import ModelConfig
from model.device import DeviceName, PrecisionName
from model.weights import Storage


@dataclass(frozen=True)
class DataConfig:
    """Which curated data to train on."""

    directory: str = "data/mini"
    """Directory made by `python -m data_pipeline`."""


@dataclass(frozen=True)
class ExamplesConfig(ExampleOptions):
    """Fine-tuning on files of questions and answers, instructions, conversations or texts, instead of curated data."""

    files: tuple[str, ...] = ()
    """The files to train on; with any, `data` is not used."""
    fold: int | None = None
    """With folds: the part to validate on, from 0; unset trains every fold, each a run NAME_fold_N."""
    stages: tuple[str, ...] = ()
    """Instead of `files`: train on one file after the other, each stage a run NAME_stage_N with a schedule of its own
    that starts from the last; `validation_files` then has one file a stage, or none."""
    packing: bool = False
    """Put several short examples into one row of max_length tokens; they do not see each other."""
    group_by_length: bool = False
    """Let examples of like length share a batch, so that less of it is padding; the loss curve becomes jagged."""
    neftune_alpha: float = 0.0
    """Noise on the embeddings while training (NEFTune, arXiv 2310.05914), 5 for example; 0 for none."""

    @property
    def used(self) -> bool:
        """Whether the run fine-tunes on examples."""
        return bool(self.files or self.stages)


@dataclass(frozen=True)
class BatchConfig:
    """How much one optimizer step sees; gradient accumulation follows from it."""

    tokens_per_step: int = 65_536
    """Tokens per optimizer step over all processes, of curated data."""
    examples_per_step: int = 16
    """Examples (packed rows, with `examples.packing`) per optimizer step over all processes, of `examples`."""
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
    embedding_lr: float | None = None
    """Peak learning rate of embeddings, a tied head among them; when not set 3e-3 beside Muon, else `lr`."""
    head_lr: float | None = None
    """Peak learning rate of an untied head; likewise."""
    scalar_lr: float | None = None
    """Peak learning rate of gains, biases and residual scalars; likewise."""
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
    adamw: Literal["torch", "8bit", "paged-8bit"] = "torch"
    """AdamW of PyTorch; or of bitsandbytes, with state of 8 bits, which can be paged out of a CUDA device's memory."""
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
    epochs: float | None = None
    """Stop after so many passes over the training data."""
    minutes: float | None = None
    """Stop after this much wall time, compiling included, over all resumptions."""


@dataclass(frozen=True)
class ValidationConfig:
    """When the validation split is scored and samples are written."""

    every: int = 250
    """Steps between validations; the last step is always validated."""
    tokens: int | None = None
    """Score about so many tokens, in rows spread evenly over the split; unset scores all. `python -m evaluation` always
    scores all."""
    at_start: bool = False
    """Validate and sample before the first step as well."""
    patience: int | None = None
    """Stop when so many validations one after the other have not been better than the best; unset never does."""
    prompts: tuple[str, ...] = ("The history of", "from __future__ import annotations")
    """Prompts continued at every validation."""
    sample_tokens: int = 64
    """Tokens generated for each prompt; 0 turns samples off."""
    temperature: float = 0.8
    """Logits of samples are divided by it; 0 always takes the likeliest token."""


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
    """Project that runs appear in, of W&B and of Trackio."""
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
    trackio: bool = False
    """Write everything into a database for Trackio as well, runs/trackio/ unless TRACKIO_DIR says otherwise."""


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
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    storage: Storage = field(default_factory=Storage)
    """With an adapter: how the weights that it rests on are kept in memory."""
    data: DataConfig = field(default_factory=DataConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
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
