"""The results of a run in stages as plain values: the forgetting matrix, and the measures of generated text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.diversity import Diversity
from evaluation.sentences import Unit

Losses = tuple[float | None, ...]
"""Mean loss of a target in nats on each part; None where it is not known."""


@dataclass(frozen=True)
class Forgetting:
    """What the last stage has made of one part, against the best that any model before it was there."""

    best_before: float
    """Loss in nats."""
    best_model: str
    last: float

    @property
    def change(self) -> float:
        """Of the perplexity, as a share: above 0 it was forgotten, below 0 the last stage is the best so far."""
        return math.exp(min(self.last - self.best_before, 700.0)) - 1


@dataclass(frozen=True)
class Varied:
    """How varied and how coherent the texts of one model are, or those that people wrote."""

    name: str
    diversity: Diversity
    coherence: float | None
    unrelated: float | None
    repetition: float | None
    sample: str
    """The first of the texts."""


@dataclass(frozen=True)
class Stages:
    """All of it. `models` are the rows of the matrix: the base, then each stage; `parts` its columns."""

    name: str
    parts: tuple[str, ...]
    models: tuple[str, ...]
    losses: tuple[Losses, ...]
    forgetting: tuple[Forgetting | None, ...]
    """Of each part; None where too little is known."""
    varied: tuple[Varied, ...]
    unit: Unit
    """What coherence and repetition compare."""
    curves: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    """Steps and training losses of each stage."""
    prompts: tuple[str, ...]
    samples: str
    """How the texts were drawn."""
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The parts with the number of their stage."""
        return tuple(f"{number}: {name}" for number, name in enumerate(self.parts, 1))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a JSON file; the curves lie in the runs' own."""
        values = asdict(self)
        del values["curves"]
        values["perplexity"] = [[perplexity(loss) for loss in row] for row in self.losses]
        for found, of_part in zip(values["forgetting"], self.forgetting, strict=True):
            if of_part is not None:
                found["change"] = of_part.change
        return values


def forgetting(models: Sequence[str], column: Sequence[float | None]) -> Forgetting | None:
    """Of one part, whose loss after each model is `column`; after Chaudhry et al. 2018 ("Riemannian Walk"), who take
    the difference of accuracies. None where the last loss or all before it are not known."""
    before = [(loss, model) for loss, model in zip(column[:-1], models[:-1], strict=True) if loss is not None]
    if column[-1] is None or not before:
        return None
    return Forgetting(*min(before, key=lambda found: found[0]), column[-1])


def perplexity(loss: float | None) -> float | None:
    """exp of a loss in nats; of more than 700 it is no number."""
    return None if loss is None else math.exp(min(loss, 700.0))


def as_text(loss: float | None) -> str:
    """The perplexity of a loss in three digits."""
    value = perplexity(loss)
    if value is None:
        return "not known"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"
