"""A server under load: python -m benchmarks.serving [--run RUN] [--clients N] [--minutes M] [--disconnect SHARE].

It starts serve.py, lets clients stream texts from it, some of which hang up in the middle, and compares what they
measured with what the server says of itself.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.table import number
from common.cli import run_command
from common.errors import UserError
from common.runs import find_run

SERVE = Path(__file__).resolve().parent.parent / "serve.py"
WORDS = "the river and a small town in the north of its old country were known for many years".split()
MEMORY_SAMPLES = 20
GROWTH = 0.05  # of the server's memory, between the second quarter of the time and the last, that is still called none
Metrics = dict[str, float]


@dataclass(frozen=True)
class BenchmarkCommand:
    """Stream texts with many clients at a time, and report waits, statuses, slots and memory.

    Ends with status 1 where requests failed otherwise than by 429, slots were not freed, memory grew, or the server
    measures something else than its clients."""

    run: str | None = None
    """Name below runs/, or path, of the run to serve; by default the newest one."""
    clients: int = 64
    """Clients that ask one request after the other."""
    minutes: float = 10.0
    """How long they go on."""
    disconnect: float = 0.33
    """Share of the requests whose client hangs up before the end."""
    max_tokens: int = 128
    """Length of the longest texts; each is at least an eighth of it."""
    seed: int = 0
    """Of prompts, lengths and of who hangs up."""
    json: str | None = None
    """Also write the figures to this file."""


@dataclass
class Measured:
    """What the clients saw; times in seconds."""

    first_token: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    resident: list[float] = field(default_factory=list)
    """Bytes of memory that the server has, at equal distances of time."""


@contextmanager
def server(run: str | None) -> Iterator[tuple[int, str]]:
    """serve.py with its own settings: process id and address."""
    path = find_run(run).path
    command = [sys.executable, str(SERVE), "--run", str(path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = next((line.split()[-1] for line in process.stderr if line.startswith("listening on")), None)
        if url is None:
            raise UserError(f"serve.py ended with status {process.wait()}; try {' '.join(command)}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or what it says would fill the pipe
        yield process.pid, url
    finally:
        process.terminate()
        process.wait()


def metrics_of(url: str) -> Metrics:
    """Value by name, with the labels but the model's."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found: Metrics = {}
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            bare, _, labels = name.removeprefix("vllm:").partition("{")
            kept = [label for label in labels.rstrip("}").split(",") if label and not label.startswith("model_name")]
            found[",".join((bare, *kept))] = float(value)
    return found


def quantile(metrics: Metrics, name: str, share: float) -> float:
    """Of a histogram, as Prometheus' `histogram_quantile` estimates it: straight lines within buckets."""
    edge, below, rank = 0.0, 0.0, share * metrics[f"{name}_count"]
    for key, upper in buckets(metrics, name).items():
        count = metrics[key]
        if count >= rank and count > below:
            return edge if upper == math.inf else edge + (upper - edge) * (rank - below) / (count - below)
        edge, below = upper, count
    return edge


def buckets(metrics: Metrics, name: str) -> dict[str, float]:
    """Upper edge of every bucket of a histogram, by its key."""
    keys = [key for key in metrics if key.startswith(f"{name}_bucket")]
    return {key: float(key.split('le="')[1].rstrip('"')) for key in keys}


def in_buckets(values: Sequence[float], metrics: Metrics, name: str) -> Metrics:
    """The histogram that the server would have of `values`."""
    counts = {key: float(sum(value <= upper for value in values)) for key, upper in buckets(metrics, name).items()}
    return {**counts, f"{name}_count": float(len(values))}


