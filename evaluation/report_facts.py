"""What the page of a run says, gathered from the files of its directory alone; what is not there is left out."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup

from common.errors import UserError
from common.files import read_json, read_json_lines
from common.runs import Run
from evaluation.baselines import NGRAM_NAMES, best_ngram
from evaluation.charts import Chart, Interval, Line, interval_chart, is_number
from evaluation.document_scores import ALL
from evaluation.report_metrics import Rows, generation_rows, task_rows
from inference import read_config

TOKENS = "training tokens"
CURVES = (  # beside that of the loss: title, key in metrics.jsonl, unit, and what the vertical axis is like
    ("Validation perplexity", "val/perplexity", "perplexity", "log"),
    ("Validation bits per byte", "val/bits_per_byte", "bits", "linear"),
    ("Learning rate", "lr", "rate", "zero"),
    ("Gradient norm before clipping", "grad_norm", "norm", "log"),
    ("Throughput", "tokens_per_second", "tokens a second", "zero"),
    ("Memory", "memory_mb", "MB", "zero"),
)
NEAR = 1.5  # times the model's bits per byte


@dataclass(frozen=True)
class RunFacts:
    """One run as its files tell of it."""

    name: str
    path: str
    config: dict[str, Any]
    metrics: Rows
    samples: Rows
    summary: dict[str, Any]
    """Empty for a run that was not evaluated."""
    questions: dict[str, Any]
    """What `python -m evaluation.questions` found; empty where it was not asked."""
    trained: dict[str, Any]
    """Sizes of an adapter, of a run that trained one."""
    harness: dict[str, Any]
    """Tasks that the run was asked; empty where it was not."""
    translation: dict[str, Any]
    """Translations of the run and of other systems; empty where there are none."""

    @cached_property
    def flat_config(self) -> dict[str, Any]:
        return flatten(self.config)

    @property
    def what(self) -> str:
        """The kind of run in a few words."""
        base, method = self.config.get("start_from"), (self.config.get("adapter") or {}).get("method", "none")
        if base is None:
            return "Trained from fresh weights"
        return f"Fine-tuned from {base}" + (f" with {method}" if method != "none" else "")

    @property
    def trained_on(self) -> str:
        files = (self.config.get("examples") or {}).get("files") or ()
        return ", ".join(map(str, files)) or str((self.config.get("data") or {}).get("directory", "unknown data"))

    @cached_property
    def last(self) -> dict[str, Any]:
        """The newest value of everything that was logged."""
        return {key: value for row in self.metrics for key, value in row.items()}

    @cached_property
    def best_validation(self) -> dict[str, Any]:
        """The logged step with the lowest validation loss; empty without one."""
        rows = [row for row in self.metrics if is_number(row.get("val/loss"))]
        return min(rows, key=lambda row: row["val/loss"], default={})

    def points(self, key: str, x: str = "tokens") -> list[tuple[float, float]]:
        """What was logged under `key`, over what was logged under `x`."""
        pairs = ((row.get(x), row.get(key)) for row in self.metrics)
        return [(float(place), float(value)) for place, value in pairs if is_number(place) and is_number(value)]

    @cached_property
    def charts(self) -> list[Chart]:
        """The curves of the run, without those of which nothing was logged."""
        levels = {
            name: float(score["loss"])
            for name, score in self.summary.get("baselines", {}).items()
            if name in ("unigram", self.best_ngram)
        }
        losses = [
            Line("training", self.points("train/loss"), faint=True),
            Line("validation", self.points("val/loss"), marked=True),
        ]
        charts = [Chart("Loss", TOKENS, "nats a token", losses, levels)]
        for title, key, unit, scale in CURVES:
            line = Line("", self.points(key), marked=key.startswith("val/"))
            charts.append(Chart(title, TOKENS, unit, [line], log=scale == "log", from_zero=scale == "zero"))
        return [chart for chart in charts if chart]

    @property
    def best_ngram(self) -> str | None:
        """The counted model with the lowest loss."""
        return best_ngram(self.summary.get("baselines", {}))

    @cached_property
    def rows(self) -> Rows:
        """The table of model and baselines, as `comparison` makes it; empty for a run that was not evaluated."""
        return comparison(self.summary) if self.summary else []

    @property
    def interval_svg(self) -> Markup:
        """Bits per byte of the model and of what comes near it; what is far would press the rest together."""
        rows = [row for row in self.rows if row["source"] == ALL]
        rows = [row for row in rows if row["bits_per_byte"] < NEAR * rows[0]["bits_per_byte"]]
        dots = [Interval(row["name"], row["bits_per_byte"], row["interval"], row["name"] == "model") for row in rows]
        return Markup(interval_chart(dots, "bits per byte"))

    @property
    def interval(self) -> list[float] | None:
        """Of bits per byte."""
        found: list[float] | None = self.summary.get("intervals", {}).get(ALL, {}).get("model", {}).get("bits_per_byte")
        return found

    @property
    def contexts(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Other contexts that the model was scored with: their name, a source or "all", and the score."""
        found = {key.removesuffix("_context"): value for key, value in self.summary.items() if key.endswith("_context")}
        return [
            (name, source, score)
            for name, scores in found.items()
            if isinstance(scores, dict)
            for source, score in {**scores.get("per_source", {}), ALL: scores}.items()
        ]

    @property
    def generation_rows(self) -> Rows:
        return generation_rows(self.summary.get("generation") or {})

    @property
    def task_rows(self) -> Rows:
        return task_rows(self.harness)

    @property
    def question_count(self) -> int:
        return int(self.questions["overall"]["fact"]["tuned"]["of"])

    @property
    def question_rows(self) -> Rows:
        """Right facts of the run and of the model that it began with."""
        overall = self.questions["overall"]["fact"]
        names = {"tuned": self.name, "base": "what it began with"}
        return [{"name": name, **overall[key]} for key, name in names.items() if key in overall]

    @cached_property
    def samples_by_prompt(self) -> dict[str, Rows]:
        found: dict[str, Rows] = defaultdict(list)
        for sample in self.samples:
            found[str(sample.get("prompt", ""))].append(sample)
        return dict(found)

    @property
    def commands(self) -> list[str]:
        """What to type to train and evaluate the same again."""
        again = f"{self.name}_again"
        train = ["python", "train.py", f"{self.path}/config.json", "--name", again]
        evaluate = ["python", "-m", "evaluation", again]
        return [shlex.join(train), shlex.join(evaluate)] if self.summary else [shlex.join(train)]


