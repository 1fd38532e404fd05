"""What the server sends, byte by byte where clients depend on it, and what it knows of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from serving_fixtures import Running, events_of, load, make_chat_run, running

from common.files import write_json
from inference import LoadedRun, SamplingOptions, generate
from inference.asking import EXAMPLES, prompt_style
from serving.options import ServerOptions


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return load(make_chat_run(tmp_path_factory.mktemp("format") / "tiny", context_length=128))


@pytest.fixture(scope="module")
def server(loaded: LoadedRun) -> Iterator[Running]:
    with running(loaded, ServerOptions(slots=4, max_tokens=100)) as server:
        yield server


def stream(server: Running, path: str, **body: object) -> list[str]:
    answer = server.post(path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events_of(answer.content.decode())


def test_completion_chunks_are_exact(server: Running) -> None:
    *chunks, done = stream(server, "/v1/completions", prompt="The ", max_tokens=3, seed=1)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    for number, (text, chunk) in enumerate(zip(chunks, parsed, strict=True)):
        last = number == len(chunks) - 1
        timings = chunk.pop("timings", None)
        assert (timings is not None) is last
        head = f'{{"id":"{chunk["id"]}","object":"text_completion","created":{chunk["created"]},"model":"tiny",'
        piece = json.dumps(chunk["choices"][0]["text"], ensure_ascii=False)
        reason = '"length"' if last else "null"
        body = f'"choices":[{{"index":0,"text":{piece},"logprobs":null,"finish_reason":{reason}}}]'
        assert text.startswith(head + body)
    assert parsed[-1]["choices"][0]["text"] == ""
    assert len({(chunk["id"], chunk["created"]) for chunk in parsed}) == 1


def test_chat_chunks_are_exact(server: Running) -> None:
    question = [{"role": "user", "content": "a"}]
    body = {"messages": question, "max_tokens": 3, "seed": 1, "stream_options": {"include_usage": True}}
    *chunks, usage, done = stream(server, "/v1/chat/completions", **body)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in parsed)
    choices = [chunk["choices"][0] for chunk in parsed]
    assert choices[0] == {
        "index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    assert all(set(choice["delta"]) == {"content"} and choice["finish_reason"] is None for choice in choices[1:-1])
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    last = json.loads(usage)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 3


def test_no_chunk_holds_half_a_character_or_a_stop_string(server: Running, loaded: LoadedRun) -> None:
    """Random weights write many single bytes. Whatever is stopped at, a stream never shows any of it."""
    whole = server.complete(prompt="日本", max_tokens=60, seed=4)["choices"][0]["text"]
    for stop in {whole[number : number + 3] for number in range(5, 40, 7)}:
        events = stream(server, "/v1/completions", prompt="日本", max_tokens=60, seed=4, stop=stop)
        choices = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert "".join(choice["text"] for choice in choices) == whole[: whole.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"


def test_scores_are_those_of_a_plain_pass(server: Running, loaded: LoadedRun) -> None:
    """As harnesses ask: ids, echo, one token behind. The chosen token's float is identical to its entry on top."""
    texts = ["The river town.", "def f(x):\n    return x", "日本 😀"]
    prompts = [[loaded.tokenizer.bos_id, *loaded.tokenizer.encode(text)] for text in texts]
    answer = server.complete(prompt=prompts, max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234)
    assert answer["usage"]["completion_tokens"] == len(prompts)
    for prompt, text, choice in zip(prompts, texts, answer["choices"], strict=True):
        with torch.no_grad():
            expected = loaded.model(torch.tensor([prompt]))[0].log_softmax(-1)
        scores, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(scores) == len(tops) == len(choice["logprobs"]["tokens"]) == len(prompt) + 1
        assert scores[0] is None and tops[0] is None
        for place, token in enumerate(prompt[1:]):
            assert scores[place + 1] == pytest.approx(expected[place, token].item(), abs=1e-4)
            best = max(tops[place + 1].values())
            assert best == pytest.approx(expected[place].max().item(), abs=1e-4)
            assert (scores[place + 1] == best) is (expected[place].argmax().item() == token)
        assert scores[-1] == max(tops[-1].values())
        assert choice["text"].startswith(text)
        alone = server.complete(prompt=prompt, max_tokens=0, echo=True, logprobs=1)["choices"][0]
        assert alone["text"] == text and alone["logprobs"]["token_logprobs"] == pytest.approx(scores[:-1], abs=1e-4)


def test_a_scored_text_has_its_token_even_where_that_ends_it(server: Running, loaded: LoadedRun) -> None:
    """A harness cuts one token off the end, so one must stand there."""
    model, eos = loaded.model, loaded.tokenizer.eos_id
    ending = next(
        prompt for prompt in ([a, b] for a in range(300, 400) for b in range(300, 400))
        if int(model(torch.tensor([[loaded.tokenizer.bos_id, *prompt]]))[0, -1].argmax()) == eos
    )  # fmt: skip
    scored = server.complete(prompt=ending, max_tokens=1, echo=True, logprobs=1, temperature=0)["choices"][0]
    assert len(scored["logprobs"]["tokens"]) == 3 and scored["logprobs"]["tokens"][-1] == "</s>"
    plain = server.complete(prompt=ending, max_tokens=1, logprobs=1, temperature=0)["choices"][0]
    assert plain["finish_reason"] == "stop" and plain["text"] == "" and plain["logprobs"]["tokens"] == []


