"""HTTP connections with a deadline for the beginning of an answer: urllib3's own timeout is for each read of a socket.

A server that sends a byte of its header now and then keeps such a timeout away for as long as it likes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection


class _Punctual:
    """Gives an answer's status and header `timeout` seconds in all, then closes the connection under it."""

    sock: Any
    timeout: Any

    def getresponse(self) -> Any:
        late = threading.Event()
        connected = self.sock

        def hang_up() -> None:
            late.set()
            with contextlib.suppress(OSError):  # closed already
                connected.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.timeout, hang_up)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()
            if late.is_set():  # whatever was read of the answer is torn
                raise TimeoutError("the answer did not begin in time")


class _HTTPConnection(_Punctual, HTTPConnection):
    pass


class _HTTPSConnection(_Punctual, HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def pool_manager(hosts: int) -> urllib3.PoolManager:
    """Connections to as many hosts as given are kept open."""
    manager = urllib3.PoolManager(num_pools=hosts)
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager
