"""Files of examples: every format, and that what is wrong with one record does not cost the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from data_pipeline.examples.formats import FORMATS, RecordFile, read_records
from data_pipeline.examples.json_values import json_values
from data_pipeline.examples.prompts import PromptStyle, alpaca_prompt, qa_prompt
from data_pipeline.examples.records import ChatText, Completion, Conversation, PlainText

HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
CHAT = (
    "<|begin_of_text|>" + HEADER.format("system") + "Sé breve.<|eot_id|>"
    + HEADER.format("user") + "¿Plazo?<|eot_id|>" + HEADER.format("assistant") + "Diez días.<|eot_id|>"
)  # fmt: skip


def read(tmp_path: Path, content: str | bytes, name: str = "file.txt", format: Any = "auto") -> RecordFile:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_records(path, format)


def rows(*values: Any) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def pairs(file: RecordFile) -> list[tuple[str, str]]:
    contents = [record.content for record in file.records]
    return [(content.prompt, content.completion) for content in contents if isinstance(content, Completion)]


def reasons(file: RecordFile) -> list[tuple[int, str]]:
    return [(problem.line, problem.reason) for problem in file.problems]


QA = """###
Pregunta: ¿Qué tipo de Pokémon es Pikachu?
Respuesta: Pikachu es un Pokémon de tipo Eléctrico.
###

###
Pregunta: Describe a Charizard
Respuesta: Charizard es un Pokémon
con forma de dragón.

