"""Wall time to one loss, nanoGPT against ours: python -m benchmarks.time_to_loss --peer PATH.

nanoGPT first tries several learning rates on our config's tokens. Only the losses of these trials count, so other work
may run beside them (`--trials-only` stops there); everything after needs a quiet machine. It then trains with the best
rate once a seed, timed. Ours is given a tenth of that wall time: once with our config as it is, and once with as many
blocks of the same width as nanoGPT has. All are scored in the same windows of the whole held-out set. Times are those
of the training loops, compiling included. Finished runs are kept in a file, so the command can be interrupted and
repeated.
"""

from common.threads import bind_threads

bind_threads()

import math  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.peer import Peer, precision_without_scaler, random_windows  # noqa: E402
from benchmarks.runs import Result, Results, digest, spread, train  # noqa: E402
from common.cli import load_config, run_command, to_dict  # noqa: E402
from common.runs import RUNS_ROOT  # noqa: E402
from data_pipeline.shards import Dataset  # noqa: E402
from model import Decoder, ModelConfig  # noqa: E402
from model.device import choose_device  # noqa: E402
from training.config import RunConfig  # noqa: E402

MICRO_BATCH = 8  # windows of nanoGPT
OURS = "ours"


@dataclass(frozen=True)
class TimeToLossCommand:
    """Compare the wall time that nanoGPT and we take to the loss that nanoGPT ends with."""

    peer: str
    """A nanoGPT checkout."""
    config: str = "configs/quickstart.py"
    """Our config; nanoGPT gets its data, vocabulary and context."""
    layers: int = 6
    """Blocks of nanoGPT."""
    width: int = 320
    """Width of nanoGPT, in heads of 64."""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 3e-3)
    """Learning rates that nanoGPT tries with the first seed."""
    steps: int = 735
    """Steps of nanoGPT."""
    tokens_per_step: int = 4096
    """Tokens of each step of nanoGPT."""
    seeds: int = 3
    """Seeds of both."""
    trials_only: bool = False
    """Try the learning rates and stop."""
    fraction: float = 0.1
    """Share of nanoGPT's wall time that ours gets."""
    compiled: bool = True
    """Compile nanoGPT."""
    out: str = "benchmarks/results/time_to_loss.jsonl"
    """Where finished runs are kept."""


def in_size_of_nanogpt(command: TimeToLossCommand, model: ModelConfig) -> ModelConfig:
    return replace(model, layers=command.layers, width=command.width, heads=command.width // 64)


def run_peer(command: TimeToLossCommand, rate: float, seed: int) -> Result:
    """Train nanoGPT once and score it."""
    config = load_config(command.config, RunConfig)
    dataset = Dataset(config.data.directory)
    shape = in_size_of_nanogpt(command, config.model)
    accumulation = command.tokens_per_step // (MICRO_BATCH * shape.context_length)
    device = choose_device(config.device)
    precision = precision_without_scaler(device, config.precision)
    peer = Peer(command.peer, shape, rate, seed, command.compiled, device, precision)
    stream = dataset.split("train")
    tokens = stream.read(0, len(stream)).astype(stream.dtype)
    started = time.perf_counter()
    for step in range(command.steps):
        peer.set_rate(step, command.steps)
        batches = (random_windows(tokens, MICRO_BATCH, shape.context_length) for _ in range(accumulation))
        loss = peer.step(batches, accumulation)
        if step % 20 == 0:
            print(f"nanoGPT {rate:g}, seed {seed}: step {step}, loss {loss:.3f}", flush=True)
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in peer.model.parameters())
    scores = score_peer(peer, dataset, shape.context_length)
    return {"parameters": parameters, "seconds": seconds, "step": command.steps, **scores}


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


def run_ours(command: TimeToLossCommand, seconds: float, seed: int, same_size: bool) -> Result:
    """Train our config from scratch for so long, in its own size or in nanoGPT's."""
    name = f"time_to_loss_{seed}"
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    arguments = ["--budget.minutes", f"{seconds / 60:.4f}", "--validation.every", "100000", "--seed", str(seed)]
    model = load_config(command.config, RunConfig).model
    if same_size:
        model = in_size_of_nanogpt(command, model)
        arguments += ["--model.layers", str(model.layers), "--model.width", str(model.width)]
        arguments += ["--model.heads", str(model.heads)]
    result = train(command.config, name, arguments)
    shutil.rmtree(RUNS_ROOT / name, ignore_errors=True)
    return {"parameters": Decoder(model).parameter_count(), **result}


