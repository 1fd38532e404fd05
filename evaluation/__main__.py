"""Evaluate a run: python -m evaluation [RUN]. Writes summary.json, report.html and curves into the run directory.

`torchrun --nproc-per-node N -m evaluation RUN` shares the scoring of the validation split among N processes, with the
same figures; everything else is done by the first.
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import json  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import atomic_write, write_json  # noqa: E402
from common.runs import Checkpoint, Run, choose_checkpoint, find_run  # noqa: E402
from data_pipeline.shards import Dataset  # noqa: E402
from evaluation.baselines import NGRAM_NAMES, counted_nll, training_sample  # noqa: E402
from evaluation.document_scores import ALL, DocumentScores, intervals  # noqa: E402
from evaluation.document_scores import FILE as DOCUMENT_SCORES  # noqa: E402
from evaluation.generations import (  # noqa: E402
    GenerationOptions,
    evaluate_generations,
    installed_packages,
    texts_as_rows,
)
from evaluation.other_models import score_other, untrained  # noqa: E402
from evaluation.perplexity import (  # noqa: E402
    CONTEXT_POLICIES,
    SplitScores,
    count_words,
    document_windows,
    packed_windows,
    score_split,
)
from evaluation.plots import write_plots  # noqa: E402
from evaluation.report import write_report  # noqa: E402
from evaluation.report_facts import comparison  # noqa: E402
from evaluation.report_metrics import generation_rows  # noqa: E402
from evaluation.scoring import ModelScorer, console, timed  # noqa: E402
from evaluation.summary import build_summary, fingerprint, is_up_to_date  # noqa: E402
from evaluation.surroundings import surroundings  # noqa: E402
from evaluation.wandb_results import EvaluationTracking, log_results  # noqa: E402
from inference import LoadedRun, load_checkpoint, read_config  # noqa: E402
from model.device import DeviceName, Precision, PrecisionName, choose_device, choose_precision  # noqa: E402
from training.distribution import process_group, world_from_environment  # noqa: E402

OWN_NAMES = {"model", "untrained", "unigram", *NGRAM_NAMES.values(), *CONTEXT_POLICIES}
"""What scores are kept under; a baseline is kept under its place."""


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
    stride: int | None = None
    """Also score in windows that move on by so many tokens, which takes context / stride times as long."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """What the model writes, measured beside text by people."""
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
        for place in self.baseline:
            if place in OWN_NAMES:
                raise UserError(f"--baseline {place} is the name of another row of the table; write runs/{place}")


def main(argv: Sequence[str]) -> None:
    """Parse the command line, evaluate, and print a table. A bad flag or value ends the process with status 2."""
    command = tyro.cli(EvaluationCommand, args=list(argv), prog="python -m evaluation")
    world = world_from_environment()
    console.quiet = not world.is_main
    run = find_run(command.run)
    checkpoint = choose_checkpoint(run, command.checkpoint)
    dataset = open_dataset(run, checkpoint, command.data)
    device = choose_device(command.device, world.local_rank)
    precision = choose_precision(device, command.precision)
    options: dict[str, Any] = {
        "checkpoint": checkpoint.step,
        "device": device.type,
        "precision": precision.name,
        "document_context": command.document_context,
        "stride": command.stride,
        "baseline_tokens": command.baseline_tokens,
        "ngram_order": command.ngram_order,
        "baseline": list(command.baseline),
        "generation": asdict(command.generation),
        "packages": installed_packages(),
    }
    inputs = fingerprint(run, checkpoint, dataset, options)
    if is_up_to_date(run, inputs) and not command.force:
        if world.is_main:
            print(f"up to date: {run.report} and {run.summary} (evaluate again with --force)")
        return
    console.print(f"run {run.path}, {checkpoint.path.name}, {precision.name} on {device}", markup=False)
    loaded = load_checkpoint(run, checkpoint, command.device, world.local_rank)
    with process_group(world, device):
        nll, others = score(loaded, dataset, precision, command)
    if not world.is_main:
        return
    scores, documents, counted = sum_up(nll, others, loaded, dataset, command)
    summary = build_summary(loaded, dataset, scores, counted, options, inputs)
    with timed("generations"):
        summary["generation"] = write_generations(run, loaded, dataset, command.generation)
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
    if ALL in dataset.sources:
        raise UserError(
            f"a source of the data in {dataset.directory} is named {ALL!r}, which is the row of the whole split; give "
            "it another name in their config, and make them again"
        )
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
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What models make of the validation split; every process of a group takes part, and gets all of it.

    Returns:
        Nats of every token, (tokens,): of the model by the name of the context policy, and of the untrained model. And
        of every other model nats and tokens of every document, (documents,) each.
    """
    stream = dataset.split("val")
    documents, tokens = stream.documents(), stream.read(0, len(stream))
    if len(tokens) == 0:
        raise UserError(
            f"the validation split in {dataset.directory} is empty; make it with: {dataset.recipe_command()}"
        )
    context = loaded.model.config.context_length
    windows = {"packed": (packed_windows(len(tokens), context), 0)}
    if command.document_context:
        windows["document"] = document_windows(documents, context), 0
    if command.stride is not None:
        if not 1 <= command.stride <= context:
            raise UserError(f"--stride {command.stride} is out of range: it must be from 1 to {context}, the context")
        windows["sliding"] = packed_windows(len(tokens), command.stride), context - command.stride
    scorer = ModelScorer(loaded.device, precision, command.batch_tokens)
    nll = {
        name: scorer.nll(f"model, {name} context", loaded.model, tokens, chosen, dataset.eos_id, history)
        for name, (chosen, history) in windows.items()
    }
    if loaded.config.get("start_from") is None:
        fresh = untrained(loaded.model.config, loaded.config.get("seed", 0)).to(loaded.device)
        nll["untrained"] = scorer.nll("untrained model", fresh, tokens, windows["packed"][0], dataset.eos_id)
    others = {
        place: score_other(place, dataset, loaded.device, partial(scorer.nll, f"baseline {place}"))
        for place in command.baseline
    }
    return nll, others


