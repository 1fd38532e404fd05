"""Every method of fine-tuning on the same data, budget and base, each with a learning rate of its own.

python -m evaluation.compare_methods configs/alpaca_sft_small.py --questions data/alpaca_tasks/held_out.jsonl
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from common.cli import load_config, run_command, to_dict
from common.errors import UserError
from common.files import atomic_write, read_json, read_json_lines, write_json
from common.runs import RUNS_ROOT, Run, choose_checkpoint
from evaluation.compare_plots import draw_comparison
from evaluation.compare_text import describe_comparison
from model.adapters.config import AdapterConfig
from model.weights import Storage
from training.config import RunConfig

MethodName = Literal["full", "lora", "qlora", "dora", "prefix", "prompt", "adapters", "ia3"]
ALL: tuple[MethodName, ...] = ("full", "lora", "qlora", "dora", "prefix", "prompt", "adapters", "ia3")
BASE = "base"


@dataclass(frozen=True)
class Method:
    """How one method is set up, given the LoRA that a config asks for."""

    adapter: AdapterConfig
    rate: float
    """Learning rate, times that of the config."""
    storage: Storage = field(default_factory=Storage)


def methods_of(config: RunConfig) -> dict[MethodName, Method]:
    """The methods, in the order of the table.

    The factors on the rate are those that a sweep over powers of about three found best for the small base, and agree
    with what is published: whole models want about a tenth of LoRA's rate, few parameters far more.
    """
    lora = replace(config.adapter, method="lora", dora=False)
    return {
        "full": Method(AdapterConfig(), 0.1),
        "lora": Method(lora, 1.0),
        "qlora": Method(lora, 1.0, Storage(quantization="nf4", dtype="bf16")),
        "dora": Method(replace(lora, dora=True), 1.0),
        "prefix": Method(AdapterConfig(method="prefix"), 10.0),
        "prompt": Method(AdapterConfig(method="prompt"), 30.0),
        "adapters": Method(AdapterConfig(method="bottleneck"), 1.0),
        "ia3": Method(AdapterConfig(method="ia3"), 10.0),
    }


@dataclass(frozen=True)
class CompareCommand:
    """Fine-tune with every method on one budget, and compare what that costs and what it brings."""

    config: tyro.conf.Positional[Path]
    """A config that fine-tunes with LoRA, on examples of which some are held out."""
    questions: Path | None = None
    """The held_out.jsonl beside the training file: its questions are then asked, and right facts counted."""
    limit: int | None = 200
    """Ask at most so many."""
    methods: tuple[MethodName, ...] = ALL
    """Which ones."""
    rates: tuple[float, ...] = (1.0,)
    """Factors on each method's own learning rate; with several, each is tried and the best by validation loss kept."""


@dataclass(frozen=True)
class Row:
    """One method in figures; None for what does not apply or was not measured."""

    method: str
    trainable_parameters: int | None
    peak_memory_mb: float | None
    adapter_bytes: int | None
    """Of the file to hand on: the adapter, or the whole model."""
    tokens_per_second: float | None
    """Median of the logged steps."""
    validation_loss: float
    score: float | None
    """Share of held-out questions answered with the right fact."""
    lr: float | None
    tried: dict[str, float]
    """Best validation loss by the learning rates that were tried."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, train what is not trained yet, and write the comparison."""
    command = tyro.cli(CompareCommand, args=list(argv), prog="python -m evaluation.compare_methods")
    config = load_config(command.config, RunConfig)
    if config.adapter.method != "lora" or config.adapter.dora:
        raise UserError(f"{command.config} must fine-tune with plain LoRA, of which the other methods are variants")
    if not config.examples.files or not (config.examples.validation_files or config.examples.validation_fraction):
        raise UserError(f"{command.config} must name examples.files, and hold some examples out to compare on")
    if command.questions is not None and not command.questions.is_file():
        raise UserError(f"{command.questions} does not exist; make it with the command that made the training file")
    rows = [
        best_of(config, name, method, command) for name, method in methods_of(config).items() if name in command.methods
    ]
    rows.insert(0, base_row(config, rows))
    out = RUNS_ROOT / f"{config.name}_comparison"
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", {"config": str(command.config), "rows": [asdict(row) for row in rows]})
    (out / "comparison.png").write_bytes(draw_comparison(rows))
    text = describe_comparison(rows, config)
    with atomic_write(out / "comparison.md") as file:
        file.write(text)
    print(text)


