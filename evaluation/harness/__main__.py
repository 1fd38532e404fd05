"""Tasks of lm-evaluation-harness and our own on a run: python -m evaluation.harness RUN --tasks mini_pairs wikitext."""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import math  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import write_json  # noqa: E402
from common.runs import Run, find_run  # noqa: E402
from data_pipeline.shards import Dataset  # noqa: E402
from evaluation.harness.task_data import Sources, TaskFiles, write_tasks  # noqa: E402
from evaluation.proportions import Proportion  # noqa: E402
from evaluation.report import write_report  # noqa: E402
from inference import LoadedRun, load_run  # noqa: E402
from model.device import DeviceName, Precision, PrecisionName, choose_precision  # noqa: E402

DIRECTORY, RESULT = "harness", "harness.json"  # in a run
OURS = "mini_"  # how the names of our own tasks begin
VERSES = Path("data/translation_es_en/test.jsonl")

console = Console(stderr=True, highlight=False, markup=False)


@dataclass(frozen=True)
class HarnessCommand:
    """Score a run on tasks of lm-evaluation-harness: our own, which need no network, or any of the harness's by name.

    Our own are mini_perplexity, mini_cloze, mini_pairs and mini_translation; they are written into the run's directory.
    """

    run: tyro.conf.Positional[str | None] = None
    """Name below runs/, or path; by default the newest run."""
    tasks: tuple[str, ...] = ("mini_perplexity", "mini_cloze", "mini_pairs")
    """Names of tasks or of groups of them; those that are not ours take their data from the Hugging Face hub."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    data: str | None = None
    """Curated data whose validation split is held out; by default what the run was trained on."""
    verses: Path = VERSES
    """Held-out verses for mini_translation, written by python -m data_pipeline configs/data/translation_es_en.py."""
    examples: int = 400
    """Most documents, passages or verses of each of our tasks, and pairs of each kind."""
    limit: int | None = None
    """Ask only the first so many questions of every task; for a quick look."""
    shots: int | None = None
    """Solved examples before each question; by default as many as the task says."""
    device: DeviceName = "auto"
    """Where to compute."""
    precision: PrecisionName = "fp32"
    """Number format of matrix products; fp32 gives the reference figures."""
    batch_tokens: int = 4096
    """Tokens scored at once; lower it when memory runs out."""

    def __post_init__(self) -> None:
        for name in ("examples", "limit", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is too small: it must be at least 1")
        if not self.tasks:
            raise UserError("--tasks names no task; try --tasks mini_pairs")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, score, write and print. A bad flag or value ends the process with status 2."""
    command = tyro.cli(HarnessCommand, args=list(argv), prog="python -m evaluation.harness")
    run = find_run(command.run)
    _require_harness()
    loaded = load_run(run, command.checkpoint, command.device)
    directory = run.path / DIRECTORY
    sources = Sources(loaded.tokenizer, _dataset(loaded, command.data), command.verses, command.examples)
    files = write_tasks(directory, sources)
    names = chosen(command.tasks, files)
    precision = choose_precision(loaded.device, command.precision)
    found = evaluate(loaded, names, directory, precision, command)
    result = {
        "run": run.name,
        "checkpoint_step": loaded.checkpoint.step,
        "precision": precision.name,
        "context_length": loaded.model.room,
        "tokenizer_sha256": loaded.tokenizer.sha256,
        "limit": command.limit,
        "shots": command.shots,
        "tasks": {name: task_result(name, found) for name in found["results"]},
    }
    write_json(run.path / RESULT, result)
    write_report(run)
    show(run, result)


def _require_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError("this needs lm-evaluation-harness: pip install -c constraints.txt -e '.[harness]'") from error


def _dataset(loaded: LoadedRun, directory: str | None) -> Dataset | None:
    """The data with the held-out documents; None where a fine-tune was trained on none, and none are named."""
    if directory is not None:
        return Dataset(directory)
    trained_on = loaded.config.get("data", {}).get("directory")
    if loaded.config.get("examples", {}).get("files") or trained_on is None:
        return None
    return Dataset(trained_on)