@asynccontextmanager
async def asked(url: str, body: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
    """The answer to a POST, on a connection of its own that is closed behind it."""
    place, content = urlsplit(url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        yield reader
    finally:
        writer.close()


async def request(url: str, body: dict[str, Any], leave_after: int | None, measured: Measured) -> None:
    """Stream one text; leave after so many chunks if asked, 0 before any."""
    began = time.perf_counter()
    async with asked(f"{url}/v1/completions", body) as reader:
        if leave_after == 0:
            await asyncio.sleep(random.random() / 10)
            measured.statuses["left before the answer"] += 1
            return
        status = (await reader.readline()).split()[1].decode()
        chunks, last = 0, began
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            chunk = json.loads(line[6:])
            if "error" in chunk:
                measured.statuses["error in the stream"] += 1
                return
            if not chunk["choices"]:
                measured.tokens += chunk["usage"]["completion_tokens"]
                continue
            if chunk["choices"][0]["finish_reason"] is None:
                (measured.between_tokens if chunks else measured.first_token).append(now - last)
                chunks, last = chunks + 1, now
            if chunks == leave_after:
                measured.statuses["left in the middle"] += 1
                return
        measured.statuses[status] += 1
        if status == "429":
            await asyncio.sleep(1)


async def client(command: BenchmarkCommand, url: str, number: int, end: float, measured: Measured) -> None:
    rng = random.Random(f"{command.seed} {number}")
    while time.perf_counter() < end:
        length = rng.randint(max(1, command.max_tokens // 8), command.max_tokens)
        body = {
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 60))),
            "max_tokens": length,
            "temperature": rng.choice([0, 0.8]),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        leaves = rng.random() < command.disconnect
        try:
            await request(url, body, rng.randint(0, length // 2) if leaves else None, measured)
        except (OSError, IndexError, ValueError) as error:
            measured.statuses[f"failed: {type(error).__name__}"] += 1


async def load(command: BenchmarkCommand, url: str, process: int) -> Measured:
    """All clients for the whole time."""
    measured, end = Measured(), time.perf_counter() + 60 * command.minutes
    watching = asyncio.create_task(watch(process, 60 * command.minutes / MEMORY_SAMPLES, measured))
    await asyncio.gather(*(client(command, url, number, end, measured) for number in range(command.clients)))
    watching.cancel()
    return measured


async def watch(process: int, seconds: float, measured: Measured) -> None:
    """Note the server's memory at such a distance of time."""
    server = psutil.Process(process)
    while True:
        await asyncio.sleep(seconds)
        measured.resident.append(server.memory_info().rss)


def when_idle(url: str, seconds: float = 10) -> Metrics:
    """The server's figures when nothing runs any more, or after so many seconds."""
    end = time.perf_counter() + seconds
    while True:
        found = metrics_of(url)
        if not found["num_requests_running"] + found["num_requests_waiting"] or time.perf_counter() > end:
            return found
        time.sleep(0.05)


def summary(measured: Measured, metrics: Metrics, seconds: float) -> dict[str, Any]:
    waits = {"time_to_first_token": measured.first_token, "inter_token_latency": measured.between_tokens}
    milliseconds: dict[str, dict[str, float | None]] = {}
    for name, values in waits.items():
        seen = in_buckets(values, metrics, f"{name}_seconds")
        for percent in (50, 95):
            if len(values) < 2:
                milliseconds[f"{name} p{percent}"] = dict.fromkeys(("clients", "clients_in_buckets", "server"))
                continue
            milliseconds[f"{name} p{percent}"] = {
                "clients": 1000 * statistics.quantiles(values, n=100)[percent - 1],
                "clients_in_buckets": 1000 * quantile(seen, f"{name}_seconds", percent / 100),
                "server": 1000 * quantile(metrics, f"{name}_seconds", percent / 100),
            }
    finished = {key.split('"')[1]: value for key, value in metrics.items() if key.startswith("request_success_total")}
    return {
        "milliseconds": milliseconds,
        "statuses": dict(measured.statuses),
        "server_finished": finished,
        "tokens": {"clients_in_whole_texts": measured.tokens, "server": metrics["generation_tokens_total"]},
        "tokens_per_second": metrics["generation_tokens_total"] / seconds,
        "first_tokens": {"clients": len(measured.first_token), "server": metrics["time_to_first_token_seconds_count"]},
        "left_running": metrics["num_requests_running"] + metrics["num_requests_waiting"],
        "cache_left_filled": metrics["kv_cache_usage_perc"],
        "memory_mb": [round(resident / 1e6, 1) for resident in measured.resident],
    }


def faults(found: dict[str, Any], edges: dict[str, list[float]]) -> list[str]:
    """What should not be after any load; `edges` of the server's buckets in milliseconds, by histogram."""
    fine = ("200", "429", "left before the answer", "left in the middle")
    said = [f"{count} times {status!r}" for status, count in found["statuses"].items() if status not in fine]
    if found["left_running"] or found["cache_left_filled"]:
        said.append(
            f"{found['left_running']:g} texts still run, {found['cache_left_filled']:.1%} of the cache is filled"
        )
    memory = found["memory_mb"] or [0.0]  # of a load too short to look at it
    quarter = max(1, len(memory) // 4)
    early, late = statistics.median(memory[quarter : 2 * quarter] or memory), statistics.median(memory[-quarter:])
    if late > (1 + GROWTH) * early:
        said.append(f"memory has grown from {early:.0f} to {late:.0f} MB between the second and the last quarter")
    unanswered = [name.split()[0] for name, values in found["milliseconds"].items() if values["server"] is None]
    said += [f"too few answers for {name}" for name in dict.fromkeys(unanswered)]
    for name, values in found["milliseconds"].items():
        if values["server"] is None:
            continue
        own = edges[name.split()[0]]
        if abs(bisect.bisect_left(own, values["clients_in_buckets"]) - bisect.bisect_left(own, values["server"])) > 1:
            said.append(f"{name} of clients and server are not in the same or neighbouring buckets")
    return said


def show(title: str, found: dict[str, Any]) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    columns = ("clients", "clients, in the server's buckets", "server's histogram")
    table = Table("milliseconds", *columns, title=title, title_justify="left")
    for name, values in found["milliseconds"].items():
        table.add_row(name.replace("_", " "), *("n/a" if value is None else number(value) for value in values.values()))
    console.print(table)
    for name, value in found.items():
        if name != "milliseconds":
            console.print(f"{name.replace('_', ' ')}: {json.dumps(value)}", highlight=False)


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(BenchmarkCommand, args=argv, prog="python -m benchmarks.serving")
    with server(command.run) as (process, url):
        asyncio.run(load(BenchmarkCommand(clients=4, minutes=0.05), url, process))  # warms up
        when_idle(url)
        began, before = time.perf_counter(), metrics_of(url)
        measured = asyncio.run(load(command, url, process))
        seconds, after = time.perf_counter() - began, when_idle(url)
        counted = {name: after[name] - before[name] for name in after}
        gauges = {name: after[name] for name in after if name.startswith(("num_requests", "kv_cache"))}
        found = summary(measured, counted | gauges, seconds)
    names = ("time_to_first_token", "inter_token_latency")
    edges = {name: [1000 * edge for edge in buckets(after, f"{name}_seconds").values()] for name in names}
    found["faults"] = faults(found, edges)
    show(f"{command.clients} clients for {command.minutes:g} minutes on {os.cpu_count()} cores", found)
    if command.json:
        Path(command.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
