"""Wall time to one loss, nanoGPT against ours: python -m benchmarks.time_to_loss --peer PATH.

nanoGPT trains on the quickstart's tokens with each of several learning rates, then with the best one on further
seeds; ours is given a tenth of the wall time that nanoGPT's best run took. Both are scored by the same function on
the whole held-out set. Times count training alone, compiling included. Finished runs are kept in a file, so the command
can be interrupted and repeated.
"""

from common.threads import bind_threads

bind_threads()

import math  # noqa: E402
import shutil  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.peer import Peer, random_windows  # noqa: E402
from benchmarks.runs import Result, Results, spread, train  # noqa: E402
from common.cli import load_config, run_command  # noqa: E402
from common.runs import RUNS_ROOT  # noqa: E402
from data_pipeline.shards import Dataset  # noqa: E402
from training.config import RunConfig  # noqa: E402

MICRO_BATCH = 8  # windows, as ours


@dataclass(frozen=True)
class TimeToLossCommand:
    """Compare the wall time that nanoGPT and we take to the loss that nanoGPT ends with."""

    peer: str
    """A nanoGPT checkout."""
    config: str = "configs/quickstart.py"
    """Our config; nanoGPT gets its data, vocabulary, context, layers and width, and heads of 64."""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 3e-3)
    """Learning rates that nanoGPT tries with the first seed."""
    steps: int = 735
    """Steps of nanoGPT, each of our config's tokens per step."""
    seeds: int = 3
    """Seeds of both."""
    fraction: float = 0.1
    """Share of nanoGPT's wall time that ours gets."""
    compiled: bool = True
    """Compile nanoGPT."""
    out: str = "benchmarks/results/time_to_loss.jsonl"
    """Where finished runs are kept."""


def run_peer(command: TimeToLossCommand, rate: float, seed: int) -> Result:
    """Train nanoGPT once and score it."""
    config = load_config(command.config, RunConfig)
    dataset = Dataset(config.data.directory)
    shape = replace(config.model, heads=config.model.width // 64)
    accumulation = config.batch.tokens_per_step // (MICRO_BATCH * shape.context_length)
    peer = Peer(command.peer, shape, rate, seed, command.compiled)
    stream = dataset.split("train")
    tokens = stream.read(0, len(stream)).astype(np.uint16)
    started = time.perf_counter()
    for step in range(command.steps):
        peer.set_rate(step, command.steps)
        batches = (random_windows(tokens, MICRO_BATCH, shape.context_length) for _ in range(accumulation))
        loss = peer.step(batches, accumulation)
        if step % 20 == 0:
            print(f"nanoGPT {rate:g}, seed {seed}: step {step}, loss {loss:.3f}", flush=True)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "step": command.steps, **score_peer(peer, dataset, shape.context_length)}


def score_peer(peer: Peer, dataset: Dataset, context: int) -> dict[str, float]:
    """Every token of the held-out set predicted once, in the same windows as our own validation."""
    windows = dataset.split("val").scoring_windows(context, dataset.eos_id)
    peer.model.eval()
    total, tokens = 0.0, 0
    for inputs, targets in (windows[number] for number in range(len(windows))):
        losses = peer.losses(torch.from_numpy(inputs)[None], torch.from_numpy(targets)[None])
        total, tokens = total + losses.double().sum().item(), tokens + len(targets)
    text_bytes = int(dataset.manifest["splits"]["val"]["bytes"])
    return {"val/loss": total / tokens, "val/bits_per_byte": total / (text_bytes * math.log(2))}


def run_ours(command: TimeToLossCommand, seconds: float, seed: int) -> Result:
    """Train our config from scratch for so long."""
    name = f"time_to_loss_{seed}"
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    budget = ("--budget.minutes", f"{seconds / 60:.4f}", "--validation.every", "100000", "--seed", str(seed))
    result = train(command.config, name, budget)
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    return result


def measure(command: TimeToLossCommand, results: Results) -> tuple[list[Result], list[Result]]:
    """All runs, nanoGPT's at its best rate and ours, one a seed; those done before are not repeated."""
    about = {"config": command.config, "steps": command.steps}

    def peer(rate: float, seed: int) -> Result:
        key = {**about, "who": "nanoGPT", "rate": rate, "seed": seed}
        if not results.find(**key):
            results.add({**key, **run_peer(command, rate, seed)})
        return results.find(**key) or {}

    tried = [peer(rate, 0) for rate in command.rates]
    best = min(tried, key=lambda row: row["val/loss"])["rate"]
    theirs = [peer(best, seed) for seed in range(command.seeds)]
    seconds = round(command.fraction * statistics.median(row["seconds"] for row in theirs), 1)
    ours = []
    for seed in range(command.seeds):
        key = {**about, "who": "ours", "given": seconds, "seed": seed}
        if not results.find(**key):
            results.add({**key, **run_ours(command, seconds, seed)})
        ours.append(results.find(**key) or {})
    return theirs, ours


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(TimeToLossCommand, args=argv, prog="python -m benchmarks.time_to_loss")
    Path(command.out).parent.mkdir(parents=True, exist_ok=True)
    results = Results(Path(command.out))
    theirs, ours = measure(command, results)
    table = Table("", "held-out loss", "bits per byte", "seconds", "steps", title_justify="left")
    console = Console(width=110)
    for row in results.rows:
        if row["who"] == "nanoGPT" and row["seed"] == 0:
            table.add_row(f"nanoGPT at {row['rate']:g}, seed 0", *figures([row]))
    table.add_row(f"nanoGPT at {theirs[0]['rate']:g}, {len(theirs)} seeds", *figures(theirs))
    table.add_row(f"ours, {len(ours)} seeds", *figures(ours))
    console.print(table)
    reached = max(row["val/loss"] for row in ours) <= min(row["val/loss"] for row in theirs)
    verdict = "every seed of ours is below every seed of nanoGPT" if reached else "not every seed of ours is below"
    console.print(f"ours had {command.fraction:g} of nanoGPT's time: {verdict}")


def figures(rows: list[Result]) -> list[str]:
    columns = ("val/loss", "val/bits_per_byte", "seconds", "step")
    return [spread([row[column] for row in rows], 3 if column.startswith("val") else 0) for column in columns]


if __name__ == "__main__":
    run_command(main)