- Fuego
- Volador
###
"""
PIKACHU = (
    "Pregunta: ¿Qué tipo de Pokémon es Pikachu?\nRespuesta:", " Pikachu es un Pokémon de tipo Eléctrico."
)  # fmt: skip
CHARIZARD = (
    "Pregunta: Describe a Charizard\nRespuesta:",
    " Charizard es un Pokémon\ncon forma de dragón.\n\n- Fuego\n- Volador",
)


@pytest.mark.parametrize(
    "content",
    [
        QA,
        "\ufeff" + QA,
        QA.replace("\n", "\r\n"),
        QA.replace("\n", "\r"),
        QA.replace("###\n\n###\n", "###\n"),  # one mark between two blocks
        QA.replace("###\n\n###\n", "\n"),  # none
        QA.removesuffix("###\n"),
        QA.removeprefix("###\n"),
        QA.replace("Pregunta:", "PREGUNTA :").replace("Respuesta:", "  respuesta:"),
        QA.replace("\n###", " ###").replace("###\nPregunta", "### Pregunta"),
        "\n\n" + QA.replace("###", " ### ") + "\n \n",
    ],
)
def test_questions_and_answers(tmp_path: Path, content: str) -> None:
    found = read(tmp_path, content)
    assert found.format == "qa" and not found.problems and pairs(found) == [PIKACHU, CHARIZARD]
    assert {record.style for record in found.records} == {PromptStyle("qa", "Pregunta", "Respuesta")}


def test_questions_in_english_keep_their_labels(tmp_path: Path) -> None:
    found = read(tmp_path, "###\nquestion: What is it?\nANSWER: A mouse.\n###\n")
    assert pairs(found) == [("Question: What is it?\nAnswer:", " A mouse.")]
    assert found.records[0].style.prompt("Why?") == qa_prompt("Why?", "Question", "Answer")


def test_lines_of_records_are_known(tmp_path: Path) -> None:
    assert [record.line for record in read(tmp_path, QA).records] == [2, 7]


def test_headings_and_words_with_hashes_end_no_answer(tmp_path: Path) -> None:
    found = read(tmp_path, "###\nPregunta: a\nRespuesta: b\n### Título\n#### Otro ####\n#### \nfin\n###\n")
    assert pairs(found) == [("Pregunta: a\nRespuesta:", " b\n### Título\n#### Otro ####\n#### \nfin")]


def test_a_bad_block_is_reported_and_the_rest_is_kept(tmp_path: Path) -> None:
    blocks = [
        "Pregunta: sin respuesta", "Respuesta: sin pregunta", "Pregunta:\nRespuesta: vacía",
        "Pregunta: x\nRespuesta:  ", "Un título", "Pregunta: a\nRespuesta: b\nRespuesta: c",
        "Título\nPregunta: a\nRespuesta: b",
    ]  # fmt: skip
    found = read(tmp_path, QA + "".join(f"###\n{block}\n###\n" for block in blocks) + QA)
    assert pairs(found) == [PIKACHU, CHARIZARD] * 2
    said = [reason for _, reason in reasons(found)]
    assert said[0] == "Pregunta: without an answer after it" and said[1] == "Respuesta: without a question before it"
    assert said[2] == "nothing stands behind Pregunta:" and said[3] == "nothing stands behind Respuesta:"
    assert said[4] == said[6] and "neither question nor answer" in said[4] and said[5] == "two answers to one question"
    lines = (tmp_path / "file.txt").read_text(encoding="utf-8").split("\n")
    assert all(lines[number - 1].startswith(block) for (number, _), block in zip(
        reasons(found), [block.split("\n")[0] for block in blocks], strict=True
    ))  # fmt: skip


def test_a_question_after_a_question_without_answer_is_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, "###\nPregunta: a\nPregunta: b\nRespuesta: c\n###\n")
    assert pairs(found) == [("Pregunta: b\nRespuesta:", " c")]
    assert reasons(found) == [(2, "Pregunta: without an answer after it")]


def test_a_byte_that_is_not_utf8_costs_its_record_only(tmp_path: Path) -> None:
    damaged = QA.encode().replace("dragón".encode(), b"drag\xf3n")
    found = read(tmp_path, damaged)
    assert pairs(found) == [PIKACHU]
    assert reasons(found) == [(9, "byte 0xF3 is no UTF-8; save the file as UTF-8")]
    assert [line for line, _ in reasons(read(tmp_path, damaged + damaged))] == [9, 9 + QA.count("\n")]
    content = rows({"prompt": "a", "completion": "b"}).encode() + b'{"prompt": "a", "completion": "\xe9"}\n'
    found = read(tmp_path, content + rows({"prompt": "c", "completion": "d"}).encode(), "a.jsonl")
    assert pairs(found) == [("a", "b"), ("c", "d")] and reasons(found)[0][0] == 2
    found = read(tmp_path, b"uno\n---\ndos\nd\xf3s\n---\ntres", format="text")
    assert [record.content for record in found.records] == [PlainText("uno"), PlainText("tres")]
    assert reasons(found)[0][0] == 4
    found = read(tmp_path, '{"prompt": "a", "completion": "\\ud83d"}', "a.jsonl")
    assert reasons(found) == [(1, "half of a character; save the file as UTF-8")]


@given(st.lists(st.text(alphabet=st.sampled_from("aé #\n:PR¿"), max_size=12), min_size=1, max_size=4))
def test_any_answer_comes_back(tmp_path_factory: pytest.TempPathFactory, answers: list[str]) -> None:
    answers = [f"x{answer}x".replace("###", "#") for answer in answers]
    content = "".join(f"###\nPregunta: q\nRespuesta: {answer}\n###\n\n" for answer in answers)
    found = read(tmp_path_factory.mktemp("qa"), content)
    assert not found.problems and [completion for _, completion in pairs(found)] == [f" {answer}" for answer in answers]


ALPACA: list[dict[str, Any]] = [
    {"instruction": "Resume", "input": "El {instruction} es.", "output": "Aprende."},
    {"instruction": "Traduce {input}", "input": "", "output": "Hello"},
    {"instruction": "Saluda", "output": "Hola"},
    {"instruction": "Saluda", "input": None, "output": "Hola"},
]


@pytest.mark.parametrize(
    "content",
    [rows(*ALPACA), json.dumps(ALPACA), json.dumps(ALPACA, indent=2), "\ufeff" + json.dumps(ALPACA, indent=1)],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_alpaca(tmp_path: Path, content: str, name: str) -> None:
    found = read(tmp_path, content, name)
    assert (found.format, found.problems) == ("alpaca", [])
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nResume\n\n### Input:\nEl {instruction}"
        " es.\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{}\n\n### Response:"
    )
    hello = (without.replace("{}", "Saluda"), "\nHola")
    translated = (without.replace("{}", "Traduce {input}"), "\nHello")
    assert pairs(found) == [(with_input, "\nAprende."), translated, hello, hello]
    assert found.records[0].style.prompt("Saluda") == hello[0] == alpaca_prompt("Saluda")


def test_lines_of_a_list_are_known(tmp_path: Path) -> None:
    found = read(tmp_path, json.dumps(ALPACA, indent=2), "a.json")
    assert [record.line for record in found.records] == [2, 7, 12, 16]


MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def test_messages_and_sharegpt_are_conversations(tmp_path: Path) -> None:
    found = read(tmp_path, rows({"messages": MESSAGES}, {"messages": MESSAGES[1:], "source": 1}), "a.jsonl")
    assert found.format == "messages" and [record.content for record in found.records] == [
        Conversation(tuple(MESSAGES)),
        Conversation(tuple(MESSAGES[1:])),
    ]
    assert found.records[0].style.prompt("x") == (MESSAGES[0], {"role": "user", "content": "x"})
    assert found.records[1].style.prompt("x") == ({"role": "user", "content": "x"},)
    names = [("system", "human", "gpt"), ("system", "user", "assistant")]
    values = [{"conversations": [{"from": n, "value": v} for n, v in zip(of, "sua", strict=True)]} for of in names]
    found = read(tmp_path, json.dumps(values), "a.json")
    assert found.format == "sharegpt" and [r.content for r in found.records] == [Conversation(tuple(MESSAGES))] * 2


def test_prompts_with_completions_are_taken_as_they_are(tmp_path: Path) -> None:
    found = read(tmp_path, rows({"prompt": " a\n", "completion": "\tb "}), "a.jsonl")
    assert found.format == "prompt_completion" and pairs(found) == [(" a\n", "\tb ")]
    assert found.records[0].style.prompt("x") == "x"


def test_chat_text_is_told_from_plain_text(tmp_path: Path) -> None:
    found = read(tmp_path, rows({"text": CHAT}), "a.jsonl")
    assert found.format == "chat_text" and found.records[0].content == ChatText(CHAT)
    found = read(tmp_path, rows({"text": "uno"}, {"text": "dos\n---\n"}), "a.jsonl")
    assert found.format == "text"
    assert [record.content for record in found.records] == [PlainText("uno"), PlainText("dos\n---\n")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("uno\n\n\ndos\n", [(1, "uno\n\n\ndos")]),
        ("\n  uno\n---\n\n---\ndos\n\n<|endoftext|>\ntres", [(2, "  uno"), (6, "dos"), (9, "tres")]),
        ("a --- b\n----\n", [(1, "a --- b\n----")]),
        ("uno\r\n --- \r\ndos", [(1, "uno"), (3, "dos")]),
        ("Pregunta: nadie sabe", [(1, "Pregunta: nadie sabe")]),
    ],
)
def test_documents(tmp_path: Path, content: str, expected: list[tuple[int, str]]) -> None:
    found = read(tmp_path, content)
    assert found.format == "text" and not found.problems
    contents = [(record.line, record.content) for record in found.records]
    assert contents == [(line, PlainText(text)) for line, text in expected]


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("alpaca", {"instruction": "a"}, "it has no field 'output'"),
        ("alpaca", {"instruction": "a", "output": " "}, "'output' is empty"),
        ("alpaca", {"instruction": "a", "input": 3, "output": "b"}, "'input' must be text, not int"),
        ("alpaca", ["a", "b"], "a record is a JSON object, with braces around it"),
        ("prompt_completion", {"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ("prompt_completion", {"prompt": "a", "completion": None}, "'completion' must be text, not NoneType"),
        ("messages", {"messages": []}, "'messages' must be a list of objects, one a turn"),
        ("messages", {"messages": ["hola"]}, "'messages' must be a list of objects, one a turn"),
        ("messages", {"conversations": []}, "'messages' must be a list of objects, one a turn"),
        ("messages", {"messages": [{"role": "asistant", "content": "a"}]}, "the role of message 1 is 'asistant'"),
        ("messages", {"messages": [*MESSAGES[:2], {"role": "assistant", "content": ""}]}, "message 3 (assistant): "),
        ("messages", {"messages": [{"role": "user"}]}, "message 1 (user): 'content' must be text, not NoneType"),
        ("messages", {"messages": [{"content": "a"}]}, "it has no field 'role'"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "a"}]}, "'from' is 'alien', none of system, human"),
        ("sharegpt", {"conversations": [{"from": "gpt"}]}, "message 1 (assistant): 'content' must be text"),
        ("text", {"text": 1}, "'text' must be text, not int"),
        ("text", {"text": "\n"}, "'text' is empty"),
        ("chat_text", {"text": "hola"}, "it does not begin with a header"),
        ("chat_text", {"text": "hola" + CHAT}, "<|begin_of_text|> stands twice, or not at the beginning"),
        ("chat_text", {"text": CHAT.replace("of_text|>", "of_text|>hola", 1)}, "it does not begin with a header"),
        ("chat_text", {"text": "<|begin_of_text|>" + CHAT}, "<|begin_of_text|> stands twice"),
        ("chat_text", {"text": CHAT.removesuffix("<|eot_id|>")}, "turn 3 (assistant) does not end with <|eot_id|>"),
        ("chat_text", {"text": CHAT + "más"}, "turn 3 (assistant) does not end with <|eot_id|>, or text stands behind"),
        ("chat_text", {"text": CHAT.replace("¿Plazo?", "¿Plazo?<|eot_id|>más")}, "turn 2 (user) does not end with"),
        ("chat_text", {"text": CHAT.replace("user<|end", "user<|End")}, "a header is not written as"),
        ("chat_text", {"text": CHAT.replace("Diez días.", " ")}, "the answer in turn 3 is empty"),
    ],
)
def test_a_bad_row_is_reported_and_the_rest_is_kept(tmp_path: Path, format: str, row: Any, reason: str) -> None:
    good = {
        "alpaca": ALPACA[0], "messages": {"messages": MESSAGES}, "text": {"text": "a"}, "chat_text": {"text": CHAT},
        "prompt_completion": {"prompt": "a", "completion": "b"},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}]},
    }[format]  # fmt: skip
    found = read(tmp_path, rows(good, row, good), "a.jsonl", format)
    assert [record.line for record in found.records] == [1, 3]
    assert len(found.problems) == 1 and found.problems[0].line == 2 and found.problems[0].reason.startswith(reason)
    assert str(found.problems[0]).startswith(f"{tmp_path / 'a.jsonl'}:2: ")


def test_damaged_json_costs_its_line_only(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "a", "completion": "b"})
    lines = [good, good[:-3], "", "nada", good, "[" * 100_000, "3", good + good]
    found = read(tmp_path, "\n".join(lines), "a.jsonl")
    assert [record.line for record in found.records] == [1, 5]
    said = reasons(found)
    assert [line for line, _ in said] == [2, 4, 6, 7, 8]
    assert said[0][1] == "no valid JSON: Unterminated string starting at at column 31"
    assert said[2][1] == "no valid JSON: nested too deeply"


def test_a_damaged_element_costs_itself_only(tmp_path: Path) -> None:
    text = json.dumps(ALPACA, indent=2)
    lines = text.split("\n")
    lines[7] = lines[7].rstrip(",")  # of the second element
    found = read(tmp_path, "\n".join(lines), "a.json")
    assert [record.line for record in found.records] == [2, 12, 16] and [line for line, _ in reasons(found)] == [7]
    one_line = json.dumps(ALPACA).replace('"Hello"', '"Hello')
    found = read(tmp_path, one_line, "a.json", "alpaca")
    assert len(found.records) == 3 and len(found.problems) == 1


JSON_OBJECTS = st.lists(
    st.dictionaries(
        st.text(max_size=4), st.text(max_size=8) | st.integers() | st.lists(st.text(max_size=3)), min_size=1
    )
)


@given(JSON_OBJECTS, st.sampled_from([None, 0, 2]))
def test_values_come_back_from_lists_and_lines(values: list[Any], indent: int | None) -> None:
    whole = json.dumps(values, indent=indent, ensure_ascii=False)
    assert [(value, reason) for _, value, reason in json_values(whole)] == [(value, "") for value in values]
    lines = "".join(json.dumps(value) + "\n" for value in values)
    assert [found[:2] for found in json_values(lines)] == list(enumerate(values, 1))
    spread = "\n".join(json.dumps(value, indent=2) for value in values)
    assert [value for _, value, _ in json_values(spread)] == values
    begun = "\n".join("{" + json.dumps(value, indent=2)[1:].lstrip() for value in values)  # a field beside the bracket
    assert [value for _, value, _ in json_values(begun)] == values


def test_a_damaged_first_line_of_json_lines_costs_itself_only() -> None:
    damaged = '{"messages": [{"role": "user"}, {"role": "assistant"]}\n{"b": 1}\n'
    assert [(line, value) for line, value, _ in json_values(damaged)] == [(1, None), (2, {"b": 1})]


@given(JSON_OBJECTS, st.data())
def test_whatever_is_cut_out_reading_goes_on(values: list[Any], data: st.DataObject) -> None:
    text = json.dumps([{"first": 1}, *values, {"last": 2}], indent=1)
    start = data.draw(st.integers(2, len(text) - 20))
    kept = text[:start] + text[start + data.draw(st.integers(0, 20)) :]
    found = list(json_values(kept + '\n{"behind": 3}'))
    assert found[-1][1:] == ({"behind": 3}, "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.jsonl", "\n", "it holds no JSON objects"),
        ("a.jsonl", rows({"frage": "a", "antwort": "b"}), "it has only the fields antwort, frage"),
        (
            "a.jsonl",
            rows({"messages": [], "prompt": "", "completion": ""}),
            r"could be messages \(line 1\) or prompt_c",
        ),
        ("a.jsonl", rows({"text": "a"}, {"text": CHAT}), r"could be text \(line 1\) or chat_text \(line 2\)"),
        ("a.txt", "Pregunta: a\nRespuesta: b\n", "say whether its format is qa or text"),
        ("a.csv", "a,b\n1,2\n", "format of .*a.csv is unknown"),
        ("a.txt", "a\0b", "is unknown"),
        ("a.txt", "hola".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_format_that_is_not_clear_is_asked_for(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, content, name)
    if "say which it is" in str(error.value):
        assert all(format in str(error.value) for format in FORMATS)


def test_a_format_that_is_named_is_taken(tmp_path: Path) -> None:
    both: dict[str, Any] = {**ALPACA[0], "text": "alles"}
    assert read(tmp_path, rows(both), "a.jsonl").format == "alpaca"  # such a text is the same once more
    assert read(tmp_path, rows(both), "a.jsonl", "text").records[0].content == PlainText("alles")
    assert read(tmp_path, "Pregunta: a\nRespuesta: b\n", format="qa").records
    assert read(tmp_path, "Pregunta: a\nRespuesta: b\n", format="text").records[0].line == 1
    assert read(tmp_path, '{"text": "a"}', "a.txt", "text").records[0].content == PlainText('{"text": "a"}')


def test_a_file_that_cannot_be_read_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the examples in .*nowhere\.txt: No such file"):
        read_records(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="Is a directory"):
        read_records(tmp_path)
