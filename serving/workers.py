"""Threads for long texts, which must hold up neither the event loop nor each other for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from serving.errors import ApiError, too_late

_T = TypeVar("_T")
THREADS = 2


class Workers:
    """A few threads. What has begun in one cannot be stopped, but what waits for one can."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long a request may take, what comes before and the wait for a thread included."""
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(THREADS, "workers")

    async def run(self, request: Request, work: Callable[[], _T]) -> _T:
        """What `work` returns.

        Raises:
            ApiError: it takes too long (504), or the client has gone, who will not read this.
        """
        working = asyncio.get_running_loop().run_in_executor(self._pool, work)
        watcher = asyncio.ensure_future(until_disconnected(request))
        left = self._seconds - (time.perf_counter() - request.state.arrived)
        try:
            waited: tuple[asyncio.Future[Any], ...] = (working, watcher)
            await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ApiError(499, "the client has gone") if watcher.done() else too_late(self._seconds)
        finally:
            watcher.cancel()
            working.cancel()

    def stop(self) -> None:
        """End when what has begun is done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def until_disconnected(request: Request) -> None:
    """Returns when the client goes away. To be used once the whole body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
