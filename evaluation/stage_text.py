"""The results of a run in stages in words, as Markdown that reads well on a terminal too."""

from __future__ import annotations

import textwrap

from evaluation.fine_tuning_text import clean, markdown_table
from evaluation.stage_results import Stages, Varied, as_text

FIGURES = {
    "stages_matrix": "perplexity of every model on every part",
    "stages_perplexity": "perplexity by stage",
    "stages_diversity": "diversity by stage",
    "stages_loss": "training loss over all stages",
}
_WIDTH = 100  # characters of a line of a sample
_SAMPLE_LINES = 14


def describe(stages: Stages) -> str:
    """The results as Markdown, as in stages.md."""
    lines = [
        f"# Stages: {clean(stages.name)}",
        "",
        "## Perplexity on the held-out part of every stage",
        "",
        "Per target token. Stars mark the part that a stage was trained on.",
        "",
        *markdown_table([("model", *stages.labels), *_matrix(stages)]),
        "",
        *_forgetting(stages),
        "## Generated text",
        "",
        f"{stages.samples}. Row by row the same prompts and random numbers, and equally many words are counted of "
        f"each; {stages.unit} are what coherence and repetition compare. No measure is better the higher it is: the "
        "last row shows what people wrote.",
        "",
        *markdown_table([_COLUMNS, *(_measures(varied) for varied in stages.varied)]),
        "",
        "## Notes",
        "",
        *([f"- {clean(note)}" for note in stages.notes] or ["None."]),
        "",
        f"## First text to the prompt {clean(repr(stages.prompts[0]))}",
    ]
    for varied in stages.varied:
        lines += ["", f"{varied.name}:", "", *_indented(varied.sample)]
    images = (f"![{title}]({name}.png)" for name, title in FIGURES.items())
    return "\n".join([*lines, "", "## Figures", "", "\n\n".join(images)]) + "\n"


def _matrix(stages: Stages) -> list[list[str]]:
    """A row a model. The n-th row, counted from the base as 0, was trained on part n."""
    return [
        [model, *(as_text(loss) + (" *" if column == row - 1 else "") for column, loss in enumerate(losses))]
        for row, (model, losses) in enumerate(zip(stages.models, stages.losses, strict=True))
    ]


def _forgetting(stages: Stages) -> list[str]:
    rows = [
        (
            label,
            f"{as_text(found.best_before)} ({found.best_model})",
            as_text(found.last),
            _percent(found.change),
        )
        for label, found in zip(stages.labels, stages.forgetting, strict=True)
        if found is not None
    ]
    if not rows:
        return []
    return [
        f"After {stages.models[-1]}, against the best model before it; an increase is what was forgotten:",
        "",
        *markdown_table([("part", "best before", "now", "change"), *rows]),
        "",
    ]


_COLUMNS = (
    *("text of", "words", "distinct-1", "distinct-2", "distinct-3", "type-token", "MATTR", "MTLD"),
    *("coherence", "unrelated", "repetition"),
)


def _measures(varied: Varied) -> list[str]:
    of = varied.diversity
    shares = (of.distinct_1, of.distinct_2, of.distinct_3, of.type_token_ratio, of.mattr)
    rest = (varied.coherence, varied.unrelated, varied.repetition)
    mtld = "-" if of.mtld is None else f"{of.mtld:.1f}"
    return [varied.name, f"{of.words:,}", *map(_number, shares), mtld, *map(_number, rest)]


def _percent(share: float) -> str:
    return f"{100 * share:+,.0f} %" if abs(share) >= 1 else f"{100 * share:+.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _indented(text: str) -> list[str]:
    """The beginning of a text as an indented block, in which nothing is markup."""
    lines = [part for line in text.strip().splitlines() for part in textwrap.wrap(clean(line), _WIDTH) or [""]]
    more = ["..."] if len(lines) > _SAMPLE_LINES else []
    return [f"    {line}".rstrip() for line in [*(lines[:_SAMPLE_LINES] or ["(empty)"]), *more]]
