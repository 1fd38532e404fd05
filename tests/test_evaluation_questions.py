"""Held-out questions asked of a fine-tuned run and its base; what counts as right, and how sure the shares are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from tiny import make_project, run_here

from common.errors import UserError
from common.files import read_json
from common.runs import Run
from data_pipeline.examples.rendering import render
from data_pipeline.examples.text_files import questions_and_answers
from data_pipeline.questions.question import Question
from data_pipeline.tokenizer import Tokenizer
from evaluation.answers import has_fact, is_exact, normalised, read_questions
from evaluation.proportions import Proportion, mcnemar
from evaluation.questions import main
from inference.asking import prompt_style

FACTS = {"model": "small", "text": "short", "line": "every", "word": "next"}
TUNING = """
from training.config import *

config = RunConfig(
    name="tuned",
    start_from="base",
    examples=ExamplesConfig(files=("train.txt",)),
    batch=BatchConfig(examples_per_step=4),
    optimizer=OptimizerConfig(lr=0.02, embedding_lr=0.01, scalar_lr=0.01),
    budget=BudgetConfig(steps=150),
    validation=ValidationConfig(sample_tokens=0),
    checkpoint=CheckpointConfig(every=None),
    tracking=TrackingConfig(wandb="off"),
    precision="fp32",
    device="cpu",
    compile="off",
)
"""


def rows() -> list[dict[str, str]]:
    """The questions that were trained on: what a run that learned nothing else can answer."""
    return [
        {"question": f"the {name}?", "answer": f"It is {fact}.", "fact": fact, "kind": kind, "subject": name}
        for (name, fact), kind in zip(FACTS.items(), ("size", "size", "place", "place"), strict=True)
    ]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that was fine-tuned until it knows its answers; to be copied by what changes it."""
    project = make_project(tmp_path_factory.mktemp("project"))
    run_here(project, "--name", "base", "--model.context-length", "64", "--model.dropout", "0", "--budget.steps", "4")
    blocks = [f"###\nQuestion: {row['question']}\nAnswer: {row['answer']}\n###\n" for row in rows()]
    (project / "train.txt").write_text("".join(blocks), encoding="utf-8")
    (project / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    (project / "tiny.py").write_text(TUNING, encoding="utf-8")
    run_here(project)
    return project


@pytest.fixture
def project(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(tuned, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_tuned_and_base_are_asked_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = project / "runs" / "tuned"
    before = {path.name for path in run.iterdir()}
    main(["tuned", "held_out.jsonl", "--max-new-tokens", "24"])
    assert {path.name for path in run.iterdir()} - before == {"questions.json", "questions.jsonl"}
    result, answers = read_json(run / "questions.json"), read_rows(run / "questions.jsonl")
    overall = result["overall"]
    assert overall["fact"]["tuned"]["right"] == overall["exact"]["tuned"]["right"] == 4 == result["ended"]["tuned"]
    assert overall["exact"]["base"]["right"] == 0
    assert overall["exact"]["paired"] == {"only_base": 0, "only_tuned": 4, "p": 0.125}
    assert list(result["per_kind"]) == ["place", "size"]
    assert result["per_kind"]["size"]["exact"]["tuned"]["of"] == 2
    assert result["base"] == "base" and result["without_base"] is None and result["set_aside"] == []
    assert [row["wanted"] for row in answers] == [row["answer"] for row in rows()]
    assert [row["answered"] for row in answers] == [row["answer"] for row in rows()]
    assert all(row["right"] and row["exact"] and not row["base_exact"] for row in answers)
    printed = capsys.readouterr().out
    assert "100.0 % (51.0 to 100.0)" in printed and "McNemar exact p = 0.12" in printed


def test_a_question_is_asked_id_by_id_as_in_training(project: Path) -> None:
    run = Run(project / "runs" / "tuned")
    tokenizer = Tokenizer(run.tokenizer)
    for record, row in zip(
        questions_and_answers("", (project / "train.txt").read_text(encoding="utf-8")), rows(), strict=True
    ):
        trained = render(record, tokenizer, "completion")  # type: ignore[arg-type]
        assert prompt_style(run).ids(tokenizer, row["question"]) == trained.ids[~trained.learned][1:].tolist()  # type: ignore[union-attr]


def test_the_text_that_an_instruction_is_about_is_asked_too(project: Path) -> None:
    run = Run(project / "runs" / "tuned")
    tokenizer, path = Tokenizer(run.tokenizer), run.path / "examples.json"
    assert "the word?\n\nin a line" in tokenizer.decode(prompt_style(run).ids(tokenizer, "the word?", "in a line"))
    saved = read_json(path)
    path.write_text(json.dumps({**saved, "style": {"format": "alpaca"}}), encoding="utf-8")
    text = tokenizer.decode(prompt_style(run).ids(tokenizer, "the word?", "in a line"))
    assert text.endswith("### Instruction:\nthe word?\n\n### Input:\nin a line\n\n### Response:")


def test_a_run_that_cannot_be_asked_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match=r"base was not fine-tuned on examples .* no examples.json"):
        main(["base", "held_out.jsonl"])
    for content in ("{", '{"style": 3, "template_variables": {}}', '{"style": {}}', "[]"):
        (project / "runs" / "tuned" / "examples.json").write_text(content)
        with pytest.raises(UserError, match=r"examples.json is damaged"):
            main(["tuned", "held_out.jsonl"])
    with pytest.raises(UserError, match=r"missing.jsonl cannot be read \(No such file"):
        main(["tuned", "missing.jsonl"])
    with pytest.raises(UserError, match="--limit 0 is too small"):
        main(["tuned", "held_out.jsonl", "--limit", "0"])


def test_without_its_base_the_run_is_asked_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tuned", "held_out.jsonl", "--max-new-tokens", "2", "--limit", "2"]
    main([*arguments, "--no-base"])
    assert "the base was not asked: not asked for" in capsys.readouterr().out
    (project / "runs" / "base").rename(project / "runs" / "moved")
    main(arguments)
    assert "the base was not asked: no run 'base'" in capsys.readouterr().out
    result = read_json(project / "runs" / "tuned" / "questions.json")
    assert result["base"] is None and set(result["overall"]["fact"]) == {"tuned"}
    assert result["overall"]["fact"]["tuned"]["of"] == 2 and result["ended"]["tuned"] == 0


def test_damaged_rows_are_set_aside(tmp_path: Path) -> None:
    good = json.dumps(rows()[0])
    damaged = {
        "{": "no valid JSON",
        "3": "no JSON object",
        '{"question": "a", "answer": "b"}': "it has no fact",
        '{"question": "a", "answer": 3, "fact": "b"}': "answer is no text",
        '{"question": "a", "answer": "b", "fact": " .", "kind": "c"}': "it has no fact",
        '{"question": "a", "answer": "b", "fact": "c", "kind": "\\ud800"}': "half a character",
    }
    path = tmp_path / "held_out.jsonl"
    path.write_text("\ufeff" + "\r\n".join([good, *damaged, good]), encoding="utf-8")
    questions, problems = read_questions(path)
    assert [question.subject for question in questions] == ["model", "model"]
    assert [problem.line for problem in problems] == list(range(2, 8))
    for problem, reason in zip(problems, damaged.values(), strict=True):
        assert reason in problem.reason
    path.write_text("\n".join(damaged), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no question; .* the first row: .*held_out.jsonl:1: no valid JSON"):
        read_questions(path)


@pytest.mark.parametrize(
    ("answer", "fact", "right"),
    [
        ("Mide 0,4 m.", "0,4 m", True),
        ("Mide 10,4 m.", "0,4 m", False),
        ("Vive en POBLACIÓN   Lavanda", "poblacion lavanda", True),
        ("Es de tipo Fuego/Volador.", "Fuego", False),
        ("Es de lavanda", "lava", False),
        ("Tiene 30 años", "30 anos", False),
        ("Tiene 30 an\u0303os", "30 años", True),
        ("un río", "Un río.", True),
        ("the small text", "THE SMALL TEXT", False),
        ("It is THE SMALL TEXT.", "THE SMALL TEXT", True),
        ("", "a", False),
    ],
)
def test_what_states_a_fact(answer: str, fact: str, right: bool) -> None:
    assert has_fact(answer, Question("", fact, fact, "", "")) is right


def test_what_is_an_exact_match() -> None:
    question = Question("", "Pikachu es de tipo Eléctrico.", "Eléctrico", "", "")
    assert is_exact("  pikachu es  de tipo electrico ", question)
    assert not is_exact("Pikachu es de tipo Eléctrico y Fuego.", question)
    assert has_fact("Pikachu es de tipo Eléctrico y Fuego.", question)  # as documented: a part may be wrong
    assert (
        normalised("«¿Qué?»") == "que" and normalised("Ñandú") == "ñandu" and normalised("AB", keep_case=True) == "AB"
    )


@pytest.mark.parametrize(("right", "of"), [(0, 1), (0, 30), (1, 1), (7, 40), (40, 40), (999, 2000)])
def test_the_interval_is_that_of_wilson(right: int, of: int) -> None:
    expected = scipy.stats.binomtest(right, of).proportion_ci(0.95, method="wilson")
    found = Proportion.count(right, of)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.share == right / of and 0 <= found.low <= found.share <= found.high <= 1


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (3, 3), (2, 9), (40, 12), (0, 3000)])
def test_the_paired_p_is_that_of_a_binomial_test(first: int, second: int) -> None:
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(expected, rel=1e-9, abs=1e-300)