def best_of(config: RunConfig, name: MethodName, method: Method, command: CompareCommand) -> Row:
    """Train `method` with every rate that is to be tried, and measure the run with the lowest validation loss."""
    tried: dict[float, Run] = {}
    for factor in command.rates:
        lr = config.optimizer.lr * method.rate * factor
        tried[lr] = train(with_method(config, name, method, lr))
    losses = {lr: validation_losses(run) for lr, run in tried.items()}
    best = min(tried, key=lambda lr: min(losses[lr][1:]))
    run = tried[best]
    score = ask(run, command, with_base=name == command.methods[0]) if command.questions else None
    return measure(run, name, best, score, {f"{lr:.3g}": min(of[1:]) for lr, of in losses.items()})


def with_method(config: RunConfig, name: str, method: Method, lr: float) -> RunConfig:
    """`config` as `method` trains it; everything that is trained has the same rate."""
    rates = replace(config.optimizer, lr=lr, embedding_lr=lr, head_lr=lr, scalar_lr=lr)
    return replace(
        config,
        name=f"{config.name}_{name}_{lr:.3g}",
        adapter=method.adapter,
        storage=method.storage,
        optimizer=rates,
        validation=replace(config.validation, at_start=True),
    )


def train(config: RunConfig) -> Run:
    """Train in a process of its own, whose peak memory is that of the method. A finished run is left as it is.

    Raises:
        UserError: it failed; its own message stands above.
    """
    file = RUNS_ROOT / "configs" / f"{config.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, to_dict(config))
    print(f"--- {config.name}", file=sys.stderr, flush=True)
    _run(sys.executable, "train.py", str(file))
    return Run(RUNS_ROOT / config.name)


def ask(run: Run, command: CompareCommand, with_base: bool) -> dict[str, float]:
    """The share of right facts of the run and, `with_base`, of the model that it began with."""
    flags = ["--limit", str(command.limit)] if command.limit else []
    flags += [] if with_base else ["--no-base"]
    _run(sys.executable, "-m", "evaluation.questions", str(run.path), str(command.questions), *flags)
    found = read_json(run.path / "questions.json")["overall"]["fact"]
    return {model: of["right"] / of["of"] for model, of in found.items() if model in ("tuned", BASE)}


def measure(run: Run, name: str, lr: float, score: dict[str, float] | None, tried: dict[str, float]) -> Row:
    """What is known of a finished run."""
    rows = read_json_lines(run.metrics)
    speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    adapter = run.path / "adapter" / "adapter_model.safetensors"
    file = adapter if adapter.is_file() else choose_checkpoint(run, "best").weights
    return Row(
        method=name,
        trainable_parameters=int(read_json(run.path / "adapter.json")["trainable_parameters"]),
        peak_memory_mb=max(row["memory_mb"] for row in rows if "memory_mb" in row),
        adapter_bytes=file.stat().st_size,
        tokens_per_second=speeds[len(speeds) // 2],
        validation_loss=min(validation_losses(run)[1:]),
        score=score["tuned"] if score else None,
        lr=lr,
        tried=tried,
    )


def base_row(config: RunConfig, rows: Sequence[Row]) -> Row:
    """The model before any training: what the first method's run validated before its first step."""
    first = Run(RUNS_ROOT / f"{config.name}_{rows[0].method}_{rows[0].lr:.3g}")
    score = None
    if rows[0].score is not None:
        of = read_json(first.path / "questions.json")["overall"]["fact"][BASE]
        score = of["right"] / of["of"]
    return Row(BASE, None, None, None, None, validation_losses(first)[0], score, None, {})


def validation_losses(run: Run) -> list[float]:
    """In the order of the steps; the first is that of the base."""
    return [row["val/loss"] for row in read_json_lines(run.metrics) if row.get("val/loss") is not None]


def _run(*words: Any) -> None:
    finished = subprocess.run([str(word) for word in words], check=False)
    if finished.returncode:
        raise UserError(f"{' '.join(map(str, words[1:]))} ended with status {finished.returncode}; see above")


if __name__ == "__main__":
    run_command(main)
