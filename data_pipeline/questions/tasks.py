"""Draws texts from lead sections and gives each one task, so that all tasks are equally frequent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from data_pipeline.questions.articles import Article, sentences
from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.question import Question, generator
from data_pipeline.questions.task_kinds import MOST_SENTENCES, TASKS, Text

_SHORTEST, _LONGEST = 20, 160  # of a sentence, in characters
_SEVERAL = 0.25  # share of the texts that have more than one sentence, where the lead allows it


def task_questions(articles: Mapping[str, Sequence[Article]], config: QuestionsConfig) -> list[Question]:
    """Tasks on texts from the articles of each language, by turns until there is no text for the next one, or
    `config.limit` is reached. No sentence stands in two of them."""
    texts = [text for language, found in articles.items() for text in _texts(found, language, config.seed)]
    generator(config.seed, "tasks").shuffle(texts)
    used: set[str] = set()
    makers = {
        kind: [_made(kind, answer, texts, used, config) for answer in task.answers(config.language) or (None,)]
        for kind, task in TASKS.items()
    }
    questions: list[Question] = []
    for turn in itertools.count():
        for by_answer in makers.values():
            question = next(by_answer[turn % len(by_answer)], None)
            if question is None or len(questions) == config.limit:
                return questions
            questions.append(question)
    raise AssertionError("the loop is endless")


def _made(
    kind: str, wanted: str | None, texts: Sequence[Text], used: set[str], config: QuestionsConfig
) -> Iterator[Question]:
    """Tasks of one kind, with one answer if that is `wanted`, on texts that are not used yet, which then are."""
    task = TASKS[kind]
    for text in texts:
        drawn = generator(config.seed, "task", kind, text.text)
        made = None if text.text in used else task.make(text, config.language, drawn)
        if made is not None and wanted in {None, made[1]}:
            used.add(text.text)
            instruction = drawn.choice(task.instructions[config.language])
            yield Question(instruction, made[1], made[1], kind, text.title, input=made[0])


def _texts(articles: Sequence[Article], language: str, seed: int) -> Iterator[Text]:
    """Each sentence of usual length once, alone or with the next ones of its lead."""
    seen: set[str] = set()
    for article in articles:
        drawn = generator(seed, "texts", language, article.title)
        rest = [part for part in sentences(article.lead) if _SHORTEST <= len(part) <= _LONGEST and part not in seen]
        seen.update(rest)
        while rest:
            size = drawn.randint(2, MOST_SENTENCES) if drawn.random() < _SEVERAL else 1
            yield Text(tuple(rest[:size]), language, article.title)
            rest = rest[size:]
