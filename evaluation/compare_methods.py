"""Every method of fine-tuning on the same data, budget and base, each with a learning rate of its own.

python -m evaluation.compare_methods configs/alpaca_sft_small.py --questions data/alpaca_tasks/held_out.jsonl
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import math  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass, field, replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

import tyro  # noqa: E402

from common.cli import load_config, run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import atomic_write, write_json  # noqa: E402
from common.runs import RUNS_ROOT, Run  # noqa: E402
from evaluation.compare_plots import draw_comparison  # noqa: E402
from evaluation.compare_runs import Row, ask, base_loss, measure, train  # noqa: E402
from evaluation.compare_text import describe_comparison  # noqa: E402
from model.adapters.config import AdapterConfig  # noqa: E402
from model.config import ModelConfig  # noqa: E402
from model.convert.opening import architecture_of  # noqa: E402
from model.weights import Storage  # noqa: E402
from training.config import RunConfig  # noqa: E402

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

    Whole models want about a tenth of LoRA's rate, methods with few parameters far more; `--rates` tries others.
    """
    lora = config.adapter
    init = "kaiming" if lora.init == "pissa" else lora.init  # which DoRA does not go with
    return {
        "full": Method(AdapterConfig(), 0.1),
        "lora": Method(lora, 1.0),
        "qlora": Method(lora, 1.0, Storage(quantization="nf4", dtype="bf16")),
        "dora": Method(replace(lora, dora=True, init=init), 1.0),
        "prefix": Method(AdapterConfig(method="prefix"), 10.0),
        "prompt": Method(AdapterConfig(method="prompt"), 30.0),
        "adapters": Method(AdapterConfig(method="bottleneck"), 1.0),
        "ia3": Method(AdapterConfig(method="ia3"), 10.0),
    }


@dataclass(frozen=True)
class CompareCommand:
    """Fine-tune with every method on one budget, and compare what that costs and what it brings. The same command again
    goes on where it was stopped."""

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

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError(f"--methods names none; there are {', '.join(ALL)}")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise UserError(f"--rates {' '.join(map(str, self.rates))}: give one or more positive factors")
        if self.questions is not None and not self.questions.is_file():
            raise UserError(f"{self.questions} does not exist; make it with the command that made the training file")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, train what is not trained yet, and write the comparison."""
    command = tyro.cli(CompareCommand, args=list(argv), prog="python -m evaluation.compare_methods")
    config = prepared(load_config(command.config, RunConfig), command.config)
    found = [best_of(config, name, method, command.rates) for name, method in chosen(config, command).items()]
    first = next((run for run, _ in found if run is not None), None)
    if first is None:
        raise UserError("training diverged with every method and every rate: lower optimizer.lr in the config")
    rows = [Row(BASE, validation_loss=base_loss(first, config)), *(row for _, row in found)]
    if command.questions is not None:
        for number, (run, row) in enumerate(found, start=1):
            if run is not None:
                answers = ask(run, command.questions, command.limit, config, with_base=run == first)
                rows[number] = with_score(row, answers["tuned"])
                # The base may not be there to be asked any more.
                rows[0] = with_score(rows[0], answers[BASE]) if run == first and BASE in answers else rows[0]
    write_comparison(rows, config)


def chosen(config: RunConfig, command: CompareCommand) -> dict[MethodName, Method]:
    """The methods that the command names, in the order of the table."""
    return {name: method for name, method in methods_of(config).items() if name in command.methods}


def with_score(row: Row, right: dict[str, Any]) -> Row:
    """`row` with the share of right facts, as questions.json has it."""
    return replace(row, score=right["right"] / right["of"], asked=right["of"])


def write_comparison(rows: Sequence[Row], config: RunConfig) -> None:
    """comparison.json, comparison.png and comparison.md, which is printed too."""
    out = directory_of(config)
    write_json(out / "comparison.json", {"start_from": config.start_from, "rows": [asdict(row) for row in rows]})
    with atomic_write(out / "comparison.png", "wb") as image:
        image.write(draw_comparison(rows))
    text = describe_comparison(rows, config)
    with atomic_write(out / "comparison.md") as file:
        file.write(f"{text}\n![comparison](comparison.png)\n")
    print(f"{text}\nresult {out}")


def prepared(config: RunConfig, path: Path) -> RunConfig:
    """`config` with examples so short that all methods see the same ones: some take positions before every text.

    Raises:
        UserError: it does not fine-tune with LoRA, or not on examples of which some are held out.
    """
    examples = config.examples
    if config.adapter.method != "lora" or config.adapter.dora:
        raise UserError(f"{path} must fine-tune with plain LoRA, of which the other methods are variants")
    if not examples.files or (examples.folds and examples.fold is None):
        raise UserError(f"{path} must name examples.files for a single run, without examples.stages and folds")
    if not (examples.validation_files or examples.validation_fraction or examples.folds):
        raise UserError(f"{path} must hold some examples out to compare on: set examples.validation_fraction, or files")
    if config.start_from is None:
        raise UserError(f"{path} names no weights to begin with: set start_from")
    model = architecture_of(config.start_from) if config.model == ModelConfig() else config.model
    longest = model.context_length + 1 - max(method.adapter.positions for method in methods_of(config).values())
    return replace(config, examples=replace(examples, max_length=min(examples.max_length, longest)))


def best_of(config: RunConfig, name: MethodName, method: Method, factors: Sequence[float]) -> tuple[Run | None, Row]:
    """Train `method` with every rate that is to be tried; the run with the lowest validation loss, and what it shows.

    Training that diverges is no reason to end the comparison: there is no run then.
    """
    losses: dict[float, float | None] = {}
    for factor in dict.fromkeys(factors):
        lr = float(_exact(config.optimizer.lr * method.rate * factor))
        losses[lr] = train(with_method(config, name, method, lr), directory_of(config))
    tried = {_exact(lr): loss for lr, loss in losses.items()}
    finished = {lr: loss for lr, loss in losses.items() if loss is not None}
    if not finished:
        return None, Row(name, tried=tried)
    best = min(finished, key=lambda lr: finished[lr])
    run = Run(RUNS_ROOT / with_method(config, name, method, best).name)
    return run, measure(run, Row(name, validation_loss=finished[best], lr=best, tried=tried))


def with_method(config: RunConfig, name: str, method: Method, lr: float) -> RunConfig:
    """`config` as `method` trains it; everything that is trained has the same rate."""
    rates = replace(config.optimizer, lr=lr, embedding_lr=None, head_lr=None, scalar_lr=None)
    return replace(
        config,
        name=f"{config.name}_{name}_{_exact(lr)}",
        adapter=method.adapter,
        storage=method.storage,
        optimizer=rates,
    )


def _exact(lr: float) -> str:
    """All of a rate but the rounding error of a product: so that names are short, and no two rates share a run."""
    return f"{lr:.12g}"


def directory_of(config: RunConfig) -> Path:
    """Where the comparison and the configs of its runs lie."""
    return RUNS_ROOT / f"{config.name}_comparison"


if __name__ == "__main__":
    run_command(main)
