"""What a run will do, worked out and shown before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache

import torch
from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.runs import RUNS_ROOT
from data_pipeline.shards import Dataset
from model import Decoder
from model.adapters.attach import attach
from model.device import Precision
from model.functions import CHUNK_LOGITS
from training.config import RunConfig
from training.hardware import peak_flops
from training.low_bit_optimizers import NOT_PAGED, can_page
from training.schedules import check_budget

# Fraction of a plain matrix product's speed that whole training steps reach, for the time estimate only.
TYPICAL_EFFICIENCY = 0.45

PADDING_ROWS = 256  # a vocabulary may be filled up by fewer rows than this, to a multiple that a device likes
PROCESS_BYTES = 600 * 2**20  # of Python, PyTorch and their working space


@dataclass(frozen=True)
class BatchSplit:
    """tokens_per_step = world * accumulation * micro_batch * context; of examples, which may be shorter, at most."""

    context: int
    micro_batch: int  # windows, of the whole context or an example each, in one forward pass of one process
    accumulation: int  # forward passes of each process per optimizer step
    world: int  # processes
    sequence: int  # tokens that see each other: each window is cut into sequences of this length

    @property
    def windows_per_step(self) -> int:
        return self.micro_batch * self.accumulation * self.world

    @property
    def tokens_per_step(self) -> int:
        return self.windows_per_step * self.context


def split_batch(config: RunConfig, world_size: int) -> BatchSplit:
    """Derive the passes of a step from the tokens, or examples, per step that the user set.

    Raises:
        UserError: it does not come out even; the message names the nearest values that do.
    """
    context, world = config.model.context_length, world_size
    if config.examples.used:
        windows, rest = divmod(config.batch.examples_per_step, world)
        if rest or windows < 1:
            legal = " or ".join(str(world * n) for n in (windows, windows + 1) if n)
            raise UserError(
                f"batch.examples_per_step {config.batch.examples_per_step} cannot be shared out among {world} "
                f"processes; nearest legal: --batch.examples-per-step {legal}"
            )
        room = context - config.adapter.positions
        if room < 1:
            raise UserError(
                f"adapter.virtual_tokens: {config.adapter.virtual_tokens} leave no room for a text in a context of "
                f"{context}; take fewer"
            )
        longest = min(config.examples.max_length - 1, room)
        return _passes(windows, config.batch.micro_batch_size, longest, world, longest)
    return _split("batch", config.batch.tokens_per_step, context, config.batch.micro_batch_size, world_size, context)


def split_opening(config: RunConfig, main: BatchSplit) -> BatchSplit:
    """The same of the opening's steps, with micro-batches at most as large as that of `main`."""
    wanted, sequence = config.opening.tokens_per_step, config.opening.context_length
    tokens = wanted or main.tokens_per_step
    return _split("opening", tokens, main.context, main.micro_batch, main.world, sequence or main.context)


def _split(part: str, tokens: int, context: int, largest: int, world: int, sequence: int) -> BatchSplit:
    unit = context * world
    windows, rest = divmod(tokens, unit)  # of one process
    if rest or windows < 1:
        legal = " or ".join(f"{unit * n:,}" for n in (windows, windows + 1) if n)
        raise UserError(
            f"{part}.tokens_per_step {tokens:,} is not a whole number of windows of {context} tokens on each of "
            f"{world} process(es); nearest legal: --{part}.tokens-per-step {legal}, or another --model.context-length"
        )
    return _passes(windows, largest, context, world, sequence)


