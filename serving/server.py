"""Running the application: the socket, its protection, and the way it ends."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from common.errors import UserError
from common.threads import unbind
from serving.app import make_app
from serving.protocol import protocol_for
from serving.service import Service

KEYS_VARIABLE = "MINI_GPT_API_KEYS"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def read_keys(file: str | None) -> list[str]:
    """API keys from a file, one a line, or from the environment, separated by commas; never from a command line, which
    other users of a machine can see.

    Raises UserError when the file cannot be read or holds no key, or a key is not made of visible ASCII characters.
    """
    if file is None:
        lines, where = os.environ.get(KEYS_VARIABLE, "").split(","), KEYS_VARIABLE
    else:
        try:
            lines, where = Path(file).read_text(encoding="utf-8").splitlines(), file
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-keys {file} cannot be read ({error}); write one key a line into it") from error
    keys = [line.strip() for line in lines if line.strip()]
    if file is not None and not keys:
        raise UserError(f"--api-keys {file} holds no key; write one a line into it")
    for key in keys:
        if not all("!" <= character <= "~" for character in key):
            raise UserError(f"{where}: a key holds spaces or characters that are not ASCII, which no header can carry")
    return keys


def run_server(
    service: Service, host: str, port: int, api_keys: Sequence[str] = (), allowed_hosts: Sequence[str] = ()
) -> None:
    """Serve until SIGTERM or Ctrl-C; then what runs may end within `grace_seconds`.

    Raises UserError when the address cannot be had.
    """
    local = is_loopback(host)
    if not local and not api_keys:
        print(
            f"warning: everyone who reaches {host} may use this server; give API keys with --api-keys FILE, or let a "
            "proxy ask for them (docs/serving.md)",
            file=sys.stderr,
        )
    hosts = (*LOOPBACK, *(name.lower() for name in (host, *allowed_hosts))) if local or allowed_hosts else None
    # uvicorn raises the signal again when everything has ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    listener = _listen(host, port)
    unbind()  # or this thread would share its one core with the threads that compute
    uvicorn.Server(configure(service, api_keys, hosts)).run(sockets=[listener])


def configure(service: Service, api_keys: Sequence[str], hosts: Sequence[str] | None) -> uvicorn.Config:
    """How uvicorn is to run the application; `hosts` as `Guard` takes them."""
    options = service.options
    return uvicorn.Config(
        make_app(service, api_keys, hosts),
        http=protocol_for(options),
        loop="asyncio",  # which the protocol is written for; uvicorn prefers uvloop where another package brought it
        ws="none",
        lifespan="on",
        limit_concurrency=options.connections + 1,  # uvicorn counts the one that asks
        timeout_graceful_shutdown=round(options.grace_seconds),
        log_level="warning",
        server_header=False,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host} port {port} ({error}); choose with --host and --port") from error
    name = f"[{host}]" if family == socket.AF_INET6 else host
    print(f"listening on http://{name}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
