"""Tables and pictures of documents, drawn from the files of runs: python -m evaluation.results DOCUMENT ...

A document says itself what stands where. What lies between two comments such as these is written anew:

    <!-- results: losses runs/mini_cpu -->
    <!-- end -->

`KINDS` lists what can be asked for. Where a run is not there, what stood in its place stays, and is named.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import atomic_write, read_json
from common.runs import find_run
from evaluation.charts import short
from evaluation.document_scores import ALL
from evaluation.fine_tuning_text import markdown_table
from evaluation.report import duration
from evaluation.report_facts import RunFacts, gather
from evaluation.run_comparison import compare
from evaluation.scaling import FIGURE, RESULT

IMAGES = Path("docs/images")
_OPENING, _END = "<!-- results: ", "<!-- end -->"
# No part reaches over the beginning of the next, so that one without an end swallows nothing.
_PART = re.compile(rf"({_OPENING}(\w+) ([^\n]+?) -->\n)(?:(?!{_OPENING}).)*?{_END}", re.DOTALL)


@dataclass(frozen=True)
class ResultsCommand:
    """Write the tables and pictures of documents anew, from the files of the runs that they name."""

    documents: tyro.conf.Positional[tuple[Path, ...]] = (Path("docs/results.md"), Path("README.md"))
    """Markdown files with comments such as <!-- results: losses runs/mini_cpu --> and <!-- end -->."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write. A bad document or flag ends the process with status 2."""
    command = tyro.cli(ResultsCommand, args=list(argv), prog="python -m evaluation.results")
    for document in command.documents:
        try:
            text = document.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{document} cannot be read: {error}") from error
        drawn, kept = fill(text, document)
        if drawn != text:
            with atomic_write(document) as file:
                file.write(drawn)
        print(f"{document}: {'written anew' if drawn != text else 'as it was'}")
        for reason in kept:
            print(f"  kept what stood there: {reason}", file=sys.stderr)


def fill(text: str, document: Path) -> tuple[str, list[str]]:
    """`text` with every part drawn again, and why parts were left as they are. Pictures are copied beside it.

    Raises:
        UserError: a comment asks for something that there is not, or has no end.
    """
    kept: list[str] = []
    whole = len(_PART.findall(text))
    if not whole == text.count(_OPENING) == text.count(_END):
        raise UserError(
            f"{document}: each {_OPENING}KIND PLACE --> needs a line {_END} behind it, and no other has one"
        )

    def replaced(found: re.Match[str]) -> str:
        opening, kind, arguments = found.groups()
        if kind not in KINDS:
            raise UserError(f"{document} asks for {kind!r}; known are {', '.join(KINDS)}")
        try:
            drawn = KINDS[kind](arguments.split(), document)
        except UserError as error:
            kept.append(f"{kind} {arguments}: {error}")
            return found[0]
        drawn = drawn.replace("<!--", "<! --")  # what a run wrote may look like our comments
        return f"{opening}\n{drawn.strip()}\n\n{_END}"

    return _PART.sub(replaced, text), kept


def losses(places: Sequence[str], document: Path) -> str:
    """The model and its baselines on the whole validation split."""
    run = _evaluated(places)
    rows = [("", "loss", "perplexity", "bits per byte (95 %)", "against unigram")]
    for row in run.rows:
        if row["source"] == ALL:
            name = (
                f"{run.name}, {short(run.summary['parameters'])} parameters" if row["name"] == "model" else row["name"]
            )
            rows.append((name, f"{row['loss']:.3f}", f"{row['perplexity']:,.1f}", _bits(row), _per_cent(row["change"])))
    model = run.summary
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"{model['val_tokens']:,} held-out tokens, {model['val_bytes']:,} bytes; {model['tokenizer']['kind']} with "
            f"{model['vocab_size']:,} tokens, {model['tokenizer']['bytes_per_token']:.2f} bytes each; trained on "
            f"{short(model['tokens_trained'])} tokens in {duration(model['train_seconds'])}, the counted models on "
            f"{short(model['baseline_training_tokens'])}. `python -m evaluation {places[0]}`",
        ]
    )


def sources(places: Sequence[str], document: Path) -> str:
    """The model and the best counted model on each source."""
    run = _evaluated(places)
    best = run.best_ngram or "unigram"
    found = {(row["source"], row["name"]): row for row in run.rows}
    rows = [("source", "tokens", "perplexity", "bits per byte", f"{best}: perplexity", "bits per byte", "difference")]
    for source in run.summary["per_source"]:
        model, counted = found[source, "model"], found[source, best]
        scores = (cell for row in (model, counted) for cell in (f"{row['perplexity']:,.1f}", _bits(row)))
        rows.append((source, f"{model['tokens']:,}", *scores, counted["verdict"]))
    return "\n".join(markdown_table(rows))


def writing(places: Sequence[str], document: Path) -> str:
    """What the model writes behind held-out beginnings, measured beside what people wrote there."""
    run = _evaluated(places)
    if not run.generation_rows:
        raise UserError(f"{places[0]} was evaluated without generating; evaluate it without --generation.samples 0")
    rows = [("", "model", "human", "")]
    rows += [
        (row["name"], *(_number(row[side]) for side in ("model", "human")), row["meaning"])
        for row in run.generation_rows
    ]
    return "\n".join(markdown_table(rows))


def texts(places: Sequence[str], document: Path) -> str:
    """What the run wrote last behind each prompt of its config, whatever that is."""
    run = gather(find_run(_one(places)))
    if not run.samples:
        raise UserError(f"{places[0]} wrote no samples")
    parts = []
    for prompt, samples in run.samples_by_prompt.items():
        last = samples[-1]
        parts.append(f"Step {last['step']:,}, behind `{' '.join(prompt.split())}`:\n\n{_fenced(prompt + last['text'])}")
    return "\n\n".join(parts)


