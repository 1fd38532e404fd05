"""The summary of a fine-tuning run in words, as Markdown that reads well on a terminal too."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from evaluation.fine_tuning_summary import FineTuningSummary, Generation

COLUMN = 56  # characters of one of two texts that stand side by side
SHOWN = 5  # problems of the data


def describe(summary: FineTuningSummary) -> str:
    """The summary as Markdown, as in summary.md."""
    lines = [f"# Fine-tuning: {clean(summary.run)}", "", *_table(("measure", "value"), dict(_figures_of(summary)))]
    lines += ["", "## Warnings", ""]
    lines += [f"- {clean(warning)}" for warning in summary.warnings] or ["None."]
    if summary.data:
        lines += ["", "## Data", "", *_table(("data", "value"), _data_figures(summary.data)), *_problems(summary.data)]
    if summary.merging:
        lines += ["", "## Merging", "", *merging_table(summary.merging)]
    if summary.generation_steps:
        lines += ["", "## Generations of the test prompts"]
        for generation in summary.generations:
            lines += ["", *_side_by_side(generation, *summary.generation_steps, summary.best_validation_step)]
    if summary.loading:
        lines += ["", "## How to load it", "", *(f"    {line}" for line in summary.loading)]
    return "\n".join(lines) + "\n"


def _figures_of(summary: FineTuningSummary) -> Iterator[tuple[str, str]]:
    """Name and value of every figure that is known."""
    for name, loss, step in (
        ("first training loss", summary.first_loss, None),
        ("last training loss", summary.last_loss, None),
        ("lowest training loss", summary.lowest_loss, summary.lowest_loss_step),
        ("highest training loss", summary.highest_loss, summary.highest_loss_step),
    ):
        if loss is not None:
            yield name, f"{loss:.4f}" + ("" if step is None else f" at step {step:,}")
    if summary.improvement_percent is not None:
        yield "improvement", f"{summary.improvement_percent:.2f} %, from the first to the last logged step"
    if summary.smoothed_improvement_percent is not None:
        means = f"of the means of the first and the last {summary.smoothed_over:,} logged steps"
        yield "smoothed improvement", f"{summary.smoothed_improvement_percent:.2f} %, {means}"
    best, last = summary.best_validation_loss, summary.last_validation_loss
    if best is not None and last is not None:
        yield "best validation loss", f"{_loss_and_perplexity(best)} at step {summary.best_validation_step:,}"
        yield "last validation loss", _loss_and_perplexity(last)
    yield "steps", f"{summary.steps:,}"
    if summary.epochs is not None:
        yield "epochs", f"{summary.epochs:.2f}"
    if summary.tokens is not None:
        yield "tokens", f"{summary.tokens:,}"
    if summary.seconds is not None:
        minutes, seconds = divmod(round(summary.seconds), 60)
        yield "duration", f"{summary.seconds:,.2f} s" + (f" ({minutes:,} min {seconds} s)" if minutes else "")
    if summary.peak_memory_mb is not None:
        yield "peak memory", f"{summary.peak_memory_mb:,.0f} MB"
    trained, total = summary.trainable_parameters, summary.total_parameters
    if trained is not None:
        share = f" of {total:,} ({100 * trained / total:.2f} %)" if total else ""
        yield "trainable parameters", f"{trained:,}{share}"


def _loss_and_perplexity(loss: float) -> str:
    return f"{loss:.4f} (perplexity {math.exp(min(loss, 700.0)):,.2f})"  # of more it is no number


def _data_figures(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every value of the data loader's report, those inside others too; of a list of problems their number."""
    figures: dict[str, str] = {}
    for key, value in data.items():
        name = prefix + str(key).replace("_", " ")
        if key in ("style", "template_variables", "files"):
            continue
        if isinstance(value, Mapping):
            figures |= _data_figures(value, f"{name}, ")
        elif key == "problems" and isinstance(value, Sequence):
            figures[name] = f"{len(value):,}"
        elif isinstance(value, int) and not isinstance(value, bool):
            figures[name] = f"{value:,}"
        else:
            figures[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return figures


def _problems(data: Mapping[str, Any]) -> list[str]:
    """The first problems, each with its place and reason."""
    problems = data.get("problems")
    if not isinstance(problems, Sequence) or not problems:
        return []
    texts = [
        ": ".join(str(part) for part in problem.values()) if isinstance(problem, Mapping) else str(problem)
        for problem in problems[:SHOWN]
    ]
    more = [f"- and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    return ["", *(f"- {clean(text)}" for text in texts), *more]


def merging_table(merging: Mapping[str, Any]) -> list[str]:
    """What is in merging.json as a Markdown table, with a line about it."""
    rows = [
        (
            row["name"],
            _loss_and_perplexity(row["validation_loss"]),
            f"{row['largest_logit_difference']:.2g}",
        )
        for row in merging["rows"]
    ]
    return [
        *markdown_table([("model", "validation loss", "largest logit difference"), *rows]),
        "",
        f"Of the checkpoint of step {merging['checkpoint_step']:,}, on the held-out examples, in fp32.",
    ]


def _table(names: tuple[str, str], values: Mapping[str, str]) -> list[str]:
    return markdown_table([names, *values.items()])


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, padded so that it is one on a terminal too; the first row is its header."""
    cells = [[_cell(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def _side_by_side(generation: Generation, first: int, last: int, best: int | None) -> list[str]:
    """A prompt and what was written to it before and after, as an indented block, in which nothing is markup."""
    before = ("before training" if first == 0 else "first sample") + f" (step {first:,})"
    after = f"after (step {last:,}{', the best validated' if last == best else ''})"
    columns = {before: generation.before, after: generation.after} if last > first else {after: generation.after}
    wrapped = [[name, "-" * COLUMN, *_wrap(text)] for name, text in columns.items()]
    lines = ["Prompt:", *(f"  {line}" for line in _wrap(generation.prompt)), ""]
    for cells in zip_longest(*wrapped, fillvalue=""):
        lines.append("   ".join(cell.ljust(COLUMN) for cell in cells))
    return [f"    {line}".rstrip() for line in lines]


def _wrap(text: str | None) -> list[str]:
    """Lines of a width that fits beside another text; "(none)" for no text and "(empty)" for an empty one."""
    if text is None:
        return ["(none)"]
    lines = text.strip().splitlines() or ["(empty)"]
    return [part for line in lines for part in textwrap.wrap(clean(line), COLUMN) or [""]]


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|")


def clean(text: str) -> str:
    """In one line, and without characters that would command a terminal."""
    spaced = "".join(" " if character.isspace() else character for character in text)
    return "".join(character if character.isprintable() else "\ufffd" for character in spaced)