def gather(run: Run, summary: dict[str, Any] | None = None) -> RunFacts:
    """Read the files of `run`; `summary` stands for summary.json where that has not been written yet.

    Raises:
        UserError: config.json is missing or damaged.
    """
    return RunFacts(
        run.name,
        run.path.as_posix(),
        read_config(run),
        [row for row in read_json_lines(run.metrics) if "step" in row],
        read_json_lines(run.samples),
        summary if summary is not None else _optional(run, "summary.json"),
        _optional(run, "questions.json"),
        _optional(run, "adapter.json"),
        _optional(run, "harness.json"),
        _optional(run, "translation.json"),
    )


def _optional(run: Run, name: str) -> dict[str, Any]:
    """A JSON object of the run's directory, empty where there is none. Raises UserError when it is damaged."""
    path = run.path / name
    try:
        found = read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and make it again") from error
    return found if isinstance(found, dict) else {}


def comparison(summary: dict[str, Any]) -> Rows:
    """Rows of the table that sets the model against the baselines: all on the whole split, the telling ones by source.

    `change` is how far bits per byte lie from the unigram's, in per cent; `interval` that of bits per byte, `behind` by
    how much the model is better, and `behind_interval` the interval of that.
    """
    baselines = summary["baselines"]
    model = {key: summary[f"val_{key}"] for key in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")}
    scores = {"model": {**model, "per_source": summary["per_source"]}, **baselines}
    hidden = {*NGRAM_NAMES.values(), "untrained"} - {best_ngram(baselines)}
    rows = []
    for source in (ALL, *summary["per_source"]):
        found = {name: score if source == ALL else score["per_source"].get(source) for name, score in scores.items()}
        reference = found["unigram"]["bits_per_byte"]
        for name, score in sorted(found.items(), key=lambda item: (item[0] != "model", item[1]["bits_per_byte"])):
            if source != ALL and name in hidden:
                continue
            interval = summary.get("intervals", {}).get(source, {}).get(name, {})
            rows.append(
                {
                    **{key: value for key, value in score.items() if key != "per_source"},
                    "name": name,
                    "source": source,
                    "change": None if name == "unigram" else 100 * (score["bits_per_byte"] / reference - 1),
                    "interval": interval.get("bits_per_byte"),
                    "behind": interval.get("behind"),
                    "behind_interval": interval.get("behind_interval"),
                    "verdict": verdict(interval.get("behind_interval")),
                }
            )
    return rows


def verdict(bounds: Sequence[float] | None) -> str:
    """What an interval of a difference says of it."""
    if not bounds:
        return "–"
    return "chance is enough to explain it" if bounds[0] <= 0 <= bounds[1] else "more than chance"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 64}} as {"model.width": 64}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