def curve(places: Sequence[str], document: Path) -> str:
    """The picture of the run's losses."""
    run = find_run(_one(places))
    return _picture(run.path / "loss.png", f"{run.name}_loss.png", f"Loss of {run.name}", document)


def runs(places: Sequence[str], document: Path) -> str:
    """Several runs beside each other, the best first, and whether their differences are more than chance."""
    compared = compare([find_run(place) for place in places])
    missing = [run.name for run in compared.runs if not run.summary]
    if missing:
        raise UserError(f"not evaluated: {', '.join(missing)}; do that with: python -m evaluation RUN")
    if compared.warnings:
        raise UserError(compared.warnings[0])
    rows = [("run", "parameters", "tokens", "training", "tokens/s", "MB", "perplexity", "bits per byte (95 %)")]
    for run in sorted(compared.runs, key=lambda run: float(run.summary["val_loss"])):
        found = run.summary
        size, tokens = short(found["parameters"]), short(found["tokens_trained"])
        speed, memory = f"{found['tokens_per_second']:,.0f}", _number(run.last.get("memory_mb"))
        perplexity = f"{found['val_perplexity']:,.1f}"
        bits = _bits({"bits_per_byte": found["val_bits_per_byte"], "interval": run.interval})
        rows.append((run.name, size, tokens, duration(found["train_seconds"]), speed, memory, perplexity, bits))
    pairs = [
        f"{pair.better} is ahead of {pair.worse} by {pair.difference:.3f} bits per byte "
        f"({pair.interval[0]:.3f} to {pair.interval[1]:.3f}), on {pair.share:.0%} of the documents."
        for pair in compared.pairs
    ]
    return "\n".join([*markdown_table(rows), "", " ".join(pairs)])


def translation(places: Sequence[str], document: Path) -> str:
    """Translations of the run beside those of other systems."""
    run = gather(find_run(_one(places)))
    if not run.translation:
        raise UserError(f"{places[0]} has not translated; do that with: python -m evaluation.translation {places[0]}")
    rows = [("", "BLEU (95 %)", "against all references", "chrF++", "length", "p")]
    for name, found in run.translation["systems"].items():
        bleu = f"{found['bleu']:.1f} ({found['low']:.1f} to {found['high']:.1f})"
        p = "" if found["p"] is None else "below 0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"
        both = f"{found['all_references']:.1f}" if found["all_references"] < 99.9 else ""  # a reference, against itself
        rows.append((name, bleu, both, f"{found['chrf']:.1f}", f"{found['length_ratio']:.2f}", p))
    verses, signature = run.translation["verses"], run.translation["signatures"]["BLEU"]
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"{verses:,} verses; sacrebleu `{signature}`; p: paired bootstrap against the dictionary.",
        ]
    )


def scaling(places: Sequence[str], document: Path) -> str:
    """A scaling law: its picture, its runs, and what it predicts."""
    directory = Path(_one(places))
    if not (directory / RESULT).is_file():
        raise UserError(f"{directory / RESULT} is not there; make it with: python -m evaluation.scaling RUN RUN ...")
    found = read_json(directory / RESULT)
    rows = [("run", "parameters", "tokens", "loss", "as predicted from all others")]
    for run in found["runs"]:
        error = f"{100 * run['left_out_error']:+.2f} %"
        rows.append((run["name"], short(run["parameters"]), short(run["tokens"]), f"{run['loss']:.3f}", error))
    asked = [("predicted", "parameters", "tokens", "loss (95 %)", "came to")]
    for one in found["predictions"]:
        low, high = one["interval"]
        came = "" if one["loss"] is None else f"{one['loss']:.3f}, {'within' if one['within'] else 'outside'}"
        loss = f"{one['predicted']:.3f} ({low:.3f} to {high:.3f})"
        asked.append((one["name"], short(one["parameters"]), short(one["tokens"]), loss, came))
    constants = ", ".join(f"{name} {value:.4g}" for name, value in found["constants"].items())
    picture = _picture(directory / FIGURE, f"{directory.name}.png", "Loss over compute, and the law", document)
    law = f"Law of {found['law'].replace('-', ' and ')}: {constants}."
    return "\n".join([picture, "", law, "", *markdown_table(rows), "", *(markdown_table(asked) if asked[1:] else [])])


KINDS: dict[str, Callable[[Sequence[str], Path], str]] = {
    kind.__name__: kind for kind in (losses, sources, writing, texts, curve, runs, translation, scaling)
}


def _one(places: Sequence[str]) -> str:
    if len(places) != 1:
        raise UserError(f"it takes one run, not {len(places)}")
    return places[0]


def _evaluated(places: Sequence[str]) -> RunFacts:
    run = gather(find_run(_one(places)))
    if not run.summary:
        raise UserError(f"{places[0]} was not evaluated; do that with: python -m evaluation {places[0]}")
    return run


def _picture(source: Path, name: str, label: str, document: Path) -> str:
    """Copy a picture to where documents have theirs, and refer to it."""
    if not source.is_file():
        raise UserError(f"{source} is not there; evaluate the run to have it")
    copy = IMAGES / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy, "wb") as file:
        file.write(source.read_bytes())
    return f"![{label}]({Path(os.path.relpath(copy, document.parent)).as_posix()})"


def _fenced(text: str) -> str:
    """As a block of code that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip()}\n{fence}"


def _bits(row: dict[str, object]) -> str:
    bounds = row.get("interval")
    text = f"{row['bits_per_byte']:.3f}"
    return f"{text} ({bounds[0]:.3f} to {bounds[1]:.3f})" if isinstance(bounds, list) else text


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    run_command(main)
