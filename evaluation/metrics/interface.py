"""What the modules have in common: their features, and references in either of the forms that `evaluate` allows."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate


def describe(what: str, source: str, inputs: str, references: bool = False) -> evaluate.MetricInfo:
    """The description of a metric: with references, one text or a list of texts a prediction."""
    return evaluate.MetricInfo(
        description=what, citation=source, inputs_description=inputs, features=_features(references)
    )


def describe_measurement(what: str, source: str, inputs: str) -> evaluate.MeasurementInfo:
    """The description of a measure of texts alone; `evaluate` calls them data."""
    return evaluate.MeasurementInfo(
        description=what, citation=source, inputs_description=inputs, features=_features(False)
    )


def _features(references: bool) -> datasets.Features | list[datasets.Features]:
    text = datasets.Value("string")
    if not references:
        return datasets.Features({"predictions": text})
    return [
        datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        datasets.Features({"predictions": text, "references": text}),
    ]


def as_lists(references: Sequence[str] | Sequence[Sequence[str | None]]) -> list[list[str | None]]:
    """One list of references a prediction, whether single texts or lists were given."""
    return [[own] if isinstance(own, str) else list(own) for own in references]
