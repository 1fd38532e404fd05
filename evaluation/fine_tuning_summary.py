"""A fine-tuning run in figures, and what in them asks for attention; read from the files of its directory alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_json, read_json_lines
from common.runs import Run
from evaluation.charts import is_number
from evaluation.diversity import distinct_n, split_words
from evaluation.fine_tuning_plots import Rows, running_mean, series
from inference.asking import EXAMPLES

FEWEST = 10  # logged steps, below which nothing is said about where the loss is going
MARGIN = 0.02  # of the training loss: a smaller change is none
VALIDATION_MARGIN = 0.01
GIVEN_BACK = 0.25  # of what the training loss fell by: a larger rise after its lowest is worth a warning
FEWEST_WORDS = 20  # of a generation that is looked at for repetition


@dataclass(frozen=True)
class Generation:
    """What the model wrote to one test prompt before and after, as `read_generations` chooses; None for nothing."""

    prompt: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class FineTuningSummary:
    """A fine-tuning run in figures. What was not logged is None. Losses are in nats a token."""

    run: str
    steps: int
    tokens: int | None
    epochs: float | None
    seconds: float | None
    peak_memory_mb: float | None
    first_loss: float | None
    last_loss: float | None
    lowest_loss: float | None
    lowest_loss_step: int | None
    highest_loss: float | None
    highest_loss_step: int | None
    improvement_percent: float | None
    """(first - last) / first of the two losses, in per cent."""
    smoothed_improvement_percent: float | None
    """The same of the means of the first and the last logged steps, which one odd batch moves less."""
    smoothed_over: int
    """Logged steps in each of these means: a tenth of all."""
    best_validation_loss: float | None
    best_validation_step: int | None
    last_validation_loss: float | None
    trainable_parameters: int | None
    total_parameters: int | None
    warnings: tuple[str, ...]
    data: dict[str, Any]
    """What the data loader reported (`examples.json`)."""
    merging: dict[str, Any]
    """What `python -m evaluation.merging` found (`merging.json`); empty where it was not asked."""
    generation_steps: tuple[int, int] | None
    """The steps at which the generations before and after were written; equal when there is one only."""
    generations: tuple[Generation, ...]
    loading: tuple[str, ...]
    """Lines that load the result."""


def read_metrics(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The logged steps in order, each once, and a note when lines of metrics.jsonl were left out as damaged.

    Raises:
        UserError: there is no logged step.
    """
    notes: list[str] = []
    merged: dict[int, dict[str, Any]] = {}
    for row in _read_lines(run.metrics, notes):
        merged.setdefault(row["step"], {}).update(row)
    if not merged:
        raise UserError(f"{run.metrics} has no logged step, so there is nothing to draw; train the run with train.py")
    return [merged[step] for step in sorted(merged)], notes


def summarise(run: Run, rows: Rows, notes: Sequence[str], loading: Sequence[str]) -> FineTuningSummary:
    """The figures of a run from its logged steps and the other files of its directory, where they are there."""
    notes = list(notes)
    steps, losses = series(rows, "train/loss")
    validated, validation = series(rows, "val/loss")
    best = int(np.argmin(validation)) if validation else None
    edge = _edge(losses)
    memory = series(rows, "memory_mb")[1]
    sizes = {name: _read_optional(run.path / f"{name}.json", notes) for name in ("adapter", "config")}
    data = _read_optional(run.path / EXAMPLES, notes)
    when, generations = read_generations(run, dict(zip(validated, validation, strict=True)), notes)
    merging = _read_merging(run.path / "merging.json", notes)
    notes += _data_warnings(data) + _repetition_warnings(generations)
    return FineTuningSummary(
        run=run.name,
        steps=rows[-1]["step"],
        tokens=_last(rows, "tokens"),
        epochs=_last(rows, "epoch"),
        seconds=_last(rows, "seconds"),
        peak_memory_mb=max(memory, default=None),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        lowest_loss=min(losses, default=None),
        lowest_loss_step=steps[int(np.argmin(losses))] if losses else None,
        highest_loss=max(losses, default=None),
        highest_loss_step=steps[int(np.argmax(losses))] if losses else None,
        improvement_percent=_improvement(losses[:1], losses[-1:]),
        smoothed_improvement_percent=_improvement(losses[:edge], losses[-edge:]) if len(losses) >= FEWEST else None,
        smoothed_over=edge,
        best_validation_loss=None if best is None else validation[best],
        best_validation_step=None if best is None else validated[best],
        last_validation_loss=validation[-1] if validation else None,
        trainable_parameters=_find_number(sizes, "trainable_parameters"),
        total_parameters=_find_number(sizes, "total_parameters"),
        warnings=(*curve_warnings(rows), *notes),
        data=data,
        merging=merging,
        generation_steps=when,
        generations=generations,
        loading=tuple(loading),
    )


