"""Files as sets of examples: what is held out, what is cut, what is said of it, and what is refused before training."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tokenizers import make_foreign
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer_foreign import LLAMA3_CHAT, chat

from common.cli import from_dict, to_dict
from common.errors import UserError
from common.files import write_json
from data_pipeline.examples.dataset import ExampleOptions, ExampleSet, LoadedExamples, load_examples
from data_pipeline.examples.prompts import PromptStyle
from data_pipeline.examples.records import Completion, Conversation, Record
from data_pipeline.examples.rendering import render_prompt
from data_pipeline.examples.splits import held_out, in_fold
from data_pipeline.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_foreign("ours", tmp_path_factory.mktemp("tokenizer"))


def qa(*pairs: tuple[str, str]) -> str:
    return "".join(f"###\nPregunta: {question}\nRespuesta: {answer}\n###\n\n" for question, answer in pairs)


PAIRS = [(f"¿Cuánto es {n} + {n}?", f"Son {2 * n}.") for n in range(60)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def texts(examples: ExampleSet | None, tokenizer: Tokenizer) -> list[str]:
    assert examples is not None
    return [tokenizer.decode(examples.ids(number).tolist()) for number in range(len(examples))]


def load(path: Path, tokenizer: Tokenizer, **options: Any) -> LoadedExamples:
    return load_examples([path], tokenizer, ExampleOptions(**options))


def test_examples_lie_one_behind_the_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = load(write(tmp_path / "a.txt", qa(*PAIRS)), tokenizer)
    train = found.train
    assert found.validation is None and len(train) == 60
    assert texts(train, tokenizer) == [f"Pregunta: {q}\nRespuesta: {a}" for q, a in PAIRS]
    for number, (question, answer) in enumerate(PAIRS):
        ids, learned = train.ids(number), train.learned(number)
        assert ids.dtype == np.int32 and learned.dtype == bool and len(ids) == len(learned) == train.lengths[number]
        prompt = render_prompt(found.style.prompt(question), tokenizer)
        assert ids[: len(prompt)].tolist() == prompt.tolist() and not learned[: len(prompt)].any()
        assert ids[len(prompt) :].tolist() == [*tokenizer.encode(f" {answer}"), tokenizer.eos_id]
        assert learned[len(prompt) :].all()
        assert train.place(number) == f"{tmp_path / 'a.txt'}:{2 + 5 * number}"
    assert train.targets == sum(len(tokenizer.encode(f" {answer}")) + 1 for _, answer in PAIRS)
    assert train.text_bytes == sum(len(f" {answer}".encode()) for _, answer in PAIRS)
    assert found.style == PromptStyle("qa", "Pregunta", "Respuesta")


def test_equal_files_are_equal_examples(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.txt", qa(*PAIRS))
    first, again = (load(path, tokenizer, validation_fraction=0.2) for _ in range(2))
    assert first.validation is not None and again.validation is not None
    assert first.train.fingerprint == again.train.fingerprint != first.validation.fingerprint
    assert first.validation.fingerprint == again.validation.fingerprint
    assert first.report == again.report
    whole = load(path, tokenizer).train.fingerprint
    assert whole != load(path, tokenizer, learn="all").train.fingerprint
    assert whole != load(write(tmp_path / "b.txt", qa(*PAIRS[1:], PAIRS[0])), tokenizer).train.fingerprint
    assert whole == load(write(tmp_path / "c.txt", qa(*PAIRS)), tokenizer).train.fingerprint


def test_what_is_held_out_stays_so_when_lines_are_added(tmp_path: Path, tokenizer: Tokenizer) -> None:
    options = {"validation_fraction": 0.25, "seed": 3}
    few = load(write(tmp_path / "a.txt", qa(*PAIRS[:70])), tokenizer, **options)
    many = load(write(tmp_path / "b.txt", qa(*reversed(PAIRS))), tokenizer, **options)
    held_out_first = set(texts(few.validation, tokenizer))
    assert 4 <= len(held_out_first) <= 16 and held_out_first <= set(texts(many.validation, tokenizer))
    assert set(texts(few.train, tokenizer)) <= set(texts(many.train, tokenizer))
    other = load(tmp_path / "a.txt", tokenizer, validation_fraction=0.25, seed=4)
    assert set(texts(other.validation, tokenizer)) != held_out_first


def record(question: str, answer: str = "x") -> Record:
    return Record("a", 1, Completion(question, answer), PromptStyle("prompt_completion"))


@given(st.lists(st.sampled_from("abcdefghij"), min_size=2).filter(lambda q: len(set(q)) > 1), st.floats(0.01, 0.99))
def test_who_asks_the_same_is_on_the_same_side(questions: list[str], fraction: float) -> None:
    records = [record(question, str(number)) for number, question in enumerate(questions)]
    for chosen in (held_out(records, fraction, 0), in_fold(records, 2, 1, 0)):
        sides = [{q for q, out in zip(questions, chosen, strict=True) if out is side} for side in (False, True)]
        assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_about_the_fraction_is_held_out() -> None:
    chosen = held_out([record(str(number)) for number in range(5000)], 0.1, 0)
    assert 400 < sum(chosen) < 600


@given(st.integers(2, 7), st.integers(7, 40), st.integers(0, 3))
def test_every_question_is_in_one_fold(folds: int, count: int, seed: int) -> None:
    records = [record(str(number)) for number in range(count)]
    chosen = np.array([in_fold(records, folds, fold, seed) for fold in range(folds)])
    assert (chosen.sum(axis=0) == 1).all()
    assert set(chosen.sum(axis=1)) <= {count // folds, -(-count // folds)}


def test_folds_are_loaded_one_by_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.txt", qa(*PAIRS))
    seen: list[str] = []
    for fold in range(3):
        found = load(path, tokenizer, folds=3, fold=fold)
        assert len(found.train) == 40
        seen += texts(found.validation, tokenizer)
    assert sorted(seen) == sorted(f"Pregunta: {q}\nRespuesta: {a}" for q, a in PAIRS)


def test_the_first_question_decides_the_side_of_a_conversation() -> None:
    def talk(*said: str) -> Record:
        roles = ("user", "assistant", "user", "assistant")
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        return Record("a", 1, Conversation(tuple(messages)), PromptStyle("messages"))

    assert talk("a", "b").question == talk("a", "c", "d", "e").question != talk("b", "b").question
    assert talk("a", "b").identity == talk("a", "b").identity != talk("a", "c").identity


def test_training_records_that_are_validated_on_are_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = write(tmp_path / "train.txt", qa(*PAIRS, PAIRS[5], PAIRS[5]))
    other_answer = (PAIRS[0][0], "Otra cosa.")
    validation = write(tmp_path / "val.txt", qa(PAIRS[5], PAIRS[9], other_answer))
    found = load(train, tokenizer, validation_files=(str(validation),))
    assert found.report.duplicates == 4 and len(found.train) == 58
    assert not set(texts(found.train, tokenizer)) & set(texts(found.validation, tokenizer))
    assert [(file.split, file.records) for file in found.report.files] == [("train", 62), ("validation", 3)]
    assert any("because they stand in the validation set: 4" in line for line in found.report.lines())


LONG = ("¿Larga?", "palabra " * 50 + "fin")


def test_long_examples_are_cut_at_the_end_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = load(write(tmp_path / "a.txt", qa(LONG, PAIRS[0])), tokenizer).train
    found = load(tmp_path / "a.txt", tokenizer, max_length=70)
    assert found.train.ids(0).tolist() == whole.ids(0).tolist()[:70]
    assert found.train.learned(0).tolist() == whole.learned(0).tolist()[:70]
    assert found.train.ids(1).tolist() == whole.ids(1).tolist()
    assert (found.report.truncated, found.report.dropped, found.report.divided) == (1, 0, 0)
    assert found.report.lengths["longest"] == len(whole.ids(0))  # before it was cut
    learned = tokenizer.decode(found.train.ids(0)[found.train.learned(0)].tolist())
    assert found.train.text_bytes == len(learned.encode()) + len(b" Son 0.")
    assert any("longer than 70 tokens and cut at the end: 1" in line for line in found.report.lines())


def test_an_example_without_a_target_left_is_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.txt", qa(("larga " * 50, "sí"), PAIRS[0]))
    found = load(path, tokenizer, max_length=70)
    assert (len(found.train), found.report.truncated, found.report.dropped) == (1, 1, 1)
    assert any(
        "cut at the end: 1 (dropped, because nothing to learn was left: 1)" in line for line in found.report.lines()
    )
    assert len(load(path, tokenizer, max_length=70, learn="all").train) == 2


def test_long_documents_are_divided_and_each_token_is_predicted_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first, second = "Érase 😀 una vez. " * 40, "Corto."
    path = write(tmp_path / "a.txt", f"{first}\n---\n{second}\n")
    found = load(path, tokenizer, max_length=32)
    train = found.train
    expected = [*tokenizer.encode(first.strip()), tokenizer.eos_id, *tokenizer.encode(second), tokenizer.eos_id]
    parts = [train.ids(number).tolist() for number in range(len(train))]
    assert all(part[0] == tokenizer.bos_id and len(part) <= 32 for part in parts)
    assert [token for part in parts for token in part[1:]] == expected
    assert all(
        train.learned(number).tolist() == [False] + [True] * (len(parts[number]) - 1) for number in range(len(parts))
    )
    assert all(len(part) == 32 for part in parts[:-2])
    assert train.text_bytes == len((first.strip() + second).encode())
    assert (found.report.divided, found.report.truncated, found.report.records) == (1, 0, 2)
    assert {train.place(number) for number in range(len(train) - 1)} == {f"{path}:1"}


@given(text=st.text(st.sampled_from("aé😀 .\n"), min_size=1, max_size=200).filter(str.strip), length=st.integers(2, 20))
def test_no_token_of_a_document_is_lost(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, text: str, length: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text(json.dumps({"text": text}))
    train = load(path, tokenizer, max_length=length).train
    parts = [train.ids(number).tolist() for number in range(len(train))]
    assert [token for part in parts for token in part[1:]] == [*tokenizer.encode(text), tokenizer.eos_id]
    assert train.targets == len(tokenizer.encode(text)) + 1 and int(train.lengths.max()) <= length


def test_files_of_several_formats_are_one_set(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path, LLAMA3_CHAT)
    user, assistant = {"role": "user", "content": "¿Plazo?"}, {"role": "assistant", "content": "Diez días."}
    texts_of = {
        "qa.txt": qa(*PAIRS[:2]),
        "alpaca.json": json.dumps([{"instruction": "Saluda", "output": "Hola"}]),
        "messages.jsonl": json.dumps({"messages": [user, assistant]}),
        "sharegpt.json": json.dumps(
            [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
        ),
        "pairs.jsonl": json.dumps({"prompt": "a", "completion": "b"}),
        "chat.jsonl": json.dumps({"text": tokenizer_text("¿Y?", "Sí.")}),
        "prose.txt": "Érase una vez.",
    }
    files = [write(tmp_path / name, text) for name, text in texts_of.items()]
    found = load_examples(files, tokenizer, ExampleOptions())
    expected = ["qa", "alpaca", "messages", "sharegpt", "prompt_completion", "chat_text", "text"]
    assert [file.format for file in found.report.files] == expected and len(found.train) == 8
    assert found.style.format == "qa" and not found.report.problems and not found.report.notes
    ends = {int(found.train.ids(number)[-1]) for number in range(8)}
    assert ends == {tokenizer.eos_id, tokenizer.special_ids["<|eot_id|>"]}
    assert all(found.train.learned(number)[-1] for number in range(8))


def tokenizer_text(question: str, answer: str) -> str:
    header = "<|start_header_id|>{}<|end_header_id|>\n{}<|eot_id|>\n"
    return "<|begin_of_text|>" + header.format("user", question) + header.format("assistant", answer).strip("\n")


def test_a_question_is_asked_as_most_examples_ask(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path, LLAMA3_CHAT)
    lines = [json.dumps({"text": tokenizer_text(f"¿{n}?", f"{n}.")}) for n in range(5)]
    found = load(write(tmp_path / "a.jsonl", "\n".join(lines)), tokenizer)
    assert found.style == PromptStyle("chat_text", after_header="\n", after_turn="\n")
    prompt = render_prompt(found.style.prompt("¿3?"), tokenizer)
    assert found.train.ids(3)[: len(prompt)].tolist() == prompt.tolist() and found.train.learned(3)[len(prompt)]
    assert from_dict(PromptStyle, to_dict(found.style), "style") == found.style


def test_what_was_wrong_is_in_the_report(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path, LLAMA3_CHAT)
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = [json.dumps(good), "{", json.dumps({"messages": good["messages"][:1]}), json.dumps(good)] + ["nada"] * 12
    found = load(write(tmp_path / "a.jsonl", "\n".join(rows)), tokenizer)
    assert found.report.records == 2 and [problem.line for problem in found.report.problems] == [2, *range(5, 17), 3]
    lines = found.report.lines()
    assert "set aside: 14" in lines and lines[-1] == "  and 4 more"
    assert f"  {tmp_path / 'a.jsonl'}:2: no valid JSON: Expecting property name" in "\n".join(lines)
    write_json(tmp_path / "examples.json", found.report.to_dict())
    saved = json.loads((tmp_path / "examples.json").read_text(encoding="utf-8"))
    assert saved["problems"][0]["line"] == 2 and saved["files"][0]["format"] == "messages"
    assert 0 < saved["targets_share"] == found.report.targets_share < 1


def test_the_report_in_a_few_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = load(write(tmp_path / "a.txt", qa(*PAIRS)), tokenizer, folds=4, fold=0)
    lines = found.report.lines()
    assert lines[0] == f"{tmp_path / 'a.txt'}: 60 records (qa, train and validation)"
    assert lines[1].startswith("45 examples to train on, 15 to validate; ") and " tokens are learned (" in lines[1]
    assert lines[2].startswith("tokens in a record: shortest ") and len(lines) == 3
    lengths = found.report.lengths
    assert list(lengths.values()) == sorted(lengths.values()) and lengths["longest"] == int(
        max(len(tokenizer.encode(f"Pregunta: {q}\nRespuesta:")) + len(tokenizer.encode(f" {a}")) + 2 for q, a in PAIRS)
    )


def test_notes_on_what_would_surprise(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d') }}" + LLAMA3_CHAT.replace("<|eot_id|>", "<|eom|>")
    tokenizer = chat(tmp_path, dated)
    message = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", json.dumps({"messages": message}))
    notes = load(path, tokenizer).report.notes
    assert len(notes) == 2 and "pin it with the template variable date_string" in notes[0]
    assert notes[1].startswith("records whose last token does not end what a model writes: 1.")
    assert len(load(path, tokenizer, template_variables={"date_string": "26 Jul 2024"}).report.notes) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "alpaka"}, "'alpaka' is no format of examples; say which it is: format may be qa, alpaca"),
        ({"learn": "answers"}, "learn must be completion or all, not 'answers'"),
        ({"max_length": 1}, "max_length must be at least 2 tokens, not 1"),
        ({"validation_fraction": 1.0}, "validation_fraction must be from 0 to below 1, not 1.0"),
        ({"validation_fraction": -0.1}, "validation_fraction must be"),
        ({"folds": 1}, "folds must be 2 or more"),
        ({"folds": 3, "fold": 3}, "fold from 0 to below that, not 3 and 3"),
        ({"fold": 1}, "fold 1 means nothing without folds"),
        ({"folds": 2, "fold": 0, "validation_fraction": 0.1}, "validation_fraction and folds exclude each other"),
        ({"folds": 61, "fold": 0}, "61 folds need as many different examples, and there are 60"),
        ({"template_variables": {"messages": "x"}}, "the template variable messages is set by the program"),
        ({"validation_files": ("{here}/a.txt",)}, "is named twice"),
        ({"validation_files": ("{here}/b.txt",)}, "cannot read the examples in .*b.txt"),
        (
            {"validation_files": ("{here}/same.txt",)},
            r"no example to train on is left of .*also in the validation set: 60",
        ),
        ({"validation_files": ("{here}/bad.txt",)}, r"no example to validate on is left.*set aside: 1,"),
        (
            {"max_length": 5},
            r"no example to train on .*nothing to learn in the first 5 tokens .raise max_length.: 60",
        ),
        ({"format": "messages"}, r"no example to train on .*set aside: 240, such as .*a.txt:1: no valid JSON"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.txt", qa(*PAIRS))
    write(tmp_path / "same.txt", qa(*PAIRS))
    write(tmp_path / "bad.txt", "###\nPregunta: a\n###\n")
    if "validation_files" in options:
        options = {"validation_files": tuple(name.format(here=tmp_path) for name in options["validation_files"])}
    with pytest.raises(UserError, match=message):
        load(path, tokenizer, **options)


def test_files_without_examples_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="name at least one file"):
        load_examples([], tokenizer, ExampleOptions())
    with pytest.raises(UserError, match=r"nowhere.txt: No such file"):
        load(tmp_path / "nowhere.txt", tokenizer)
    with pytest.raises(UserError, match=r"no example to train on is left .*set aside: 1, such as .*:2: Pre"):
        load(write(tmp_path / "a.txt", "###\nPregunta: a\n###\n"), tokenizer, validation_fraction=0.1)
    with pytest.raises(UserError, match=r"no example to validate on is left: .*lines of --- divide it"):
        load(write(tmp_path / "b.txt", "Un solo documento."), tokenizer, validation_fraction=0.1)


def test_the_last_target_is_the_end_whatever_the_padding(tmp_path: Path) -> None:
    """The end of a text is a target although it is also what GPT-2 sees before one."""
    tokenizer = make_foreign("gpt2", tmp_path)
    train = load(write(tmp_path / "a.txt", qa(*PAIRS)), tokenizer).train
    for number in range(len(train)):
        ids, learned = train.ids(number), train.learned(number)
        assert ids[0] == ids[-1] == tokenizer.eos_id and not learned[0] and learned[-1]


def test_many_records_are_loaded_within_seconds(tmp_path: Path) -> None:
    tokenizer = make_foreign("gpt2", tmp_path)
    rng = random.Random(0)
    pairs = [(f"¿De qué tipo es el número {n}?", "Eléctrico " * rng.randint(1, 9) + str(n)) for n in range(20_000)]
    path = write(tmp_path / "a.txt", qa(*pairs))
    start = time.perf_counter()
    found = load(path, tokenizer, validation_fraction=0.1)
    assert time.perf_counter() - start < 15  # about one second; this machine may be busy
    assert found.report.records == 20_000
