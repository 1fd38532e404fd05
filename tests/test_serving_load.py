"""Many clients, clients that leave, full queues, deadlines, and the end of the server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from inference_fixtures import ROOT, run_all
from serving_fixtures import Running, events_of, load, make_chat_run, running, wait_for

import serve
from benchmarks import serving
from common.errors import UserError
from inference import LoadedRun
from serving.options import ServerOptions

SERVE = [sys.executable, str(ROOT / "serve.py"), "--device", "cpu"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LONG = {"prompt": "The ", "max_tokens": 4000, "ignore_eos": True}  # many seconds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_run(tmp_path_factory.mktemp("load") / "tiny", context_length=4096)


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedRun:
    return load(run)


@pytest.fixture(scope="module")
def server(loaded: LoadedRun) -> Iterator[Running]:
    with running(loaded, ServerOptions(slots=2, max_waiting=2)) as server:
        yield server


def hang_up_during(server: Running, body: dict[str, Any], path: str = "/v1/completions") -> None:
    """Ask with a bare socket, and close it once the model writes."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
    wait_for(lambda: server.service.thread.engine.running > 0)
    time.sleep(0.05)
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_frees_its_slots(server: Running, path: str, stream: bool) -> None:
    body = {**LONG, "n": 2, "stream": stream, "messages": [{"role": "user", "content": "a"}]}
    aborted = server.metrics()['request_success_total{finished_reason="abort"}']
    hang_up_during(server, body, path)
    began = time.monotonic()
    wait_for(lambda: server.idle)
    assert time.monotonic() - began < 2  # it would have written for longer
    assert server.metrics()['request_success_total{finished_reason="abort"}'] == aborted + 2
    assert server.complete(prompt="The ", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_who_waits_may_leave_too(server: Running) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.complete, **{**LONG, "max_tokens": 300, "n": 2})
        wait_for(lambda: server.service.thread.engine.running == 2)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=0.1)
        wait_for(lambda: server.service.thread.engine.waiting == 0, 1)
        assert first.result()["usage"]["completion_tokens"] == 600


def test_a_full_queue_is_told_at_once(server: Running) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [pool.submit(server.complete, **{**LONG, "max_tokens": 200, "n": 2}) for _ in range(2)]
        wait_for(lambda: server.service.thread.in_flight == 4)
        began = time.monotonic()
        answer = server.post("/v1/completions", LONG)
        assert answer.status_code == 429 and time.monotonic() - began < 1
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert server.get("/v1/models").status_code == 200
        assert all(future.result()["usage"]["completion_tokens"] == 400 for future in both)
    never = server.post("/v1/completions", {**LONG, "n": 5})
    assert never.status_code == 400 and "5 texts are more than the 4" in never.json()["error"]["message"]
    assert server.idle


def test_deadlines(loaded: LoadedRun) -> None:
    with running(loaded, ServerOptions(slots=1, request_seconds=0.5)) as server:
        answer = server.post("/v1/completions", LONG)
        assert answer.status_code == 504 and "longer than 0.5 seconds" in answer.json()["error"]["message"]
        wait_for(lambda: server.idle, 1)
        streamed = server.post("/v1/completions", {**LONG, "stream": True})
        *chunks, last = events_of(streamed.text)
        assert streamed.status_code == 200 and len(chunks) > 2
        assert json.loads(last)["error"]["type"] == "timeout_error"  # and no [DONE]
        wait_for(lambda: server.idle, 1)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:  # the second never gets the slot
            both = [pool.submit(server.post, "/v1/completions", {**LONG, "stream": stream}) for stream in (False, True)]
            statuses = sorted(future.result().status_code for future in both)
        assert statuses in ([200, 504], [504, 504])
        wait_for(lambda: server.idle, 1)