def chosen(wanted: Sequence[str], files: TaskFiles) -> list[str]:
    """The names of tasks that are asked for; those of a group of ours in its place.

    Raises:
        UserError: one of ours is asked for, for which there are no data.
    """
    names: list[str] = []
    for name in wanted:
        if name.startswith(OURS) and name not in files.known:
            raise UserError(f"there is no task {name!r}; ours are {', '.join(files.known)}")
        if name in files.missing:
            raise UserError(f"there is no task {name} for this run: {files.missing[name]}")
        own = files.tags.get(name, [])
        lost = [f"{task}: {why}" for task, why in files.missing.items() if task.startswith(f"{name}_")]
        if lost and not own:
            raise UserError(f"there is no task {name} for this run ({lost[0]})")
        for line in lost:
            console.print(f"left out: {line}")
        names += own or [name]
    return list(dict.fromkeys(names))


def evaluate(
    loaded: LoadedRun, names: Sequence[str], directory: Path, precision: Precision, command: HarnessCommand
) -> dict[str, Any]:
    """What the harness finds out about the model on the tasks, with every answer.

    Raises:
        UserError: a task is unknown, or its data cannot be had.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    from evaluation.harness.adapter import HarnessModel

    own = all((directory / f"{name}.yaml").is_file() for name in names)
    manager = TaskManager(include_path=str(directory), include_defaults=not own)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(f"the harness has no task {unknown[0]!r}; lm_eval ls tasks lists those that it has")
    try:
        results = lm_eval.simple_evaluate(
            model=HarnessModel(loaded, precision, command.batch_tokens),
            tasks=list(names),
            task_manager=manager,
            num_fewshot=command.shots,
            limit=command.limit,
            bootstrap_iters=1000,
        )
    except (OSError, ConnectionError, ValueError) as error:
        if own:
            raise
        raise UserError(
            f"the data of {', '.join(names)} could not be had ({type(error).__name__}: {error}); those tasks need the "
            "Hugging Face hub, our own (mini_perplexity, mini_cloze, mini_pairs, mini_translation) do not"
        ) from error
    assert results is not None  # which only other processes than the first get
    return dict(results)


def task_result(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a task, each with its standard error where there is one; of accuracies also the interval."""
    samples = found.get("samples", {}).get(name, [])
    metrics: dict[str, Any] = {}
    for key, value in found["results"][name].items():
        metric, _, kept = key.partition(",")
        if not isinstance(value, (int, float)) or metric.endswith("_stderr") or not kept:
            continue
        error = found["results"][name].get(f"{metric}_stderr,{kept}")
        known = isinstance(error, (int, float)) and math.isfinite(error)
        metrics[metric] = {"value": value, "stderr": error if known else None}
    result = {"version": found["versions"].get(name), "asked": len(samples), "metrics": metrics}
    right = [bool(sample["acc"]) for sample in samples if sample.get("acc") in (0, 1)]
    if right and len(right) == len(samples):
        metrics["acc"]["interval"] = _interval(right)
        kinds = [sample["doc"].get("kind") for sample in samples]
        if len(set(kinds)) > 1:
            result["per_kind"] = {
                kind: asdict(Proportion.count(sum(own), len(own)))
                for kind in dict.fromkeys(kinds)
                for own in [[value for value, other in zip(right, kinds, strict=True) if other == kind]]
            }
    return result


def _interval(right: Sequence[bool]) -> list[float]:
    """Wilson's, of 95 %."""
    share = Proportion.count(sum(right), len(right))
    return [share.low, share.high]


def show(run: Run, result: dict[str, Any]) -> None:
    """Print the table, and where everything is."""
    table = Table(title=f"{run.name}, step {result['checkpoint_step']}", title_justify="left")
    for name in ("task", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("asked", "value", "± stderr", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, task in result["tasks"].items():
        for number, (metric, found) in enumerate(task["metrics"].items()):
            error = "" if found["stderr"] is None else f"{found['stderr']:.3g}"
            interval = "{:.3f} to {:.3f}".format(*found["interval"]) if "interval" in found else ""
            asked = f"{task['asked']:,}" if number == 0 else ""
            table.add_row(name if number == 0 else "", metric, asked, f"{found['value']:,.4g}", error, interval)
        for kind, share in task.get("per_kind", {}).items():
            interval = f"{share['low']:.3f} to {share['high']:.3f}"
            table.add_row("", f"  {kind}", f"{share['of']:,}", f"{share['share']:,.4g}", "", interval)
        table.add_section()
    out = Console(highlight=False, markup=False)
    out.width = max(out.width, 100)
    out.print(table)
    print(f"results  {run.path / RESULT}\ntasks    {run.path / DIRECTORY} (lm_eval --include_path takes it)")


if __name__ == "__main__":
    run_command(main)