def test_tokens_have_places_and_names(server: Running) -> None:
    choice = server.complete(prompt="The 日 town", max_tokens=40, echo=True, logprobs=5, seed=2)["choices"][0]
    found = choice["logprobs"]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("token_id:") and token != "</s>":
            assert choice["text"].startswith(token, offset) or "\ufffd" in choice["text"][offset - 3 : offset + 1]
    assert "".join(found["tokens"]).startswith("The ")
    assert any(token.startswith("token_id:") for token in found["tokens"])  # a part of a character
    for value, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
        assert value in top.values() and 5 <= len(top) <= 6
    none = server.complete(prompt="The ", max_tokens=4, logprobs=0)["choices"][0]["logprobs"]
    assert none["top_logprobs"] is None and len(none["token_logprobs"]) == 4


@pytest.mark.parametrize(("prompt", "expected"), [("a b", 100), ([5] * 100, 28), ([5] * 127, 1)])
def test_too_many_tokens_are_clamped(server: Running, prompt: object, expected: int) -> None:
    answer = server.complete(prompt=prompt, max_tokens=10**9, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == expected
    assert answer["choices"][0]["finish_reason"] == "length"


def test_defaults_are_those_of_the_api(server: Running) -> None:
    assert server.complete(prompt="The ", ignore_eos=True)["usage"]["completion_tokens"] == 16
    question = {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
    assert server.post("/v1/chat/completions", question).json()["usage"]["completion_tokens"] == 100
    texts = {server.complete(prompt="The ", max_tokens=20)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3  # no seed is a new seed
    assert server.complete(prompt="", max_tokens=2, unknown_field=1)["usage"]["prompt_tokens"] == 0


def test_timings_and_usage(server: Running) -> None:
    answer = server.complete(prompt=["The ", "def f"], n=2, max_tokens=10, ignore_eos=True)
    timings = answer["timings"]
    assert timings["predicted_n"] == answer["usage"]["completion_tokens"] == 40
    assert timings["prompt_n"] == answer["usage"]["prompt_tokens"]
    assert timings["time_to_first_token_ms"] == pytest.approx(timings["queue_ms"] + timings["prompt_ms"])
    assert timings["predicted_per_second"] == pytest.approx(36 / timings["predicted_ms"] * 1000)


def test_tokenizer_addresses(server: Running, loaded: LoadedRun) -> None:
    tokenizer = loaded.tokenizer
    answer = server.post("/tokenize", {"prompt": "The 日", "add_special_tokens": False}).json()
    assert answer == {"tokens": tokenizer.encode("The 日"), "count": answer["count"], "max_model_len": 128}
    begun = server.post("/tokenize", {"prompt": "The 日"}).json()
    assert begun["tokens"] == [tokenizer.bos_id, *answer["tokens"]]
    assert server.post("/detokenize", {"tokens": begun["tokens"]}).json() == {"prompt": "The 日"}
    info = server.get("/tokenizer_info").json()
    assert (info["eos_token"], info["vocab_size"], info["model_max_length"]) == ("</s>", 400, 128)
    assert server.post("/detokenize", {"tokens": [400]}).status_code == 400
    ending = server.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False}).json()
    assert ending["tokens"] == [tokenizer.eos_id]
    inside = server.post("/tokenize", {"prompt": "a </s>", "add_special_tokens": False}).json()["tokens"]
    assert tokenizer.eos_id not in inside  # nobody's text forges one


def test_state_addresses(server: Running) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "ready"}
    assert server.get("/version").json()["version"]
    given = server.get("/health", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    forged = server.get("/health", headers={"x-request-id": "a b;c"})
    assert len(forged.headers["x-request-id"]) == 32
    answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers={"x-request-id": "mine-2"})
    assert answer.json()["id"] == "cmpl-mine-2"


def test_a_run_is_asked_as_its_examples_ask(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = make_chat_run(tmp_path_factory.mktemp("asked") / "tiny", context_length=128)
    style = {"format": "qa", "question_label": "Pregunta", "answer_label": "Respuesta"}
    write_json(directory / EXAMPLES, {"style": style, "template_variables": {}})
    tuned = load(directory)
    options = SamplingOptions(max_new_tokens=12, temperature=0.0)
    expected = generate(tuned.model, tuned.tokenizer, [prompt_style(tuned.run).ids(tuned.tokenizer, "¿Qué?")], options)[
        0
    ].text
    with running(tuned) as server:
        turns = [{"role": "user", "content": "other"}, {"role": "assistant", "content": "b"}]
        for before in ([], turns):
            body = {"messages": [*before, {"role": "user", "content": "¿Qué?"}], "max_tokens": 12, "temperature": 0}
            answer = server.post("/v1/chat/completions", body).json()
            assert answer["choices"][0]["message"]["content"] == expected
        answer = server.post("/v1/chat/completions", {"messages": turns})
        assert answer.status_code == 400 and "the last message must be the user's" in answer.json()["error"]["message"]


def test_a_run_that_cannot_chat_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = load(make_chat_run(tmp_path_factory.mktemp("plain") / "tiny", template=None))
    with running(plain) as server:
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
        assert answer.status_code == 400
        assert "no chat template" in answer.json()["error"]["message"] and answer.json()["error"]["param"] == "messages"


def test_no_number_is_infinite() -> None:
    from serving.token_texts import finite

    assert finite(-math.inf) == -9999.0 and json.dumps(finite(-1.5)) == "-1.5"
