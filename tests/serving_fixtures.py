"""Servers for tests: real sockets and a real engine, in a thread of the test's process."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from inference_fixtures import make_run, tokenizer_bytes

from common.files import write_json
from common.runs import Run, write_checkpoint_manifest
from inference import LoadedRun, load_run
from model.quantization import Bits
from serving.options import ServerOptions
from serving.server import LOOPBACK, configure
from serving.service import Service

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_chat_run(directory: Path, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A run with random weights whose tokenizer has a chat template; 1024 tokens of context."""
    make_run(directory, **{"context_length": 1024, **changes})
    header = {"format": "sentencepiece", **({"chat_template": template} if template else {})}
    content = json.dumps(header).encode() + b"\n" + tokenizer_bytes()
    (directory / "tokenizer.model").write_bytes(content)
    for checkpoint in (directory / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        write_json(checkpoint / "state.json", state | {"tokenizer_sha256": hashlib.sha256(content).hexdigest()})
        (checkpoint / "manifest.json").unlink()
        write_checkpoint_manifest(checkpoint)
    return directory


def load(directory: Path) -> LoadedRun:
    return load_run(Run(directory), device="cpu")


class Running:
    """A server that answers at `url`."""

    def __init__(self, service: Service, url: str, server: uvicorn.Server) -> None:
        self.service, self.url, self.server = service, url, server
        self.client = httpx.Client(timeout=60)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.client.post(self.url + path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(self.url + path, **options)

    def complete(self, **body: Any) -> dict[str, Any]:
        """The answer of /v1/completions, which must be a success."""
        answer = self.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def metrics(self) -> dict[str, float]:
        """Value by name; labels but the model's stay in the name."""
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        found = {}
        for line in lines:
            name, value = line.rsplit(" ", 1)
            name = name.replace(f'model_name="{self.service.default.id}"', "").replace(",}", "}").replace("{}", "")
            found[name.removeprefix("vllm:")] = float(value)
        return found

    @property
    def idle(self) -> bool:
        engine = self.service.thread.engine
        return not (engine.running or engine.waiting or self.service.thread.in_flight)


@contextmanager
def running(
    loaded: LoadedRun,
    options: ServerOptions | None = None,
    adapters: Sequence[str] = (),
    keys: Sequence[str] = (),
    hosts: Sequence[str] | None = LOOPBACK,
    bits: Bits | None = None,
) -> Iterator[Running]:
    """A server that is ready, until the end of the block."""
    service = Service(loaded, options or ServerOptions(), adapters, bits)
    config = configure(service, keys, hosts)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: service.thread.ready)
        made = Running(service, f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        with made.client:
            yield made
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Raises AssertionError when `condition` does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def events_of(body: str) -> list[str]:
    """The data of server-sent events, whose frames must be exact."""
    assert body.endswith("\n\n")
    frames = body[:-2].split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames), body
    return [frame.removeprefix("data: ") for frame in frames]