def _passes(windows: int, largest: int, context: int, world: int, sequence: int) -> BatchSplit:
    """So many windows of each process in as few micro-batches of at most `largest` as there can be of equal size."""
    micro = next(size for size in range(min(largest, windows), 0, -1) if windows % size == 0)
    return BatchSplit(context, micro, windows // micro, world, sequence)


def check_data(config: RunConfig, dataset: Dataset) -> None:
    """Raises UserError when the data was made for another vocabulary than the model has, but for rows of padding."""
    padding = config.model.vocab_size - dataset.vocab_size
    if padding < 0 or (padding >= PADDING_ROWS and config.start_from is None):
        raise UserError(
            f"{dataset.directory} was made with a tokenizer of {dataset.vocab_size:,} ids, the model has "
            f"{config.model.vocab_size:,}; set --model.vocab-size {dataset.vocab_size}, or make matching data with: "
            f"{dataset.recipe_command()}"
        )


def print_plan(
    config: RunConfig, split: BatchSplit, device: torch.device, precision: Precision, console: Console
) -> None:
    """One table: device, precision and why, size, cost, how the batch is split, memory, time, data and place."""
    check_budget(config.budget)
    with torch.device("meta"):
        model = Decoder(config.model)
    parameters = model.parameter_count()
    trained = attach_for_counting(model, config)
    flops = model.flops_per_token()
    table = Table(show_header=False, title=f"run {config.name}", title_justify="left")
    rows = {
        "device": f"{describe_device(device)}, {split.world} process(es)"
        + (f", {config.distribution.strategy}" if split.world > 1 else ""),
        "precision": f"{precision.name}: {precision.reason}",
        "parameters": f"{parameters:,} ({parameters - model.embedding.weight.numel():,} without the embedding)",
        "trained": describe_trained(model, config),
        "optimizer": describe_optimizer(config, device),
        "FLOPs per token": f"{flops:,}",
        "a step": describe_step(config, split),
        "memory": f"about {estimate_memory(config, parameters, trained, split, precision) / 2**30:.1f} GiB a process",
        "budget": describe_budget(config),
        "time": estimate_time(config, flops, split, device, precision),
        "share of peak": describe_peak(device, precision),
        "data": describe_data(config),
        "place": str(RUNS_ROOT / config.name),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def attach_for_counting(model: Decoder, config: RunConfig) -> int:
    """Give a model without weights the adapter of `config`; returns how many parameters are then trained.

    Raises:
        UserError: the adapter does not fit the model.
    """
    if config.adapter.method != "none":
        adapter = replace(config.adapter, prompt_text=None)  # which is not encoded yet
        if adapter.method == "lora":
            adapter = replace(adapter, init="random")  # others look at the weights
        with torch.device("meta"):
            attach(model, adapter)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def describe_trained(model: Decoder, config: RunConfig) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = trained / model.parameter_count()
    return "all" if config.adapter.method == "none" else f"{trained:,} ({share:.2%}), by {config.adapter.method}"


def describe_optimizer(config: RunConfig, device: torch.device) -> str:
    optimizer = config.optimizer
    name = "AdamW" if optimizer.adamw == "torch" else f"AdamW ({optimizer.adamw})"
    if optimizer.adamw == "paged-8bit" and not can_page(device):
        name += f": {NOT_PAGED}"
    return f"Muon and {name}" if optimizer.matrices == "muon" else name


def describe_step(config: RunConfig, split: BatchSplit) -> str:
    parts = f"{split.world} process(es) x {split.accumulation} accumulation x {split.micro_batch}"
    if config.examples.used:
        rows = "packed rows of" if config.examples.packing else "examples of at most"
        return f"{split.windows_per_step:,} {rows} {split.context} tokens = {parts}"
    return f"{split.tokens_per_step:,} tokens = {parts} sequences x {split.context} tokens"


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def describe_peak(device: torch.device, precision: Precision) -> str:
    peak = peak_flops(device, precision)
    if peak:
        return f"logged as mfu, of {peak / 1e12:,.0f} TFLOP/s"
    return f"n/a: {'peaks of fp32 are not' if precision.name == 'fp32' else 'not'} in the table of devices"


def describe_budget(config: RunConfig) -> str:
    budget = config.budget
    parts = [
        f"{budget.tokens:,} tokens" if budget.tokens else "",
        f"{budget.steps:,} steps" if budget.steps else "",
        f"{budget.epochs:g} epochs" if budget.epochs else "",
        f"{budget.minutes:g} minutes" if budget.minutes else "",
    ]
    return ", ".join(part for part in parts if part)


def describe_data(config: RunConfig) -> str:
    if config.examples.used:
        return ", ".join(config.examples.files)
    try:
        dataset = Dataset(config.data.directory)
    except UserError as error:
        return str(error)
    check_data(config, dataset)
    counts = {name: int(split["tokens"]) for name, split in dataset.manifest["splits"].items()}
    return f"{dataset.directory}: " + ", ".join(f"{tokens:,} tokens {name}" for name, tokens in counts.items())


def estimate_memory(
    run_config: RunConfig, parameters: int, trained: int, split: BatchSplit, precision: Precision
) -> int:
    """Bytes of one process: weights, gradients and optimizer state in fp32, and what backward needs of a micro-batch.

    FSDP divides the first three, but gradients that accumulate over micro-batches are whole.

    Within about a quarter of the peak that the quickstart reaches on the CPU, in bf16 and fp32.
    """
    config = run_config.model
    size = 4 if precision.name == "fp32" else 2  # bytes of a saved matrix input
    tokens = split.micro_batch * split.context
    # A block saves its fp32 stream and norms, the attention inputs and outputs, and the feed-forward hidden layer.
    block = config.width * (16 + 10 * size) + config.mlp_size * 3 * size
    checkpointed = {
        "none": block,
        "selective": config.width * (4 + 5 * size) + config.mlp_size * size,
        "full": config.width * 4,
    }
    saved = tokens * config.layers * checkpointed[run_config.activation_checkpointing]
    if run_config.activation_checkpointing != "none":
        saved += tokens * block  # of the block that is being computed again
    # A chunk of the logits in four copies, and the gradient by the head, which is taken with the loss.
    loss = min(tokens * config.vocab_size, CHUNK_LOGITS) * (8 + 2 * size) + config.vocab_size * config.width * 8
    kept = trained_bytes(run_config, trained)
    if trained < parameters:
        kept += frozen_bytes(run_config, parameters)
    if run_config.distribution.strategy == "fsdp":
        kept = kept // split.world + (trained * 4 if split.world > 1 and split.accumulation > 1 else 0)
    return PROCESS_BYTES + kept + saved + loss


def trained_bytes(config: RunConfig, trained: int) -> int:
    """Of what is trained: weight, gradient, optimizer state, and the running average if there is one."""
    of_adamw = 8 if config.optimizer.adamw == "torch" else 2
    by_muon = trained - outside_blocks(config) if config.optimizer.matrices == "muon" else 0  # with no adapter
    average = 0 if config.optimizer.ema is None else 4
    return trained * (4 + 4 + of_adamw + average) + by_muon * (4 - of_adamw)


def outside_blocks(config: RunConfig) -> int:
    """Parameters of embedding and head."""
    return config.model.vocab_size * config.model.width * (1 if config.model.tied else 2)


def frozen_bytes(config: RunConfig, parameters: int) -> int:
    """Of the weights under an adapter: those in the blocks, and the rest."""
    outside = outside_blocks(config)
    sizes = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "nf4": 4.127 / 8, "nf4-single": 4.5 / 8}
    of_rest = sizes[config.storage.dtype]
    of_blocks = of_rest if config.storage.quantization == "none" else sizes[config.storage.quantization]
    return int(outside * of_rest + (parameters - outside) * of_blocks)


def estimate_time(
    config: RunConfig, flops_per_token: int, split: BatchSplit, device: torch.device, precision: Precision
) -> str:
    """From the speed of a matrix product measured here and now; a budget in minutes bounds it."""
    speed = speed_of(device, precision.dtype)
    tokens_per_second = TYPICAL_EFFICIENCY * speed * split.world / flops_per_token
    budget = config.budget
    if budget.epochs and not any((budget.tokens, budget.steps, budget.minutes)):
        return f"{budget.epochs:g} passes over the data, at about {tokens_per_second:,.0f} tokens/s"
    hours = [
        budget.minutes / 60 if budget.minutes else None,
        budget.tokens / tokens_per_second / 3600 if budget.tokens else None,
        budget.steps * split.tokens_per_step / tokens_per_second / 3600 if budget.steps else None,
    ]
    seconds = 3600 * min(value for value in hours if value is not None)
    return (
        f"about {format_duration(seconds)}, at about {tokens_per_second:,.0f} tokens/s "
        f"({TYPICAL_EFFICIENCY:.0%} of {speed / 1e9:,.0f} GFLOP/s measured in a matrix product)"
    )


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of square matrix products in `dtype`, as large as this device can afford in about `seconds`."""

    def run(size: int, repeats: int) -> float:
        """Seconds for one product."""
        a = torch.ones(size, size, device=device, dtype=dtype)
        a @ a
        start = time.perf_counter()
        for _ in range(repeats):
            product = a @ a
        product[0, 0].item()  # waits for the device
        return (time.perf_counter() - start) / repeats

    size = 128
    spent = run(size, 1)
    while size < 4096 and 16 * spent < seconds:  # twice the size costs eight times the work
        size *= 2
        spent = run(size, 1)
    spent = run(size, max(1, int(seconds / spent)))
    return 2 * size**3 / spent


speed_of = cache(measure_matmul)  # stages and folds follow each other in one process


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
