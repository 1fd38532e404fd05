"""Requests that are whole and not large, but made to take long: none of them holds up the others."""

from __future__ import annotations

import concurrent.futures
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError
from serving_fixtures import Running, load, make_chat_run, running, wait_for

from data_pipeline.chat import Shield
from data_pipeline.tokenizer import Tokenizer
from inference import LoadedRun
from serving.options import ServerOptions
from serving.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

MANY = 20_000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    template = "{% for message in messages %}<s>{{ message.content }}{% endfor %}"
    return load(make_chat_run(tmp_path_factory.mktemp("hostile") / "tiny", template, context_length=128))


@pytest.fixture(scope="module")
def server(loaded: LoadedRun) -> Iterator[Running]:
    with running(loaded, ServerOptions(slots=2, max_waiting=2)) as server:
        yield server


def wrong_values() -> list[Any]:
    lists = [[wrong] * MANY for wrong in (0.5, -1, "", {}, [], [0.5], None)]
    messages = [{"role": "user", "content": each} for each in lists]
    return [*lists, *([each] for each in lists), *([each] for each in messages), {str(n): "a" for n in range(MANY)}]


@pytest.mark.parametrize("schema", [CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest])
def test_what_is_wrong_is_found_once(schema: type[BaseModel]) -> None:
    """An error for each of many elements takes seconds, in which the server does nothing else."""
    for name in schema.model_fields:
        for value in wrong_values():
            try:
                schema.model_validate({name: value})
            except ValidationError as error:
                assert error.error_count() < 20, name


def ask_meanwhile(server: Running, path: str, content: str) -> tuple[httpx.Response, float]:
    """The answer, and how many seconds /health took at most until it came."""
    longest, headers = 0.0, {"content-type": "application/json"}
    with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60) as client:
        asked = pool.submit(httpx.post, server.url + path, content=content, headers=headers, timeout=60)
        while not asked.done():
            began = time.monotonic()
            assert client.get(f"{server.url}/health").status_code == 200
            longest = max(longest, time.monotonic() - began)
    return asked.result(), longest


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/completions", lambda: json.dumps({"prompt": [1.5] * MANY})),
        ("/v1/completions", lambda: json.dumps({"prompt": [""] * MANY, "n": 128})),
        ("/v1/chat/completions", lambda: json.dumps({"messages": [0] * 3 * MANY})),
        ("/v1/chat/completions", lambda: json.dumps({"messages": [{"role": "user", "content": "<s>" * 2 * MANY}]})),
        ("/detokenize", lambda: json.dumps({"tokens": [-1] * 3 * MANY})),
    ],
)  # fmt: skip
def test_others_are_answered_meanwhile(server: Running, path: str, content: Callable[[], str]) -> None:
    answer, longest = ask_meanwhile(server, path, content())
    assert answer.status_code == 400 and longest < 5


def test_no_more_is_tokenised_than_can_be_used(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every refusal here comes before any text is tokenised, which may take a while."""
    monkeypatch.setattr(type(server.service.tokenizer.model), "encode", None)
    long = "a" * 10_000
    for body, message in (
        ({"prompt": long}, "has 10000 bytes, but the 128 tokens"),
        ({"prompt": ["a"] * 5}, "5 texts are more than the 4 that fit"),
        ({"prompt": ["a", "b"], "n": 3}, "6 texts are more"),
    ):
        answer = server.post("/v1/completions", body)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    turns = [{"role": "user", "content": "a" * 2_000}] * 5
    answer = server.post("/v1/chat/completions", {"messages": turns})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    monkeypatch.setattr(type(server.service.thread), "in_flight", 4)
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": turns[:1]})):
        assert server.post(path, body).status_code == 429


def test_tokenising_has_a_deadline_and_ends_with_its_client(loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts take all threads; whoever waits for one is told in time, and forgotten when gone."""
    release, begun = threading.Event(), []
    with running(loaded, ServerOptions(request_seconds=1)) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        model = type(loaded.tokenizer.model)
        monkeypatch.setattr(model, "encode", lambda self, text: begun.append(text) or (release.wait() and [5]))
        for path in ("/tokenize", "/v1/completions"):
            answers = [pool.submit(server.post, path, {"prompt": str(number)}) for number in range(3)]
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + path, json={"prompt": "gone"}, timeout=0.2)
            assert [answer.result().status_code for answer in answers] == [504] * 3
            assert server.get("/health").status_code == 200
        release.set()
        wait_for(lambda: server.post("/tokenize", {"prompt": "last"}).status_code == 200)
        assert len(begun) == 5 and "gone" not in begun


def test_ids_between_those_of_the_vocabulary_are_no_tokens(loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies may have holes; tiktoken's fails on them."""
    monkeypatch.setattr(type(loaded.tokenizer.model), "is_token", lambda self, number: number != 300)
    with running(replace(loaded, tokenizer=Tokenizer(loaded.tokenizer.path))) as server:
        for path, body in (("/detokenize", {"tokens": [5, 300]}), ("/v1/completions", {"prompt": [5, 300]})):
            answer = server.post(path, body)
            assert answer.status_code == 400 and "there is no token 300" in answer.json()["error"]["message"]
        assert server.post("/detokenize", {"tokens": [5, 301]}).status_code == 200


def test_paths_of_the_machine_stay_its_own(tmp_path: Path) -> None:
    with running(load(make_chat_run(tmp_path / "tiny", template=None))) as server:
        assert server.get("/v1/models").json()["data"][0]["root"] == "tiny"
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
        assert "its tokenizer has no chat template" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text + server.get("/v1/models").text


def test_what_a_template_repeats_is_shown_again_in_time_that_grows_with_it() -> None:
    """A message is cut inside every control token that it holds; one alone made each further character dearer."""

    def seconds(characters: int) -> float:
        text = "</s>" + "a" * characters
        shield = Shield(re.compile("</s>"), text)
        began = time.process_time()
        assert "".join(shield.pieces(shield.hide(text))) == text
        return time.process_time() - began

    assert seconds(1_600_000) < 40 * max(seconds(100_000), 1e-3)


@pytest.mark.parametrize("words", [8_000, 60_000])
def test_a_client_that_does_not_read_keeps_no_connection(loaded: LoadedRun, words: int) -> None:
    """Neither where writing pauses, nor where the little that is left waits to be sent before the connection ends."""
    body = json.dumps({"prompt": "river " * words}).encode()
    with running(loaded, ServerOptions(send_seconds=0.5)) as server, socket.socket() as connection:
        connections = server.server.server_state.connections
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        wait_for(lambda: len(connections) == 1)
        (kept,) = connections
        kept.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: kept.transport.get_write_buffer_size() > 0)
        assert (kept.transport.get_write_buffer_size() > 65_536) == (words == 60_000)
        wait_for(lambda: not connections)


def test_as_many_connections_as_allowed_are_answered(loaded: LoadedRun) -> None:
    with running(loaded, ServerOptions(connections=2)) as server:
        with httpx.Client() as first, httpx.Client() as second, httpx.Client() as third:
            found = [client.get(f"{server.url}/health").status_code for client in (first, second, third)]
    assert found == [200, 200, 503]
