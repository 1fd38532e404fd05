"""Several runs beside each other: their curves, what their configs differ in, their results, and what is chance."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from common.errors import UserError
from common.runs import Run
from evaluation.charts import Chart, Line, Points
from evaluation.document_scores import FILE, DocumentScores
from evaluation.report_facts import RunFacts, gather, verdict
from evaluation.resampling import bounds, resampled_sums

MOST_PAIRED = 6  # runs of which every pair is compared; of more, each with the best alone
UNINTERESTING = ("name",)  # in a table of differences


@dataclass(frozen=True)
class Pair:
    """Two runs on the same documents."""

    better: str
    worse: str
    difference: float
    """Of bits per byte, the worse less the better."""
    interval: list[float]
    share: float
    """Of the documents, on which the better one is better."""

    @property
    def verdict(self) -> str:
        return verdict(self.interval)


@dataclass(frozen=True)
class Comparison:
    """What the page that compares runs says."""

    runs: Sequence[RunFacts]
    pairs: Sequence[Pair]
    apart: Sequence[str]
    """Why runs are not in `pairs`, a line each."""

    @cached_property
    def metric(self) -> str:
        """What all runs logged of the validation split and can be compared by."""
        tokenizers = {run.summary.get("tokenizer_sha256") for run in self.runs}
        comparable = len(tokenizers) == 1 and None not in tokenizers
        names = ("val/loss", "val/bits_per_byte") if comparable else ("val/bits_per_byte", "val/loss")
        return next((name for name in names if all(run.points(name) for run in self.runs)), "val/loss")

    @property
    def charts(self) -> list[Chart]:
        """The validation curves over tokens, seconds and FLOPs, and the training loss over tokens."""
        y = {"val/loss": "nats a token", "val/bits_per_byte": "bits per byte"}[self.metric]
        title = {"val/loss": "Validation loss", "val/bits_per_byte": "Validation bits per byte"}[self.metric]
        found = [
            Chart(f"{title} by {x}", label, y, self._lines(self.metric, x, marked=True))
            for x, label in (
                ("tokens", "training tokens"),
                ("seconds", "seconds of training"),
                ("FLOPs", "training FLOPs"),
            )
        ]
        found.append(
            Chart("Training loss by tokens", "training tokens", "nats a token", self._lines("train/loss", "tokens"))
        )
        return [chart for chart in found if chart]

    def _lines(self, key: str, x: str, marked: bool = False) -> list[Line]:
        return [Line(run.name, _points(run, key, x), number, marked=marked) for number, run in enumerate(self.runs)]

    @property
    def best(self) -> str | None:
        """The run with the fewest bits per byte."""
        found = [run for run in self.runs if run.summary]
        return min(found, key=lambda run: float(run.summary["val_bits_per_byte"])).name if found else None

    @property
    def warnings(self) -> list[str]:
        """What makes figures of these runs hard to compare."""
        evaluated = [run.summary for run in self.runs if run.summary]
        found = []
        if len({one["tokenizer_sha256"] for one in evaluated}) > 1:
            found.append(
                "these runs have different tokenizers, so loss and perplexity cannot be compared, only bits per byte."
            )
        if len({one["data_fingerprint"] for one in evaluated}) > 1:
            found.append("these runs were scored on different data, so none of their results can be compared.")
        return found

    @cached_property
    def differences(self) -> list[tuple[str, list[Any]]]:
        """Every field of the configs that is not the same in all, with its value in each run."""
        names = dict.fromkeys(name for run in self.runs for name in run.flat_config)
        rows = [(name, [run.flat_config.get(name, "–") for run in self.runs]) for name in names]
        return [
            (name, values)
            for name, values in rows
            if name not in UNINTERESTING and any(one != values[0] for one in values)
        ]

    @cached_property
    def sources(self) -> list[tuple[str, list[float | None]]]:
        """Bits per byte of every source in each run, None where a run was not scored on it."""
        scores = [run.summary.get("per_source", {}) for run in self.runs]
        names = dict.fromkeys(name for one in scores for name in one)
        return [(name, [one.get(name, {}).get("bits_per_byte") for one in scores]) for name in names]


def compare(runs: Sequence[Run]) -> Comparison:
    """Gather what is to be said of `runs`; those that share a name go by their paths.

    Raises:
        UserError: one is named twice, or its config.json is missing or damaged.
    """
    paths, shared = [run.path.resolve() for run in runs], Counter(run.name for run in runs)
    for run in runs:
        if paths.count(run.path.resolve()) > 1:
            raise UserError(f"run {run.name} is named twice; a comparison is of different runs")
    names = [run.name if shared[run.name] == 1 else str(run.path) for run in runs]
    facts = [replace(gather(run), name=name) for run, name in zip(runs, names, strict=True)]
    scored: dict[str, DocumentScores] = {}
    apart = []
    for run, name in zip(runs, names, strict=True):
        if (run.path / FILE).is_file():
            scored[name] = DocumentScores.load(run.path / FILE)
        else:
            apart.append(f"{name} has no scores of single documents; make them with: python -m evaluation {run.path}")
    groups: dict[str, list[str]] = {}
    for name, scores in scored.items():
        groups.setdefault(scores.data_fingerprint, []).append(name)
    pairs = []
    for together in groups.values():
        if len(together) > 1:
            pairs += _pairs({name: scored[name] for name in together})
        elif len(scored) > 1:
            apart.append(f"{together[0]} was scored on other data than the rest")
    return Comparison(facts, pairs, apart)


def _pairs(scored: dict[str, DocumentScores]) -> list[Pair]:
    """Runs on the same documents against each other, the best first; all intervals are of the same draws."""
    size = next(iter(scored.values())).bytes
    names = list(scored)
    nll = np.array([scored[name].nll[0] for name in names])  # (runs, documents)
    order = np.argsort(nll.sum(axis=1), kind="stable").tolist()
    sums = resampled_sums(np.concatenate([nll, size[None]]))
    bits = sums[:, :-1] / (sums[:, -1:] * np.log(2))  # (resamples, runs)
    chosen = itertools.combinations(order, 2) if len(names) <= MOST_PAIRED else ((order[0], one) for one in order[1:])
    return [
        Pair(
            names[better],
            names[worse],
            float((nll[worse] - nll[better]).sum() / (size.sum() * np.log(2))),
            bounds(bits[:, worse] - bits[:, better]),
            float(np.mean(nll[better] < nll[worse])),
        )
        for better, worse in chosen
    ]


def _points(run: RunFacts, key: str, x: str) -> Points:
    if x != "FLOPs":
        return run.points(key, x)
    flops = run.summary.get("train_flops_per_token")
    return [(tokens * flops, value) for tokens, value in run.points(key)] if flops else []
