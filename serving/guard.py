"""What stands before every address: who may ask, how large a request may be and how long it may take to arrive."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Sequence
from functools import partial

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.options import ServerOptions

OPEN = ("/", "/health", "/ready")  # and the files of the page, without a key
PAGE = "/page/"
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware. The application behind it gets only requests that are whole."""

    def __init__(
        self, app: ASGIApp, options: ServerOptions, api_keys: Sequence[str] = (), hosts: Sequence[str] | None = None
    ) -> None:
        """
        Args:
            api_keys: one of them must come with a request, as `Authorization: Bearer KEY`; without any, all may ask.
            hosts: names by which the server may be addressed, None for any. On a server that only this machine is to
                reach, they keep out web pages whose own name was made to lead here.
        """
        self.app, self.options, self.hosts = app, options, hosts
        self._digests = [_digest(key.encode()) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, arrived=time.perf_counter())
        marked = partial(_send_marked, send, request_id)
        try:
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            body = await self._read_body(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, marked)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), marked)

    def _check_host(self, headers: Headers) -> None:
        name = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").lower()
        if self.hosts is not None and name not in self.hosts:
            raise ApiError(
                403, f"this server does not answer to the name {name!r}; start it with --allowed-hosts {name or 'NAME'}"
            )

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._digests or path in OPEN or path.startswith(PAGE):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip().encode("latin-1") if scheme.lower() == "bearer" else b"")
        # All are compared, and as wholes, so that the time it takes tells nothing.
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            what = "a wrong API key" if key else "no API key"
            message = f"{what} was given; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None when the client has gone. Raises ApiError when it is too large or too slow."""
        limit, body = self.options.body_bytes, bytearray()
        too_large = ApiError(413, f"the body is larger than the {limit} bytes that are allowed; send less")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        try:
            with anyio.fail_after(self.options.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            seconds = self.options.body_seconds
            raise ApiError(408, f"the body did not arrive within {seconds:g} seconds; send it faster") from None
        return bytes(body)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body as its first message."""
    read = False

    async def replay() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _send_marked(send: Send, request_id: str, message: Message) -> None:
    if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = request_id
        headers.update(SECURITY)
    await send(message)
