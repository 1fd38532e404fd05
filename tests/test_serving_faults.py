"""Bad requests, bad clients and bad networks: each is answered as documented, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from serving_fixtures import Running, load, make_chat_run, running, wait_for

from common.errors import UserError
from inference import LoadedRun
from serving.options import ServerOptions
from serving.server import is_loopback, read_keys

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return load(make_chat_run(tmp_path_factory.mktemp("faults") / "tiny", context_length=128))


@pytest.fixture(scope="module")
def server(loaded: LoadedRun) -> Iterator[Running]:
    options = ServerOptions(slots=2, body_bytes=100_000, body_seconds=0.5, header_seconds=0.5, send_seconds=0.5)
    with running(loaded, options) as server:
        yield server
        assert server.complete(prompt="The ", max_tokens=1)["choices"]  # whatever came before


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error, whose form and status must be right."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"', "the body is not JSON: Expecting ',' delimiter at character 14"),
        (b"", "the body must be a JSON object"),
        (b"[1, 2]", "the body must be a JSON object"),
        (b'"text"', "the body must be a JSON object"),
        (b'{"prompt": "\xff\xfe"}', "the body is not JSON in UTF-8"),
        (b"[" * 50_000, "the body is not JSON in UTF-8"),
        (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "the body is not JSON in UTF-8"),
        (b'{"prompt": "\\ud800"}', "prompt: "),
        (b'{"prompt": "a", "temperature": NaN}', "temperature: "),
        (b'{"prompt": "a", "model": "\\u0000"}', "there is no model"),
    ],
)
def test_what_is_no_request(server: Running, content: bytes, message: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=JSON)
    assert message in error_of(answer, 404 if "model" in message else 400)["message"]


def test_json_must_be_called_json(server: Running) -> None:
    """A page of another site may send plain text to this address without asking its browser; so that is not read."""
    answer = httpx.post(
        f"{server.url}/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}
    )
    assert "Content-Type: application/json" in error_of(answer, 400)["message"]


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": None}, {"prompt": []}, {"prompt": [1, "a"]}, {"prompt": [[1], "a"]}, {"prompt": {"a": 1}},
        {"prompt": [-1]}, {"prompt": [400]}, {"max_tokens": -1}, {"max_tokens": "3"}, {"temperature": -1},
        {"temperature": True}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": 1.5}, {"min_p": 2}, {"n": 0}, {"n": 1000},
        {"stop": ["a"] * 5}, {"stop": [""]}, {"stop": 1}, {"seed": 2**64}, {"stream": "yes"}, {"logprobs": 6},
        {"echo": 1}, {"frequency_penalty": 3}, {"presence_penalty": -3}, {"repetition_penalty": 0},
        {"repetition_penalty": 1e-160}, {"logit_bias": {"5": 100}}, {"best_of": 1}, {"suffix": ""},
    ],
)  # fmt: skip
def test_wrong_fields_are_named(server: Running, field: dict[str, Any]) -> None:
    error = error_of(server.post("/v1/completions", {"prompt": "a", **field}), 400)
    (name,) = field
    assert error["param"] == name and name in error["message"]


@pytest.mark.parametrize(
    "field",
    [
        {"messages": []}, {"messages": ["a"]}, {"messages": [{"role": "user"}]}, {"messages": [{"content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
        {"max_tokens": 0}, {"top_logprobs": 21}, {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
    ],
)  # fmt: skip
def test_wrong_fields_of_a_chat_are_named(server: Running, field: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **field}
    assert error_of(server.post("/v1/chat/completions", body), 400)["param"] == next(iter(field))


def test_context_overflow_has_numbers(server: Running) -> None:
    error = error_of(server.post("/v1/completions", {"prompt": [5] * 128}), 400)
    assert "has 129 tokens" in error["message"] and "has 128; shorten it by 1" in error["message"]
    long = {"messages": [{"role": "user", "content": "a b c " * 500}]}
    assert error_of(server.post("/v1/chat/completions", long), 400)["code"] == "context_length_exceeded"


def test_unknown_addresses_and_methods(server: Running) -> None:
    assert "nothing at /v1/nothing" in error_of(server.get("/v1/nothing"), 404)["message"]
    answer = server.get("/v1/completions")
    error_of(answer, 405)
    assert answer.headers["allow"] == "POST"
    error_of(server.get("/page/../serve.py"), 404)
    error_of(server.get("/page/%2e%2e/app.py"), 404)
    error_of(server.post("/v1/completions", {"prompt": "a", "model": "other"}), 404)


def test_a_large_body_is_not_read(server: Running) -> None:
    process, sent = psutil.Process(), 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * 1_000_000

    for headers in (JSON, {**JSON, "content-length": str(100_000_000)}):
        before = process.memory_info().rss
        answer = httpx.post(f"{server.url}/v1/completions", content=body(), headers=headers, timeout=60)
        assert "100000 bytes" in error_of(answer, 413)["message"]
        assert process.memory_info().rss - before < 20_000_000


def test_keys(loaded: LoadedRun) -> None:
    with running(loaded, keys=["first-key", "second-key"]) as server:
        for path in ("/v1/models", "/metrics", "/tokenizer_info", "/version", "/openapi.json"):
            refused = server.get(path)
            assert error_of(refused, 401)["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
            for given in (
                "Bearer first",
                "Basic first-key",
                "first-key",
                "Bearer first-key2",
                "Bearer \xff",
            ):
                error_of(server.get(path, headers={"authorization": given.encode("latin-1")}), 401)
            for key in ("Bearer first-key", "bearer second-key"):
                assert server.get(path, headers={"authorization": key}).status_code == 200
        for path in ("/", "/page/page.js", "/health", "/ready"):
            assert server.get(path).status_code == 200
        # No key, and so nothing of the body is read.
        error_of(httpx.post(f"{server.url}/v1/completions", content=b"x" * 10_000_000), 401)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert read_keys(str(file)) == ["one", "two"]
    monkeypatch.setenv("MINI_GPT_API_KEYS", "three,four")
    assert read_keys(None) == ["three", "four"]
    for content, message in (("\n", "holds no key"), ("a b", "holds spaces"), ("ä", "not ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_keys(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(str(tmp_path / "missing"))


def test_other_names_of_this_machine_are_refused(server: Running) -> None:
    """A web page whose name was made to lead to 127.0.0.1 carries that name in its requests."""
    for name in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert "does not answer to the name" in error_of(server.get("/health", headers={"host": name}), 403)["message"]
    for name in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000"):
        assert server.get("/health", headers={"host": name}).status_code == 200
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == (
        [True] * 3 + [False] * 3
    )


def raw(server: Running, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(data)
    return connection


def received(connection: socket.socket, end: bytes) -> bytes:
    """What comes until it ends so."""
    answer = b""
    while not answer.endswith(end):
        piece = connection.recv(10_000)
        assert piece, answer
        answer += piece
    return answer


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_slow_senders_are_let_go(server: Running) -> None:
    began = time.monotonic()
    silent, half_header = raw(server), raw(server, b"GET /health HT")
    assert silent.recv(1000) == b"" and half_header.recv(1000) == b""
    half_body = raw(server, POST + b'Content-Length: 50\r\n\r\n{"prompt"')
    answer = received(half_body, b"}}")
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.5 seconds" in answer
    dripping = raw(server, POST + b"Content-Length: 50\r\n\r\n")
    dripping.settimeout(0.1)
    for _ in range(20):
        dripping.sendall(b" ")
        try:
            assert dripping.recv(10_000).startswith(b"HTTP/1.1 408")
            break
        except TimeoutError:
            continue
    else:
        raise AssertionError("a byte now and then must not keep a request alive")
    assert time.monotonic() - began < 5
    for connection in (silent, half_header, half_body, dripping):
        connection.close()


def test_kept_connections_still_work(server: Running) -> None:
    """The limit on headers is not one on connections that come back."""
    with httpx.Client() as client:
        for pause in (0.0, 0.3, 0.3, 0.3):
            time.sleep(pause)
            assert client.get(f"{server.url}/health").status_code == 200
        open_ones = [each.transport for each in server.server.server_state.connections]
        sockets = [each.get_extra_info("socket") for each in open_ones if not each.is_closing()]
        assert sockets and all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)
    connection = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert received(connection, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET /hea")
    assert connection.recv(1000) == b""
    connection.close()


def test_a_client_that_does_not_read_is_let_go(server: Running) -> None:
    """Its text is written to the end, but its connection does not stay for ever."""
    body = json.dumps(
        {"prompt": "a", "max_tokens": 120, "n": 16, "logprobs": 5, "stream": True, "ignore_eos": True}
    ).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_for(lambda: not server.idle)
    wait_for(lambda: server.idle)
    wait_for(lambda: not server.server.server_state.tasks)
    connection.close()


def test_nonsense_on_the_wire(server: Running) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100 + b"\x00" * 1000):
        connection = raw(server, data)
        assert connection.recv(1000)[:10] in (b"HTTP/1.1 4", b"")
        connection.close()
    connection = raw(server, b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
    assert connection.recv(1000)[:10] in (b"HTTP/1.1 4", b"")
    connection.close()
