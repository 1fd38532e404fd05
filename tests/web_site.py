"""A web server on this machine, whose pages answer as they like; it keeps a list of what it was asked and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Handler = BaseHTTPRequestHandler
Page = bytes | Callable[[Handler], None]


class Site(ThreadingHTTPServer):
    """Serves `pages` by path; `requests` lists path, time and user agent. A function answers as it likes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, float, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"

    def asked(self, path: str) -> int:
        return [request[0] for request in self.requests].count(path)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are expected."""


class _Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site = self.server
        with site.lock:
            site.requests.append((self.path, time.monotonic(), self.headers["User-Agent"]))
            site.at_once += 1
            site.most_at_once = max(site.most_at_once, site.at_once)
        try:
            found = site.pages.get(self.path)
            if found is None:
                answer(self, b"nothing here", 404)
            elif isinstance(found, bytes):
                answer(self, found)
            else:
                found(self)
        finally:
            with site.lock:
                site.at_once -= 1

    def log_message(self, format: str, *values: object) -> None:
        """Quiet."""


def answer(
    handler: Handler, content: bytes, status: int = 200, content_type: str = "text/html", **headers: str
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def answering(content: bytes = b"", status: int = 200, content_type: str = "text/html", **headers: str) -> Page:
    return lambda handler: answer(handler, content, status, content_type, **headers)


def to(location: str, status: int = 302) -> Page:
    return answering(status=status, Location=location)


@contextmanager
def serving() -> Iterator[Site]:
    server = Site()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