def sum_up(
    nll: dict[str, np.ndarray],
    others: dict[str, tuple[np.ndarray, np.ndarray]],
    loaded: LoadedRun,
    dataset: Dataset,
    command: EvaluationCommand,
) -> tuple[dict[str, SplitScores], DocumentScores, int]:
    """Scores of the model by context and of the baselines by name, those of every document, and how many tokens
    the n-grams were counted on."""
    stream = dataset.split("val")
    documents, tokens = stream.documents(), stream.read(0, len(stream))
    with timed("n-gram baselines"):
        counted = training_sample(dataset.split("train"), command.baseline_tokens)
        ngrams = counted_nll(counted, tokens, dataset.vocab_size, dataset.eos_id, command.ngram_order)
    words = count_words(tokens, documents, loaded.tokenizer.decode)
    contexts = {name: values for name, values in nll.items() if name in CONTEXT_POLICIES}
    baselines = {**ngrams, **{name: values for name, values in nll.items() if name not in contexts}}
    paired = {"model": nll["packed"], **baselines}
    sums = DocumentScores.of(paired, documents, dataset.sources, dataset.fingerprint)
    every = {**contexts, **baselines}
    scores = {name: score_split(values, documents, dataset.sources, words) for name, values in every.items()}
    for place, (values, lengths) in others.items():
        sums = sums.adding(place, values, lengths)
        scores[place] = sums.split_scores(place, words)
    return scores, sums, len(counted)


def write_generations(
    run: Run, loaded: LoadedRun, dataset: Dataset, options: GenerationOptions
) -> dict[str, Any] | None:
    """Measure what the model writes, and leave the texts in generations.jsonl; None where there was nothing to do."""
    found = evaluate_generations(loaded, dataset, options)
    if found is None:
        if options.samples:
            console.print(
                f"no validation document has {options.prompt_tokens + options.tokens} tokens, so nothing was generated "
                "to be measured; lower --generation.tokens",
                markup=False,
            )
        return None
    measures, texts = found
    with atomic_write(run.generations) as file:
        for row in texts_as_rows(texts):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return measures


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
    if summary["generation"]:
        out.print(generation_table(summary["generation"]))
    out.print(f"report   {run.report}\nsummary  {run.summary}", markup=False, soft_wrap=True)
    out.print(f'next     python sample.py --run {run.path} --prompt "The river"', markup=False, soft_wrap=True)


def generation_table(generation: dict[str, Any]) -> Table:
    """What the model writes beside what people wrote."""
    protocol = generation["protocol"]
    title = f"{protocol['samples']} continuations of at most {protocol['tokens']} tokens"
    table = Table("measure", title=title, title_justify="left")
    for side in ("model", "human"):
        table.add_column(side, justify="right")
    for row in generation_rows(generation):
        table.add_row(row["name"], *("" if row[side] is None else f"{row[side]:.3f}" for side in ("model", "human")))
    return table


if __name__ == "__main__":
    run_command(main)
