"""Questions about creatures: every kind that their facts answer, and the statements that join several facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle

from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.creatures import STATS, Creature
from data_pipeline.questions.english import ENGLISH
from data_pipeline.questions.question import Question, generator
from data_pipeline.questions.spanish import SPANISH
from data_pipeline.questions.wording import Template, Wording, facts

_WORDINGS: dict[str, Wording] = {"es": SPANISH, "en": ENGLISH}


def creature_questions(creatures: Iterable[Creature], config: QuestionsConfig) -> Iterator[Question]:
    """All questions about each creature, each in `config.phrasings` ways."""
    wording = _WORDINGS[config.language]
    for creature in creatures:
        known = facts(creature, wording)
        values = known | {"name": wording.name(creature.name)} | _phrases(creature, known, wording)
        for kind, template in _templates(creature, wording).items():
            if template.statement or kind in known:
                yield from _asked(kind, template, values, config)


def _templates(creature: Creature, wording: Wording) -> dict[str, Template]:
    """By kind. What the question about abilities is depends on their number."""
    ability = wording.one_ability if len(creature.abilities) == 1 else wording.several_abilities
    return {**wording.templates, "ability": ability, **wording.stat_templates}


def _phrases(creature: Creature, known: dict[str, str], wording: Wording) -> dict[str, str]:
    """Parts of the statements that differ in more than a word."""
    return {
        "ability_phrase": wording.ability_phrase(
            len(creature.abilities), known["ability"], known.get("hidden_ability")
        ),
        "stat_list": wording.join([wording.stat_value(name, creature.stats[name]) for name in STATS]),
    }


def _asked(kind: str, template: Template, values: dict[str, str], config: QuestionsConfig) -> Iterator[Question]:
    name, fact = values["name"], "" if template.statement else values[kind]
    drawn = generator(config.seed, "phrasings", name, kind)
    questions = drawn.sample(template.questions, config.phrasings)
    answers = cycle(drawn.sample(template.answers, len(template.answers)))
    for question, answer in zip(questions, answers, strict=False):
        told = answer.format(**values, fact=fact)
        yield Question(question.format(name=name), told, fact, kind, name, statement=template.statement)
