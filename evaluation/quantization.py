"""What weights in fewer bits cost: perplexity on the validation split, and how much memory a token reads.

python -m evaluation.quantization RUN
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from typing import get_args  # noqa: E402

import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import write_json  # noqa: E402
from common.runs import Run, choose_checkpoint, find_run  # noqa: E402
from evaluation.__main__ import open_dataset  # noqa: E402
from evaluation.perplexity import Score, packed_windows, token_nll  # noqa: E402
from inference import load_checkpoint  # noqa: E402
from inference.speed import weight_bytes  # noqa: E402
from model.device import DeviceName, Precision  # noqa: E402
from model.quantization import Bits, quantize  # noqa: E402

RESULT = "quantization.json"
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Cost:
    """A run with its weights in so many bits."""

    bits: str
    megabytes: float
    """Weights that a token reads."""
    loss: float
    """In nats a token of the validation split, in packed context."""
    perplexity: float
    change: float
    """Of the perplexity, from that in fp32; 0.01 is one per cent more."""


@dataclass(frozen=True)
class QuantizationCommand:
    """Score a run on the validation split of its data, with its weights in fp32, bf16, int8 and int4."""

    run: tyro.conf.Positional[str | None] = None
    """Name below runs/, or path; by default the newest run."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    data: str | None = None
    """Directory of curated data to score on; by default what the run was trained on."""
    tokens: int = 200_000
    """At most so many tokens of the split, from its beginning."""
    device: DeviceName = "auto"
    """Where to compute."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, measure, write quantization.json and print. A bad flag ends the process with status 2."""
    command = tyro.cli(QuantizationCommand, args=list(argv), prog="python -m evaluation.quantization")
    run = find_run(command.run)
    costs = measure(run, command)
    write_json(run.path / RESULT, {"rows": [asdict(cost) for cost in costs]})
    table = Table(title=run.name, title_justify="left")
    for name in ("weights", "MB a token", "loss", "perplexity", "change"):
        table.add_column(name)
    for cost in costs:
        figures = (f"{cost.megabytes:,.1f}", f"{cost.loss:.4f}", f"{cost.perplexity:,.2f}", f"{cost.change:+.2%}")
        table.add_row(cost.bits, *figures)
    Console(highlight=False).print(table)
    print(f"result {run.path / RESULT}")


def measure(run: Run, command: QuantizationCommand) -> list[Cost]:
    """A row for every format, fp32 first.

    Raises:
        UserError: the run or its data cannot be had, or there is nothing to score.
    """
    checkpoint = choose_checkpoint(run, command.checkpoint)
    dataset = open_dataset(run, checkpoint, command.data)
    stream = dataset.split("val")
    tokens = stream.read(0, min(len(stream), command.tokens))
    if len(tokens) == 0:
        raise UserError(f"the validation split in {dataset.directory} is empty, or --tokens is 0")
    costs: list[Cost] = []
    formats: tuple[Bits | None, ...] = (None, *get_args(Bits))
    for bits in formats:
        loaded = load_checkpoint(run, checkpoint, command.device)
        if bits is not None:
            quantize(loaded.model, bits)
        windows = packed_windows(len(tokens), loaded.model.config.context_length)
        precision = Precision("fp32", "weights alone are to make a difference")
        nll = token_nll(loaded.model, tokens, windows, dataset.eos_id, loaded.device, precision, BATCH_TOKENS)
        score = Score.of(float(nll.sum()), len(tokens), 0)
        change = score.perplexity / costs[0].perplexity - 1 if costs else 0.0
        costs.append(Cost(bits or "fp32", weight_bytes(loaded.model) / 1e6, score.loss, score.perplexity, change))
    return costs


if __name__ == "__main__":
    run_command(main)
