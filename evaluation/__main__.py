"""Evaluate a run: python -m evaluation [RUN]. Writes summary.json, report.html and curves into the run directory."""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import write_json  # noqa: E402
from common.runs import Checkpoint, Run, choose_checkpoint, find_run  # noqa: E402
from data_pipeline.shards import Dataset  # noqa: E402
from evaluation.baselines import NGRAM_NAMES, counted_nll, training_sample  # noqa: E402
from evaluation.document_scores import FILE as DOCUMENT_SCORES  # noqa: E402
from evaluation.document_scores import DocumentScores, intervals  # noqa: E402
from evaluation.other_models import score_other, untrained  # noqa: E402
from evaluation.perplexity import (  # noqa: E402
    SplitScores,
    document_windows,
    packed_windows,
    score_split,
    token_nll,
)
from evaluation.plots import write_plots  # noqa: E402
from evaluation.report import write_report  # noqa: E402
from evaluation.report_facts import comparison  # noqa: E402
from evaluation.summary import build_summary, fingerprint, is_up_to_date  # noqa: E402
from evaluation.surroundings import surroundings  # noqa: E402
from evaluation.wandb_results import EvaluationTracking, log_results  # noqa: E402
from inference import LoadedRun, load_checkpoint, read_config  # noqa: E402
from model import Decoder  # noqa: E402
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
    """At most this many training tokens are counted for the n-gram baselines."""
    ngram_order: int = 5
    """Length of the longest n-grams that are counted, 2 to 5; memory does not depend on it, time does."""
    baseline: tuple[str, ...] = ()
    """Other models to score on the same text: runs, Hugging Face directories, or hf://ORG/NAME."""
    tracking: EvaluationTracking = field(default_factory=EvaluationTracking)
    force: bool = False
    """Evaluate again although nothing has changed."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "baseline_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small: it must be at least 1")
        if self.ngram_order not in NGRAM_NAMES:
            raise UserError(f"--ngram-order {self.ngram_order} is not one of {', '.join(map(str, NGRAM_NAMES))}")


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
        "ngram_order": command.ngram_order,
        "baseline": list(command.baseline),
    }
    inputs = fingerprint(run, checkpoint, dataset, options)
    if is_up_to_date(run, inputs) and not command.force:
        print(f"up to date: {run.report} and {run.summary} (evaluate again with --force)")
        return
    console.print(f"run {run.path}, {checkpoint.path.name}, {precision.name} on {device}", markup=False)
    loaded = load_checkpoint(run, checkpoint, command.device)
    scores, documents, counted = score(loaded, dataset, precision, command)
    summary = build_summary(loaded, dataset, scores, counted, options, inputs)
    with timed("intervals, samples and report"):
        summary |= {"intervals": intervals(documents), **surroundings(loaded, dataset)}
        documents.save(run.path / DOCUMENT_SCORES)
        write_plots(run, summary)
        write_report(run, summary)
    write_json(run.summary, summary)  # last, so that a summary says that all of it was written
    log_results(run, loaded.config, summary, command.tracking)
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
) -> tuple[dict[str, SplitScores], DocumentScores, int]:
    """Scores of the model by context and of the baselines by name; the same of every document, with the packed context;
    and how many training tokens the n-grams were counted on."""
    stream = dataset.split("val")
    documents, tokens = stream.documents(), stream.read(0, len(stream))
    if len(tokens) == 0:
        raise UserError(
            f"the validation split in {dataset.directory} is empty; make it with: {dataset.recipe_command()}"
        )

    def model_nll(name: str, model: Decoder, tokens: np.ndarray, windows: np.ndarray, eos_id: int) -> np.ndarray:
        with timed(name), progress_bar() as progress:
            task = progress.add_task(name, total=len(tokens))
            return token_nll(
                model, tokens, windows, eos_id, loaded.device, precision, command.batch_tokens,
                on_scored=lambda count: progress.advance(task, count),
            )  # fmt: skip

    context = loaded.model.config.context_length
    windows = packed_windows(len(tokens), context)
    nll = {"packed": model_nll("model, packed context", loaded.model, tokens, windows, dataset.eos_id)}
    with timed("n-gram baselines"):
        counted = training_sample(dataset.split("train"), command.baseline_tokens)
        ngrams = counted_nll(counted, tokens, dataset.vocab_size, dataset.eos_id, command.ngram_order)
    nll |= ngrams
    if loaded.config.get("start_from") is None:
        fresh = untrained(loaded.model.config, loaded.config.get("seed", 0)).to(loaded.device)
        nll["untrained"] = model_nll("untrained model", fresh, tokens, windows, dataset.eos_id)
    sums = DocumentScores.of(nll, documents, dataset.sources, dataset.fingerprint).naming("packed", "model")
    for place in command.baseline:
        scorer = partial(model_nll, f"baseline {place}")
        sums = sums.adding(place, *score_other(place, dataset, loaded.device, scorer))
    scores = {name: score_split(values, documents, dataset.sources) for name, values in nll.items()}
    scores |= {place: sums.split_scores(place) for place in command.baseline}
    if command.document_context:
        windows = document_windows(documents, context)
        values = model_nll("model, document context", loaded.model, tokens, windows, dataset.eos_id)
        scores["document"] = score_split(values, documents, dataset.sources)
    return scores, sums, len(counted)


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
    for row in comparison(summary):
        if row["name"] == "model":
            table.add_section()
        change = "" if row["change"] is None else f"{row['change']:+.1f} %"
        figures = (f"{row['loss']:.3f}", f"{row['perplexity']:,.2f}", f"{row['bits_per_byte']:.3f}", change)
        table.add_row(row["source"] if row["name"] == "model" else "", row["name"], *figures)
    out = Console(highlight=False)
    out.print(table)
    out.print(f"report   {run.report}\nsummary  {run.summary}", markup=False, soft_wrap=True)
    out.print(f'next     python sample.py --run {run.path} --prompt "The river"', markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
