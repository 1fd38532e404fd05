"""Fetching web pages politely: robots.txt obeyed, one request at a time and a pause for every host, sizes bounded.

urllib3 makes the requests, because it comes with trafilatura, which reads the pages: HTTP is not worth a package more.
protego reads robots.txt by RFC 9309: the standard library's parser knows no wildcards, takes the first rule that
matches instead of the longest, and passes over a Crawl-delay of half a second.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from data_pipeline.sources.config import WebPages
from data_pipeline.sources.html import is_page

if TYPE_CHECKING:
    from protego import Protego
    from urllib3 import BaseHTTPResponse

AGENT = "mini-gpt-data"  # the name that rules in robots.txt address
_MOST_REDIRECTS = 5
_ATTEMPTS = 4
_BUSY = frozenset((429, 500, 502, 503, 504))
_PASSING = frozenset((408, 425, 429))  # beside every error of the server's own
_BACKOFF = 1.0  # seconds after a first busy answer, and twice as many after each further one
_MOST_PAUSE = 120.0  # seconds, for the server's Retry-After
_MOST_DELAY = 60.0  # seconds, for the host's Crawl-delay
_ROBOTS_BYTES = 512_000  # RFC 9309 asks for at least 500 KiB
_MOST_MISSES = 5  # requests in a row without an answer, after which a host is left alone
_CHUNK = 65_536


class FetchError(Exception):
    """Why a page was not fetched; `reason` is short, for counting, and `lasting` where another try would not help."""

    def __init__(self, reason: str, lasting: bool) -> None:
        super().__init__(reason)
        self.reason, self.lasting = reason, lasting


@dataclass(frozen=True)
class Answer:
    """What a server said. `content` is without its content encoding; empty unless the status is 200."""

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass
class _Host:
    """What is known of a host, and whose turn it is."""

    delay: float  # seconds between two requests
    turn: threading.Lock = field(default_factory=threading.Lock)  # held during a request and the pause before it
    free_at: float = 0.0  # on the monotonic clock
    misses: int = 0
    rules: dict[str, Protego | FetchError] = field(default_factory=dict)  # by scheme and port
    asking: threading.Lock = field(default_factory=threading.Lock)  # held while rules are fetched


class Fetcher:
    """Fetches pages from any number of threads. A host gets one request at a time, whichever thread makes it."""

    def __init__(self, source: WebPages) -> None:
        from data_pipeline.sources.connections import pool_manager

        agent = f"{AGENT}/1.0 (+{source.contact})" if source.contact else f"{AGENT}/1.0"
        self._headers = {"User-Agent": agent, "Accept-Encoding": "gzip, deflate", "Accept": "text/html, text/plain"}
        self._pools = pool_manager(32)
        self._source = source
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let every thread end at its next request."""
        self._stopped.set()

    def get(self, url: str) -> Answer:
        """The page at `url`, or where it redirects to.

        Raises:
            FetchError: with a reason such as "robots", "timeout", "too_large", "not_html" or "http_404".
        """
        answer = self._follow(url, page=True)
        if answer.status != 200:
            lasting = answer.status < 500 and answer.status not in _PASSING
            raise FetchError(f"http_{answer.status}", lasting)
        return answer

    def _follow(self, url: str, page: bool) -> Answer:
        """The first answer that is no redirect. A robots.txt, which is no page, needs no leave from a robots.txt."""
        for _ in range(_MOST_REDIRECTS + 1):
            parts = _checked(url)
            host = self._host(parts)
            if page and not self._rules(host, parts).can_fetch(url, AGENT):
                raise FetchError("robots", lasting=True)
            answer = self._insist(url, host, page)
            location = answer.headers.get("Location")
            if answer.status not in {301, 302, 303, 307, 308} or not location:
                return answer
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise FetchError("invalid_url", lasting=True) from error
            target = _checked(url).hostname
            if target != parts.hostname and is_public(parts.hostname) and not is_public(target):
                raise FetchError("private_address", lasting=True)
        raise FetchError("too_many_redirects", lasting=True)

    def _host(self, parts: SplitResult) -> _Host:
        with self._lock:
            return self._hosts.setdefault(parts.hostname or "", _Host(self._source.delay))

    def _rules(self, host: _Host, parts: SplitResult) -> Protego:
        """RFC 9309, section 2.3.1: without a robots.txt all is allowed; when it cannot be had, nothing is."""
        from protego import Protego

        origin = f"{parts.scheme}://{parts.netloc}"
        with host.asking:
            if origin not in host.rules:
                try:
                    answer = self._follow(f"{origin}/robots.txt", page=False)
                    if answer.status >= 500 or answer.status == 429:
                        raise FetchError("robots_unavailable", lasting=False)
                    rules = Protego.parse(answer.content.decode("utf-8-sig", "replace"))
                    host.delay = max(host.delay, min(rules.crawl_delay(AGENT) or 0.0, _MOST_DELAY))
                    host.rules[origin] = rules
                except FetchError as error:
                    out_of_reach = error.reason in {"unreachable", "interrupted"}
                    host.rules[origin] = error if out_of_reach else FetchError("robots_unavailable", lasting=False)
            found = host.rules[origin]
        if isinstance(found, FetchError):
            raise FetchError(found.reason, lasting=False)
        return found

    def _insist(self, url: str, host: _Host, page: bool) -> Answer:
        """Ask again, after growing pauses for the whole host, while the server is busy."""
        for attempt in range(1, _ATTEMPTS + 1):
            with host.turn:
                if host.misses >= _MOST_MISSES:
                    raise FetchError("host_given_up", lasting=False)
                if self._stopped.wait(max(0.0, host.free_at - time.monotonic())):
                    raise FetchError("interrupted", lasting=False)
                pause = host.delay
                try:
                    answer = self._ask(url, page)
                    host.misses = 0
                    if answer.status in _BUSY:
                        pause = max(pause, _retry_after(answer, _BACKOFF * 2 ** (attempt - 1)))
                except FetchError as error:
                    host.misses += 1 if error.reason in {"unreachable", "timeout", "connection_lost"} else 0
                    raise
                finally:
                    host.free_at = time.monotonic() + pause
            if answer.status not in _BUSY:
                break
        return answer

    def _ask(self, url: str, page: bool) -> Answer:
        """One request."""
        from urllib3 import exceptions

        source, response = self._source, None
        started = time.monotonic()
        try:
            response = self._pools.request(
                "GET",
                url,
                headers=self._headers,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=source.timeout,
            )
            content = b""
            if response.status == 200:
                if page and not is_page(response.headers.get("Content-Type", "")):
                    raise FetchError("not_html", lasting=True)
                content = _body(response, source.max_bytes if page else _ROBOTS_BYTES, started + source.timeout)
                if page and len(content) > source.max_bytes:
                    raise FetchError("too_large", lasting=True)
            return Answer(url, response.status, response.headers, content)
        except (exceptions.ConnectTimeoutError, exceptions.SSLError) as error:
            raise FetchError("unreachable", lasting=False) from error
        except exceptions.TimeoutError as error:
            raise FetchError("timeout", lasting=False) from error
        except (exceptions.LocationValueError, UnicodeError) as error:
            raise FetchError("invalid_url", lasting=True) from error
        except (exceptions.HTTPError, OSError) as error:
            raise FetchError("connection_lost", lasting=False) from error
        finally:
            if response is not None:
                response.close()