def curve_warnings(rows: Rows) -> list[str]:
    """What in the curves asks for attention: losses that are not finite, that rose, that stood still, overfitting."""
    found = []
    for key, name in (("train/loss", "training"), ("val/loss", "validation")):
        broken = [row["step"] for row in rows if key in row and not is_number(row[key])]
        if broken:
            found.append(
                f"the {name} loss is not a finite number at step {broken[0]:,} (such steps in all: {len(broken):,}); "
                "lower the learning rate, or train in bf16 or fp32 instead of fp16"
            )
    trend = _trend_warnings(rows)
    return found + trend + _validation_warnings(rows, overfitting_possible=not trend)


def _trend_warnings(rows: Rows) -> list[str]:
    """Whether the training loss rose, rose again or stood still, judged by means over a tenth of the logged steps."""
    steps, losses = series(rows, "train/loss")
    if len(losses) < FEWEST:
        return []
    edge = _edge(losses)
    first, last = float(np.mean(losses[:edge])), float(np.mean(losses[-edge:]))
    means = np.convolve(losses, np.full(edge, 1 / edge), mode="valid")
    noise = 4 * _noise(losses, edge) * math.sqrt(2 / edge)  # of the difference of two such means
    if last - first > max(MARGIN * first, noise):
        return [
            f"the training loss rose, from {first:.4f} to {last:.4f} (means of the first and last {edge} logged "
            "steps); the learning rate is probably too high"
        ]
    climbs = means - np.minimum.accumulate(means)
    top = int(np.argmax(climbs))
    low = int(np.argmin(means[: top + 1]))
    fell = first - float(means[low])
    if fell > noise and climbs[top] > max(GIVEN_BACK * fell, MARGIN * first, noise):
        since, until = steps[low + edge // 2], steps[top + edge // 2]
        return [
            f"the training loss rose again after about step {since:,}, from {means[low]:.4f} to {means[top]:.4f} at "
            f"about step {until:,} (means of {edge} logged steps); lower the learning rate, or end the run earlier"
        ]
    if last > (1 - MARGIN) * first:
        return [
            f"the training loss has stalled: {first:.4f} at the beginning and {last:.4f} at the end (means of {edge} "
            "logged steps); the model is not learning, so raise the learning rate or look at what is trained"
        ]
    return []


def _validation_warnings(rows: Rows, overfitting_possible: bool) -> list[str]:
    """Whether the validation loss ended above its best, and if that is overfitting: not where training went wrong."""
    validated, validation = series(rows, "val/loss")
    steps, losses = series(rows, "train/loss")
    best = int(np.argmin(validation)) if validation else 0
    if not validation or validation[-1] <= (1 + VALIDATION_MARGIN) * validation[best]:
        return []
    step, rose = validated[best], f"from {validation[best]:.4f} to {validation[-1]:.4f}"
    smooth = running_mean(losses, _edge(losses))
    until = max(0, int(np.searchsorted(steps, step, side="right")) - 1)
    if overfitting_possible and losses and smooth[-1] < smooth[until]:
        return [
            f"overfitting from step {step:,}: since then the validation loss rose, {rose}, while the training loss "
            "fell; use the checkpoint with the best validation loss, or train for fewer epochs"
        ]
    return [f"the validation loss rose after step {step:,}, {rose}; the learning rate is probably too high"]


def _data_warnings(data: Mapping[str, Any]) -> list[str]:
    problems = data.get("problems")
    count = len(problems) if isinstance(problems, Sequence) else problems if is_number(problems) else 0
    return (
        [f"records of the data that could not be used: {count:,}; see what the data loader reported"] if count else []
    )


def _repetition_warnings(generations: Sequence[Generation]) -> list[str]:
    """Texts in which more than half of the runs of four words came before in the same text."""
    words = [split_words(generation.after or "") for generation in generations]
    repeating = sum((distinct_n([text], 4) or 1) < 0.5 for text in words if len(text) >= FEWEST_WORDS)
    advice = "sample with a higher temperature or another top_k, or train less"
    return [f"generations that repeat themselves: {repeating} of {len(words)}; {advice}"] if repeating else []


def read_generations(
    run: Run, validation: Mapping[int, float], notes: list[str]
) -> tuple[tuple[int, int] | None, tuple[Generation, ...]]:
    """Two steps of samples.jsonl, and what was written to each prompt then; damaged lines are noted.

    The first step, and of the later ones the best by its `validation` loss, whose weights are those that are used; the
    last where that one has no samples.
    """
    samples = _read_lines(run.samples, notes, texts=("prompt", "text"))
    if not samples:
        return None, ()
    first, *later = sorted({row["step"] for row in samples})
    best = min((step for step in validation if step > first), key=lambda step: validation[step], default=first)
    last = best if best in later else max(later, default=first)
    before, after = (
        {row["prompt"]: row["text"] for row in samples if row["step"] == step}  # one text a prompt
        for step in (first, last)
    )
    prompts = list(after) + [prompt for prompt in before if prompt not in after]
    return (first, last), tuple(Generation(prompt, before.get(prompt), after.get(prompt)) for prompt in prompts)


def _read_lines(path: Path, notes: list[str], texts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file with a step, and with texts under `texts`; how many lines are not such is noted."""
    rows = [
        row
        for row in read_json_lines(path)
        if isinstance(row.get("step"), int) and all(isinstance(row.get(key), str) for key in texts)
    ]
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    damaged = sum(1 for line in text.split("\n") if line.strip()) - len(rows)
    if damaged:
        notes.append(f"{path.name}: lines that are damaged and were left out: {damaged:,}")
    return rows


def _read_optional(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object, empty where there is no file; one that cannot be read is noted."""
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({error}); what it says is missing here")
        return {}
    return value


def _read_merging(path: Path, notes: list[str]) -> dict[str, Any]:
    """merging.json, empty where there is none; one whose rows are not as they should be is noted."""
    merging = _read_optional(path, notes)
    try:
        rows = [
            {
                "name": str(row["name"]),
                **{key: float(row[key]) for key in ("validation_loss", "largest_logit_difference")},
            }
            for row in merging.get("rows", ())
        ]
        return {"checkpoint_step": int(merging["checkpoint_step"]), "rows": rows} if merging else {}
    except (KeyError, TypeError, ValueError) as error:
        notes.append(f"{path.name} is damaged ({error!r}); python -m evaluation.merging writes it again")
        return {}


def _noise(losses: Sequence[float], edge: int) -> float:
    """Standard deviation of the loss of one step about its trend, in the last `edge` steps or from step to step.

    The first knows of batches that come by their length, whose loss goes up and down in long waves; the second does not
    depend on a few steps alone.
    """
    return max(float(np.std(losses[-edge:])), float(np.std(np.diff(losses))) / math.sqrt(2))


def _edge(losses: Sequence[float]) -> int:
    """How many logged steps the beginning and the end are: a tenth, so that one odd batch decides little."""
    return max(3, len(losses) // 10)


def _find_number(values: Any, key: str) -> int | None:
    """The first whole number under `key`, however deep in the objects it stands."""
    if not isinstance(values, Mapping):
        return None
    if isinstance(values.get(key), int):
        return int(values[key])
    return next((found for inner in values.values() if (found := _find_number(inner, key)) is not None), None)


def _last(rows: Rows, key: str) -> Any:
    """The last finite number under `key`."""
    return next((row[key] for row in reversed(rows) if is_number(row.get(key))), None)


def _improvement(first: Sequence[float], last: Sequence[float]) -> float | None:
    """By how many per cent the mean of `last` lies below that of `first`."""
    return 100 * (1 - float(np.mean(last)) / float(np.mean(first))) if any(first) else None
