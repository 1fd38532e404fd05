"""HTTP connections that do not wait for ever: neither for a request's header, nor for a client to read its answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.options import ServerOptions


def protocol_for(options: ServerOptions) -> type[asyncio.Protocol]:
    """A class of connections for `uvicorn.Config(http=...)`; uvicorn itself bounds only idle ones."""

    class TimedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Or a chunk could wait for the client to acknowledge the one before, which takes 40 ms. asyncio does this
            # only for sockets that were opened with the number of their protocol.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._expect_header()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # What comes after an answer is the next request, or the rest of a body that nobody wants.
            if self.cycle is None or self.cycle.response_complete:
                self._expect_header()
            elif self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _expect_header(self) -> None:
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(options.header_seconds, self._close)

        def _close(self) -> None:
            self.transport.close()
            self._bound_sending()

        def _bound_sending(self) -> None:
            """Closing waits until all is sent, which it never is where nobody reads."""
            if self._send_timer is None:
                self._send_timer = self.loop.call_later(options.send_seconds, self.transport.abort)

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._bound_sending()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._bound_sending()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._bound_sending()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._send_timer is not None and not self.transport.is_closing():
                self._send_timer.cancel()
                self._send_timer = None

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            for timer in (self._header_timer, self._send_timer):
                if timer is not None:
                    timer.cancel()

    return TimedProtocol