def test_the_event_loop_is_never_in_the_way(server: Running) -> None:
    """While texts are written, other addresses answer at once."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(server.complete, **{**LONG, "max_tokens": 1500, "n": 2})
        wait_for(lambda: server.service.thread.engine.running == 2)
        waits = []
        with httpx.Client() as client:
            while not writing.done() and len(waits) < 20:
                began = time.monotonic()
                assert client.get(f"{server.url}/v1/models").status_code == 200
                waits.append(time.monotonic() - began)
        writing.result()
    assert len(waits) == 20 and sorted(waits)[10] < 0.1


def test_metrics_are_what_the_clients_measured(loaded: LoadedRun) -> None:
    with running(loaded, ServerOptions(slots=3)) as server:
        begun = server.metrics()
        assert {name: value for name, value in begun.items() if value and "_created" not in name} == {}

        def ask(number: int) -> tuple[float, dict[str, Any]]:
            began = time.perf_counter()
            answer = server.complete(prompt="The river " * (number + 1), max_tokens=20 + number, ignore_eos=True)
            return time.perf_counter() - began, answer

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            measured = list(pool.map(ask, range(6)))
        found = server.metrics()
        usages = [answer["usage"] for _, answer in measured]
        assert found["prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
        assert found["generation_tokens_total"] == sum(usage["completion_tokens"] for usage in usages) == 135
        assert found['request_success_total{finished_reason="length"}'] == 6
        assert found["e2e_request_latency_seconds_count"] == found["time_to_first_token_seconds_count"] == 6
        assert found["inter_token_latency_seconds_count"] == 135 - 6
        assert found["request_queue_time_seconds_count"] == 6
        timings = [answer["timings"] for _, answer in measured]
        for name, key in (("time_to_first_token", "time_to_first_token_ms"), ("request_queue_time", "queue_ms")):
            expected = sum(each[key] for each in timings) / 1000
            assert found[f"{name}_seconds_sum"] == pytest.approx(expected, rel=1e-6)
        assert found["inter_token_latency_seconds_sum"] == pytest.approx(
            sum(each["predicted_ms"] for each in timings) / 1000, rel=1e-6
        )
        clients = sum(seconds for seconds, _ in measured)
        writing = sum(each["time_to_first_token_ms"] + each["predicted_ms"] for each in timings) / 1000
        assert 0.999 * writing < found["e2e_request_latency_seconds_sum"] <= clients
        assert found["num_requests_running"] == found["num_requests_waiting"] == found["kv_cache_usage_perc"] == 0


def test_gauges_show_what_is_there(server: Running) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(server.complete, **{**LONG, "max_tokens": 200, "n": 4})
        wait_for(lambda: server.service.thread.engine.running == 2)
        found = server.metrics()
        assert (found["num_requests_running"], found["num_requests_waiting"]) == (2, 2)
        assert 0 < found["kv_cache_usage_perc"] < 0.1
        writing.result()


def test_a_failed_model_is_told_to_all(loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks is the model itself, in the middle of a text."""
    with running(loaded) as server:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            both = [pool.submit(server.post, "/v1/completions", {**LONG, "stream": stream}) for stream in (False, True)]
            wait_for(lambda: server.service.thread.engine.running == 2)
            monkeypatch.setattr(server.service.thread.engine, "table", None)
            plain, streamed = (future.result() for future in both)
        assert plain.status_code == 500 and plain.json()["error"]["type"] == "server_error"
        assert "error" in json.loads(events_of(streamed.text)[-1])
        for answer in (server.get("/health"), server.get("/ready"), server.post("/v1/completions", LONG)):
            assert answer.status_code == 503 and "failed" in answer.json()["error"]["message"]