def what_peer_depends_on(command: TimeToLossCommand) -> Result:
    """Not our optimizer: a change to that leaves nanoGPT's runs as they are."""
    config = load_config(command.config, RunConfig)
    data = Dataset(config.data.directory).fingerprint
    of_ours = [data, config.model.vocab_size, config.model.context_length, config.precision, config.device]
    about = {name: getattr(command, name) for name in ("layers", "width", "steps", "tokens_per_step", "compiled")}
    return {**about, "settings": digest(of_ours)}


def what_ours_depends_on(command: TimeToLossCommand) -> Result:
    config = load_config(command.config, RunConfig)
    data = Dataset(config.data.directory).fingerprint
    return {"layers": command.layers, "width": command.width, "settings": digest([data, to_dict(config)])}


def measure(command: TimeToLossCommand, results: Results) -> tuple[list[Result], dict[str, list[Result]]]:
    """nanoGPT's trials, and all runs by who ran, one a seed, nanoGPT's at its best rate.

    Those done before are not repeated. Ours follow nanoGPT's seed by seed, so that a machine that changes its speed
    does so for all.
    """

    def once(run: Callable[..., Result], *arguments: Any, **who: Any) -> Result:
        key = {**(what_ours_depends_on if run is run_ours else what_peer_depends_on)(command), **who}
        if not results.find(**key):
            results.add({"config": command.config, **key, **run(command, *arguments)})
        return results.find(**key) or {}

    trials = [once(run_peer, rate, 0, who="trial", rate=rate) for rate in command.rates]
    if command.trials_only:
        return trials, {}
    best = min(trials, key=lambda row: row["val/loss"])["rate"]
    runs: dict[str, list[Result]] = {f"nanoGPT at {best:g}": [], OURS: [], f"{OURS}, in its size": []}
    for seed in range(command.seeds):
        theirs, *ours = runs.values()
        theirs.append(once(run_peer, best, seed, who="nanoGPT", rate=best, seed=seed))
        seconds = round(command.fraction * theirs[-1]["seconds"], 1)
        for rows, same_size in zip(ours, (False, True), strict=True):
            key = {"who": OURS, "same_size": same_size, "given": seconds, "seed": seed}
            rows.append(once(run_ours, seconds, seed, same_size, **key))
    return trials, runs


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(TimeToLossCommand, args=argv, prog="python -m benchmarks.time_to_loss")
    Path(command.out).parent.mkdir(parents=True, exist_ok=True)
    results = Results(Path(command.out))
    tried, runs = measure(command, results)
    if not runs:
        print(*(f"nanoGPT at {row['rate']:g}: {row['val/loss']:.4f}" for row in tried), sep="\n")
        return
    table = Table("", "parameters", "held-out loss", "bits per byte", "seconds", "steps", title_justify="left")
    for who, rows in {**{f"nanoGPT at {row['rate']:g}, trial": [row] for row in tried}, **runs}.items():
        table.add_row(who, f"{rows[0]['parameters'] / 1e6:.1f} M", *figures(rows))
    console = Console(width=120)
    console.print(table)
    theirs, *ours = runs.values()
    for who, rows in zip(list(runs)[1:], ours, strict=True):
        ahead = sum(mine["val/loss"] <= other["val/loss"] for mine, other in zip(rows, theirs, strict=True))
        console.print(
            f"{who}, in {command.fraction:g} of nanoGPT's time: at or below its loss in {ahead} of {len(rows)}"
        )


def figures(rows: list[Result]) -> list[str]:
    columns = ("val/loss", "val/bits_per_byte", "seconds", "step")
    return [spread([row[column] for row in rows], 3 if column.startswith("val") else 0) for column in columns]


if __name__ == "__main__":
    run_command(main)
