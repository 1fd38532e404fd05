"""Plain text in four parts of one subject each, for training in stages that follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError
from data_pipeline.questions.articles import Article
from data_pipeline.questions.config import Language, QuestionsConfig
from data_pipeline.questions.question import generator

SEPARATOR = "---"

# The package sorts its articles by large topics, which decide the part.
_PARTS: dict[Language, dict[str, str]] = {
    "es": {"Personas": "people", "Geografía": "places", "Historia": "history", "Artes": "arts"},
    "en": {"People": "people", "Geography": "places", "History": "history", "Arts": "arts"},
}


@dataclass(frozen=True)
class Part:
    """Documents, each a title, a blank line and a lead section."""

    name: str
    """Of its files, such as `part_1_people`."""
    train: list[str]
    held_out: list[str]


def make_parts(articles: Sequence[Article], config: QuestionsConfig) -> list[Part]:
    """Draw each part: `config.part_bytes` to train on, if there are so many, and beside them the held-out fraction.

    Raises:
        UserError: a part would have nothing to train on or nothing held out.
    """
    parts = []
    for number, (topic, subject) in enumerate(_PARTS[config.language].items(), start=1):
        documents = [f"{article.title}\n\n{article.lead}" for article in articles if article.topic == topic]
        generator(config.seed, "part", subject).shuffle(documents)
        available = sum(map(_size, documents))
        held_bytes = config.held_out_fraction * min(available, config.part_bytes / (1 - config.held_out_fraction))
        border = _fitting(documents, held_bytes)
        end = border + _fitting(documents[border:], config.part_bytes)
        part = Part(f"part_{number}_{subject}", documents[border:end], documents[:border])
        if not part.train or not part.held_out:
            raise UserError(
                f"{part.name} has {len(part.train)} documents to train on and {len(part.held_out)} held out; "
                "raise part_bytes, held_out_fraction or limit"
            )
        parts.append(part)
    return parts


def _fitting(documents: Sequence[str], most: float) -> int:
    """How many documents from the first have no more than `most` bytes together."""
    total = 0
    for number, document in enumerate(documents):
        total += _size(document)
        if total > most:
            return number
    return len(documents)


def _size(document: str) -> int:
    return len(f"{document}\n{SEPARATOR}\n".encode())
