"""Evaluate a run: python -m evaluation [RUN]. Writes summary.json, report.html and curves into the run directory."""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import write_json  # noqa: E402
from common.runs import Checkpoint, Run, choose_checkpoint, find_run  # noqa: E402
from data_pipeline.shards import Dataset  # noqa: E402
from evaluation.baselines import Trigram, Unigram, training_sample  # noqa: E402
from evaluation.perplexity import (  # noqa: E402
    SplitScores,
    document_windows,
    packed_windows,
    score_split,
    token_nll,
)
from evaluation.report import comparison, fresh_samples, write_report  # noqa: E402
from evaluation.summary import build_summary, fingerprint, is_up_to_date  # noqa: E402
from inference import LoadedRun, load_checkpoint, read_config  # noqa: E402
from model.device import DeviceName, Precision, PrecisionName, choose_device, choose_precision  # noqa: E402

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class EvaluationCommand:
    """Score a run on the validation split of its data, against n-gram baselines, and write a report."""

    run: tyro.conf.Positional[str | None] = None
    """Name below runs/, or path; by default the newest run."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    data: str | None = None
    """Directory of curated data to score on; by default what the run was trained on."""
    device: DeviceName = "auto"
    """Where to compute."""
    precision: PrecisionName = "fp32"
    """Number format of matrix products; fp32 gives the reference figures."""
    batch_tokens: int = 4096
    """Tokens scored at once; lower it when memory runs out. It does not change the result."""
    document_context: bool = False
    """Also score with a context that begins anew at every document; that takes as long again."""
    baseline_tokens: int = 120_000_000
    """At most this many training tokens are counted for the baselines."""
    force: bool = False
    """Evaluate again although nothing has changed."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "baseline_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small: it must be at least 1")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, evaluate, and print a table. A bad flag or value ends the process with status 2."""
    command = tyro.cli(EvaluationCommand, args=list(argv), prog="python -m evaluation")
    run = find_run(command.run)
    checkpoint = choose_checkpoint(run, command.checkpoint)
    dataset = open_dataset(run, checkpoint, command.data)
    device = choose_device(command.device)
    precision = choose_precision(device, command.precision)
    options: dict[str, Any] = {
        "checkpoint": checkpoint.step,
        "device": device.type,
        "precision": precision.name,
        "document_context": command.document_context,
        "baseline_tokens": command.baseline_tokens,
    }
    inputs = fingerprint(run, checkpoint, dataset, options)
    if is_up_to_date(run, inputs) and not command.force:
        print(f"up to date: {run.report} and {run.summary} (evaluate again with --force)")
        return
    console.print(f"run {run.path}, {checkpoint.path.name}, {precision.name} on {device}", markup=False)
    loaded = load_checkpoint(run, checkpoint, command.device)
    scores, counted = score(loaded, dataset, precision, command)
    summary = build_summary(loaded, dataset, scores, counted, options, inputs)
    with timed("samples and report"):
        write_report(run, summary, dataset, loaded.config, fresh_samples(loaded))
    write_json(run.summary, summary)  # last, so that a summary says that all of it was written
    show(run, summary)


def open_dataset(run: Run, checkpoint: Checkpoint, directory: str | None) -> Dataset:
    """The data in `directory`, by default those that the run was trained on.

    Raises:
        UserError: they are not there, or were made with another tokenizer.
    """
    config = read_config(run)
    if directory is None and config.get("examples", {}).get("files"):
        raise UserError(
            f"{run.path} was fine-tuned on examples, of which {run.path}/summary.md tells (python -m "
            f"evaluation.fine_tuning {run.path} makes it again); python -m evaluation.questions asks it what was held "
            "out. To score it on curated data made with its tokenizer, name them with --data DIR"
        )
    try:
        dataset = Dataset(directory or config["data"]["directory"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.config} does not say what data it was trained on; name some with --data DIR") from error
    expected = checkpoint.state["tokenizer_sha256"]
    if dataset.tokenizer_sha256 != expected:
        raise UserError(
            f"the data in {dataset.directory} were made with another tokenizer "
            f"(sha256 {dataset.tokenizer_sha256[:12]}) than run {run.name} was trained with ({expected[:12]}); "
            f"make matching data again with: {dataset.recipe_command()}, or train a new run on these"
        )
    if directory is None and checkpoint.state.get("data_fingerprint") != dataset.fingerprint:
        console.print(
            f"warning: the data in {dataset.directory} have changed since run {run.name} was trained; validation "
            "documents may have been among its training documents",
            markup=False,
        )
    return dataset


def score(
    loaded: LoadedRun, dataset: Dataset, precision: Precision, command: EvaluationCommand
) -> tuple[dict[str, SplitScores], int]:
    """Scores of the baselines and of the model by name, and how many training tokens the baselines counted."""
    stream = dataset.split("val")
    documents, tokens = stream.documents(), stream.read(0, len(stream))
    if len(tokens) == 0:
        raise UserError(
            f"the validation split in {dataset.directory} is empty; make it with: {dataset.recipe_command()}"
        )
    nll = {}
    with timed("n-gram baselines"):
        counted = training_sample(dataset.split("train"), command.baseline_tokens)
        nll["unigram"] = Unigram.train(counted, dataset.vocab_size).nll(tokens)
        nll["trigram"] = Trigram.train(counted, dataset.vocab_size, dataset.eos_id).nll(tokens)
    context = loaded.model.config.context_length
    windows = {"packed": packed_windows(len(tokens), context)}
    if command.document_context:
        windows["document"] = document_windows(documents, context)
    for name, chosen in windows.items():
        with timed(f"model, {name} context"), progress_bar() as progress:
            task = progress.add_task(f"{name} context", total=len(tokens))
            nll[name] = token_nll(
                loaded.model,
                tokens,
                chosen,
                dataset.eos_id,
                loaded.device,
                precision,
                command.batch_tokens,
                on_scored=lambda count, task=task, progress=progress: progress.advance(task, count),  # type: ignore[misc]
            )
    return {name: score_split(values, documents, dataset.sources) for name, values in nll.items()}, len(counted)


def progress_bar() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    return Progress(console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Say on standard error how long a part took."""
    began = time.perf_counter()
    yield
    console.print(f"{name}: {time.perf_counter() - began:.1f} s", markup=False)


def show(run: Run, summary: dict[str, Any]) -> None:
    """Print the comparison, where everything is, and what to type next."""
    table = Table(title=f"{run.name}, step {summary['checkpoint_step']}", title_justify="left")
    for name in ("source", "predictor"):
        table.add_column(name)
    for name in ("loss", "perplexity", "bits per byte", "vs unigram"):
        table.add_column(name, justify="right")
    for number, row in enumerate(comparison(summary)):
        change = "" if row["change"] is None else f"{row['change']:+.1f} %"
        figures = (f"{row['loss']:.3f}", f"{row['perplexity']:,.2f}", f"{row['bits_per_byte']:.3f}", change)
        table.add_row(row["source"] if number % 3 == 0 else "", row["name"], *figures, end_section=number % 3 == 2)
    out = Console(highlight=False)
    out.print(table)
    out.print(f"report   {run.report}\nsummary  {run.summary}", markup=False, soft_wrap=True)
    out.print(f'next     python sample.py --run {run.path} --prompt "The river"', markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