def is_public(host: str | None) -> bool:
    """Whether all addresses of a host are global ones, and none is of this machine or a network around it."""
    try:
        found = {ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):  # it has none
        return False
    return all((getattr(address, "ipv4_mapped", None) or address).is_global for address in found)


def _checked(url: str) -> SplitResult:
    from urllib3.util import parse_url

    try:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            raise FetchError("not_http", lasting=True)
        if not parts.hostname or parts.username is not None or parts.port == 0:
            raise FetchError("invalid_url", lasting=True)
        parse_url(url)
    except ValueError as error:  # of a broken address, port or name
        raise FetchError("invalid_url", lasting=True) from error
    return parts


def _body(response: BaseHTTPResponse, limit: int, deadline: float) -> bytes:
    """At most one byte more than `limit`. Reads what has come, so that a slow drip meets the deadline as well."""
    if response.headers.get("Content-Encoding", "identity").lower() not in {"identity", "gzip", "x-gzip", "deflate"}:
        raise FetchError("unknown_encoding", lasting=True)
    content = bytearray()
    while len(content) <= limit:
        if time.monotonic() > deadline:
            raise FetchError("timeout", lasting=False)
        chunk = response.read1(_CHUNK, decode_content=True)
        if not chunk:
            return bytes(content)
        content += chunk
    return bytes(content[: limit + 1])


def _retry_after(answer: Answer, otherwise: float) -> float:
    """Seconds that a busy server asks for, as a number or a date, within bounds."""
    value = answer.headers.get("Retry-After", "").strip()
    try:
        seconds = float(value) if value.isdigit() else _until(parsedate_to_datetime(value))
    except (ValueError, TypeError):
        seconds = otherwise
    return min(max(seconds, 0.0), _MOST_PAUSE)


def _until(moment: datetime) -> float:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (aware - datetime.now(timezone.utc)).total_seconds()
