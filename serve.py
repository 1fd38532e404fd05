"""Serve a trained run over HTTP: python serve.py --run RUN [--port 8000] [--help]. See docs/serving.md."""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, fields  # noqa: E402

import tyro  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs import find_run  # noqa: E402
from inference import load_run  # noqa: E402
from inference.passes import Compile  # noqa: E402
from model.device import DeviceName  # noqa: E402
from model.quantization import Bits  # noqa: E402
from serving.options import ServerOptions  # noqa: E402


@dataclass(frozen=True)
class ServeCommand(ServerOptions):
    """Serve a trained run with the API of OpenAI, and a page to try it on at the same address."""

    run: str | None = None
    """Name below runs/, or path, of the run; by default the newest one."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    adapter: tuple[str, ...] = ()
    """NAME=DIRECTORY of an adapter on the run's model, which becomes a model of that name; may be given again."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine."""
    port: int = 8000
    """Port to listen on."""
    api_keys: str | None = None
    """File with API keys, one a line; or set MINI_GPT_API_KEYS, separated by commas."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides localhost by which clients may address a server that listens there, behind a proxy."""
    quantize: Bits | None = None
    """Keep the weights in bf16, int8 or int4, which on a CPU is two to five times as fast and costs some accuracy."""
    compile: Compile = "auto"
    """Write by a step that is compiled for this CPU, once, before the server starts; "off" does without."""
    device: DeviceName = "auto"
    """Where to compute."""

    def options(self) -> ServerOptions:
        return ServerOptions(**{field.name: getattr(self, field.name) for field in fields(ServerOptions)})


def main(argv: Sequence[str]) -> None:
    """Parse the command line and serve. A bad flag or value ends the process with status 2."""
    command = tyro.cli(ServeCommand, args=list(argv), prog="serve.py", config=(tyro.conf.UseAppendAction,))
    try:
        from serving.server import read_keys, run_server
        from serving.service import Service
    except ImportError as error:
        raise UserError(
            f"serve.py needs packages that are not installed ({error}); pip install -c constraints.txt -e '.[serve]'"
        ) from error
    keys = read_keys(command.api_keys)
    loaded = load_run(find_run(command.run), command.checkpoint, command.device)
    service = Service(loaded, command.options(), command.adapter, command.quantize, command.compile)
    print(f"run {loaded.run.path}, {loaded.checkpoint.path.name}, on {loaded.device}", file=sys.stderr)
    print(f"models: {', '.join(service.models)}", file=sys.stderr)
    run_server(service, command.host, command.port, keys, command.allowed_hosts)


if __name__ == "__main__":
    run_command(main)
