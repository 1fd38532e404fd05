"""Speed of generation beside other engines: python -m benchmarks.inference [--threads 1 2] [--run NAME] [options].

All engines have the same weights, exported by `model/convert`, and the same number of threads. Each number format of
each engine is a process of its own, and all are measured in turn. Engines that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from benchmarks import inference_weights
from benchmarks.inference_worker import PACKAGES, Task
from benchmarks.process import Worker
from benchmarks.table import Measurement, Spread, alternate, ratios, show, spreads
from common.cli import from_dict, load_config, run_command
from common.files import write_json
from common.runs import Run, find_run
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from inference.loading import read_config
from model import ModelConfig
from model.convert.hf_export import misfits
from model.convert.registry import family_of_ours
from training.config import RunConfig


class Variant(NamedTuple):
    """A number format of an engine."""

    engine: str
    mode: str
    element_bytes: int
    """Of the keys and values in its cache."""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.mode}"


VARIANTS = (
    Variant("ours", "fp32", 4),
    Variant("ours", "bf16", 2),
    Variant("ours", "int8", 2),
    Variant("ours", "int4", 2),
    Variant("transformers", "float32", 4),
    Variant("transformers", "bfloat16", 2),
    Variant("CTranslate2", "float32", 4),
    Variant("CTranslate2", "int8", 4),
    Variant("llama.cpp", "f32", 4),
    Variant("llama.cpp", "bf16", 2),
    Variant("llama.cpp", "q8_0", 2),
    Variant("llama.cpp", "q4_0", 2),
)
EXACT = ("fp32", "float32", "f32")  # formats in which all engines must write the same
Part = Literal["speed", "concurrency", "perplexity", "speculation"]


@dataclass(frozen=True)
class BenchmarkCommand:
    """Measure generation, one text and many at a time, beside transformers, CTranslate2 and llama.cpp."""

    config: str = "configs/mini_llama.py"
    """Run config whose architecture is measured, with random weights."""
    run: str | None = None
    """A run to measure instead: also its perplexity in every format, and speculation on its validation texts."""
    draft: str | None = None
    """A smaller run of the same tokenizer, which then drafts for --run."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads."""
    first_tokens: int = 512
    """Length of the prompt to whose first token the time is taken."""
    prompt_tokens: int = 64
    """Length of the prompts behind which decoding is timed."""
    new_tokens: int = 64
    """Tokens that are timed."""
    rounds: int = 5
    """Rounds after one that warms up."""
    parts: tuple[Part, ...] = ("speed", "concurrency", "perplexity", "speculation")
    """What to measure; the last two need a run."""
    exports: str | None = None
    """Keep the exported weights in this directory for the next time."""
    json: str | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class Weights:
    """A run, and where it is exported to."""

    run: Run
    shape: ModelConfig
    folder: Path

    @staticmethod
    def of(command: BenchmarkCommand, folder: Path) -> Weights:
        """Raises UserError when there is no such run or config."""
        if command.run is not None:
            run = find_run(command.run)
            shape = from_dict(ModelConfig, read_config(run)["model"], where=f"{run.config}: model")
            return Weights(run, shape, folder / inference_weights.fingerprint(run))
        configured = load_config(command.config, RunConfig).model
        # With these every id can follow every other; with GPT-2's small ones a text would repeat its last id.
        shape = replace(configured, zero_init_projections=False, init_std=None)
        run = inference_weights.random_run(folder, shape)
        return Weights(run, shape, folder / inference_weights.fingerprint(run))

    def task(self, command: BenchmarkCommand, variant: Variant, threads: int) -> Task:
        """The task of a worker, whose weights are exported if they are not."""
        tokenizer = Tokenizer(self.run.tokenizer)
        room = self.shape.context_length - 1
        return Task(
            variant.engine,
            variant.mode,
            str(inference_weights.exported(self.run, self.folder, variant.engine, variant.mode)),
            threads,
            tokenizer.vocab_size,
            tokenizer.bos_id,
            min(command.first_tokens, room),
            min(command.prompt_tokens, room // 2),
            min(command.new_tokens, room // 2),
        )

    def cache_bytes(self, task: Task, variant: Variant) -> float:
        """What is read of the cache for a token, on average."""
        shape = self.shape
        position = 2 * shape.layers * shape.key_value_heads * shape.head_size * variant.element_bytes
        return position * (task.prompt + task.new / 2)


def available(shape: ModelConfig) -> list[Variant]:
    """Those that can be measured here; what cannot is said."""
    if family_of_ours(shape) is None:
        print(f"without other engines, which do not have this architecture ({misfits(shape)})")
        return [variant for variant in VARIANTS if variant.engine == "ours"]
    missing = [engine for engine, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    for engine in missing:
        print(f"without {engine}, which is not installed: pip install -c constraints.txt -e '.[peers]'")
    return [variant for variant in VARIANTS if variant.engine not in missing]


class Measured:
    """The measurements of one number of threads."""

    def __init__(self, command: BenchmarkCommand, weights: Weights, variants: Sequence[Variant], threads: int) -> None:
        self.command, self.weights, self.variants = command, weights, variants
        self.tasks = {variant.name: weights.task(command, variant, threads) for variant in variants}
        self.ours = [variant.name for variant in variants if variant.engine == "ours"]
        self.title = f"{threads} thread{'s' if threads > 1 else ''}, {command.rounds} rounds"
        self.found: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """All parts that are asked for, as they were printed."""
        parts = set(self.command.parts)
        if parts & {"speed", "concurrency", "perplexity"}:
            with ExitStack() as stack:
                needed = self.tasks if "speed" in parts else {name: self.tasks[name] for name in self.ours}
                workers = {name: started(stack, task) for name, task in needed.items()}
                if "speed" in parts:
                    self.speed(workers, started(stack, replace(self.tasks[self.ours[0]], engine="memory")))
                if "concurrency" in parts:
                    self.concurrency(workers)
                if "perplexity" in parts and self.command.run is not None:
                    self.perplexity(workers)
        if "speculation" in parts and self.command.run is not None:
            self.speculation()
        return self.found

    def keep(self, part: str, title: str, rows: Mapping[str, Mapping[str, Spread | None]]) -> None:
        show(f"{title}; {self.title}", rows)
        self.found[part] = rows

    def speed(self, workers: Mapping[str, Worker], memory: Worker) -> None:
        facts = {name: worker.ask("greedy") for name, worker in workers.items()}
        results = alternate({"memory": memory, **workers}, self.command.rounds)
        fastest = [measured["bytes/s"] for measured in results.pop("memory")]
        for variant in self.variants:
            read = facts[variant.name]["weight bytes"]
            read += self.weights.cache_bytes(self.tasks[variant.name], variant)
            for measured, most in zip(results[variant.name], fastest, strict=True):
                measured["MB read a token"] = read / 1e6
                measured["% of bandwidth"] = 100 * read * measured["tokens/s"] / most
        self.keep("speed", "one text", {name: spreads(rounds) for name, rounds in results.items()})
        others = [name for name in results if name not in self.ours]
        if others:
            times = {
                f"of {name}": {mine: ratios(results[mine], results[name], "tokens/s") for mine in self.ours}
                for name in others
            }
            self.keep("ratios", "our tokens/s, round by round", times)
        self.equality({variant.name: facts[variant.name]["ids"] for variant in self.variants if variant.mode in EXACT})
        print(f"memory is read at {min(fastest) / 1e9:.1f} to {max(fastest) / 1e9:.1f} GB/s")

    def equality(self, written: dict[str, list[int]]) -> None:
        (first, expected), *others = written.items()
        for name, ids in others:
            same = next((place for place, pair in enumerate(zip(ids, expected, strict=True)) if len({*pair}) > 1), None)
            said = f"the same {len(ids)} ids" if same is None else f"other ids from number {same} of {len(ids)} on"
            print(f"greedy, {name} writes {said} as {first}")
        self.found["equal"] = {name: ids == expected for name, ids in others}

    def concurrency(self, workers: Mapping[str, Worker]) -> None:
        asked: dict[str, Callable[[], Measurement]] = {
            name: lambda worker=workers[name]: worker.ask("crowd")  # type: ignore[misc]
            for name in self.ours
        }
        results = alternate(asked, self.command.rounds)
        self.keep("concurrency", "many texts", {name: spreads(rounds) for name, rounds in results.items()})

    def perplexity(self, workers: Mapping[str, Worker]) -> None:
        found = {name: workers[name].ask("perplexity")["perplexity"] for name in self.ours}
        exact = next(iter(found.values()))
        costs = [{"perplexity": value, "cost %": 100 * (value / exact - 1)} for value in found.values()]
        self.keep(
            "perplexity", "validation texts", {name: spreads([cost]) for name, cost in zip(found, costs, strict=True)}
        )

    def speculation(self) -> None:
        data = Dataset(read_config(self.weights.run)["data"]["directory"])
        task = replace(self.tasks[self.ours[0]], sources=tuple(data.sources))
        tasks = {"plain": task, "prompt lookup": replace(task, draft="lookup")}
        if self.command.draft is not None:
            tasks[f"draft {self.command.draft}"] = replace(task, draft=self.command.draft)
        with ExitStack() as stack:
            workers = {name: started(stack, each) for name, each in tasks.items()}
            results = alternate(workers, self.command.rounds)
        rows: dict[str, dict[str, Spread | None]] = {}
        for source in task.sources:
            for name, rounds in results.items():
                own = [measured_of(source, measured) for measured in rounds]
                plain = [measured_of(source, measured) for measured in results["plain"]]
                rows[f"{source}, {name}"] = {**spreads(own), "times plain": ratios(own, plain, "tokens/s")}
        self.keep("speculation", "greedy continuations of validation texts", rows)


def measured_of(source: str, measured: Measurement) -> Measurement:
    """The figures of one source."""
    start = f"{source}: "
    return {name.removeprefix(start): value for name, value in measured.items() if name.startswith(start)}


def started(stack: ExitStack, task: Task) -> Worker:
    worker = Worker("benchmarks.inference_worker", task.to_json())
    stack.callback(worker.close)
    return worker


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(BenchmarkCommand, args=argv, prog="python -m benchmarks.inference")
    with tempfile.TemporaryDirectory() as folder:
        weights = Weights.of(command, Path(command.exports or folder))
        variants = available(weights.shape)
        print(f"{command.run or command.config}: {inference_weights.parameters(weights.run) / 1e6:.1f}M parameters")
        found = {threads: Measured(command, weights, variants, threads).run() for threads in command.threads}
    if command.json:
        write_json(Path(command.json), found)


if __name__ == "__main__":
    run_command(main)