def start(run: Path, *flags: str, **variables: str) -> tuple[subprocess.Popen[str], str, str]:
    """serve.py as a user starts it, its address, and what it said before."""
    process = subprocess.Popen(
        [*SERVE, "--run", str(run), "--port", "0", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | variables,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        if found := re.search(r"listening on (\S+)", line):
            return process, found[1], said
        said += line
    raise AssertionError(f"it did not start: {said}")


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def test_sigterm_lets_running_texts_end(run: Path) -> None:
    process, url, _ = start(run)
    wait_for(lambda: is_ready(url))
    with httpx.stream(
        "POST", f"{url}/v1/completions", json={**LONG, "max_tokens": 500, "stream": True}, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and len(rest) > 100
    assert process.wait(60) == 0


def test_the_grace_has_an_end(run: Path) -> None:
    process, url, _ = start(run, "--grace-seconds", "1")
    wait_for(lambda: is_ready(url))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/completions", json={**LONG, "n": 8}, timeout=60)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0  # it would have written for minutes
        with contextlib.suppress(httpx.HTTPError):  # cut off
            assert asked.result().status_code >= 500


def test_mistakes_on_the_command_line(run: Path, server: Running) -> None:
    port = str(server.port)
    mistakes = (
        (["--port", port], f"cannot listen on 127.0.0.1 port {port}"),
        (["--slots", "0"], "--slots 0 is out of range: it must be at least 1"),
        (["--adapter", "nothing"], "give a name and a directory"),
        (["--api-keys", "/nowhere"], "--api-keys /nowhere cannot be read"),
    )
    answers = run_all("serve", [["--run", str(run), "--device", "cpu", *flags] for flags, _ in mistakes], run)
    for (status, _, said), (_, message) in zip(answers, mistakes, strict=True):
        assert status == 2 and message in said


@pytest.mark.slow
def test_the_load_test_agrees_with_the_server(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    flags = ["--clients", "6", "--minutes", "0.05", "--disconnect", "0.5", "--max-tokens", "24", "--json", str(file)]
    with suppress(SystemExit):  # for faults, of which below
        serving.main(["--run", str(run), *flags])
    found = json.loads(file.read_text())
    assert found["left_running"] == found["cache_left_filled"] == 0
    finished, left = found["server_finished"], found["statuses"].get("left in the middle", 0)
    first = found["first_tokens"]
    assert 0 < first["clients"] <= first["server"] <= first["clients"] + finished["abort"]  # some leave just then
    assert finished["stop"] + finished["length"] >= found["statuses"]["200"] > 0
    assert finished["abort"] > 0 and sum(finished.values()) >= found["statuses"]["200"] + left  # some leave too late
    assert found["tokens"]["server"] > found["tokens"]["clients_in_whole_texts"]
    # Three seconds of a busy machine are too few for percentiles.
    assert [fault for fault in found["faults"] if "buckets" not in fault] == [] and len(found["memory_mb"]) >= 10
    assert "time to first token p95" in capsys.readouterr().out


def test_quantiles_of_histograms() -> None:
    found = {'x_bucket,le="1.0"': 2.0, 'x_bucket,le="2.0"': 6.0, 'x_bucket,le="+Inf"': 8.0, "x_count": 8.0}
    assert [serving.quantile(found, "x", share) for share in (0.125, 0.25, 0.5, 0.75, 1)] == [0.5, 1, 1.5, 2, 2]


def test_faults_of_a_server_under_load() -> None:
    edges = {"wait": [1.0, 2.0, 4.0, 8.0]}
    fine: dict[str, Any] = {
        "statuses": {"200": 5, "429": 1, "left in the middle": 2},
        "left_running": 0.0,
        "cache_left_filled": 0.0,
        "memory_mb": [50.0, 100.0, 101.0, 103.0],
        "milliseconds": {"wait p50": {"clients_in_buckets": 1.5, "server": 3.0}},
    }
    assert serving.faults(fine, edges) == []
    for changed, said in (
        ({"statuses": {"500": 1}}, "1 times '500'"),
        ({"left_running": 2.0}, "2 texts still run"),
        ({"memory_mb": [50.0, 100.0, 101.0, 106.0]}, "from 100 to 106 MB"),
        ({"milliseconds": {"wait p50": {"clients_in_buckets": 0.5, "server": 3.0}}}, "wait p50 of clients and server"),
    ):
        (found,) = serving.faults({**fine, **changed}, edges)
        assert said in found


def test_a_load_that_failed_shows_its_faults(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("time_to_first_token_seconds", "inter_token_latency_seconds")
    counted = {key: 0.0 for name in names for key in (f'{name}_bucket,le="1.0"', f'{name}_bucket,le="+Inf"')}
    counted |= {f"{name}_count": 0.0 for name in names} | {"generation_tokens_total": 0.0, "kv_cache_usage_perc": 0.0}
    counted |= {"num_requests_running": 0.0, "num_requests_waiting": 0.0}
    found = serving.summary(serving.Measured(statuses=Counter({"500": 3})), counted, 1.0)
    edges = {name.removesuffix("_seconds"): [1000.0, math.inf] for name in names}
    assert serving.faults(found, edges) == [
        "3 times '500'", "too few answers for time_to_first_token", "too few answers for inter_token_latency",
    ]  # fmt: skip
    serving.show("load", found)
    assert "n/a" in capsys.readouterr().out and json.dumps(found, allow_nan=False)


def test_the_clients_times_in_the_buckets_of_the_server() -> None:
    found = {'x_bucket,le="1.0"': 9.0, 'x_bucket,le="2.0"': 9.0, 'x_bucket,le="+Inf"': 9.0, "x_count": 9.0}
    mine = serving.in_buckets([0.5, 1.0, 1.5, 7.0], found, "x")
    assert list(mine.values()) == [2, 3, 4, 4] and serving.quantile(mine, "x", 0.5) == 1


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serving.server", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[serve\]'"):
        serve.main(["--run", "any"])


def test_an_open_server_warns(run: Path) -> None:
    for keys, warned in (("", True), ("secret", False)):
        process, _, said = start(run, "--host", "0.0.0.0", MINI_GPT_API_KEYS=keys)
        process.terminate()
        assert ("may use this server" in said) is warned
        assert process.communicate()[1] == "" and process.returncode == 0
