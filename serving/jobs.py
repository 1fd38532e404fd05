"""The texts that one HTTP request asks for, from their submission to their last token. Lives in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from inference import GenerationRequest, Ticket, Update
from serving.errors import ApiError


@dataclass(frozen=True)
class Event:
    """What one step of the model brought one text of a job."""

    index: int
    """Number of the text in its job."""
    update: Update
    seconds: float
    """When, on the clock of `time.perf_counter`."""


@dataclass(eq=False)
class Job:
    """Texts in the making. Times are on the clock of `time.perf_counter`."""

    requests: Sequence[GenerationRequest]
    arrived: float
    """When the HTTP request came."""
    take_back: Callable[[Sequence[Ticket]], None]
    """Tells the engine to end texts."""
    tickets: list[Ticket] = field(default_factory=list)
    running: int = 0
    """Texts that the engine has not ended."""
    first: dict[int, float] = field(default_factory=dict)
    """When each text got its first token."""
    last: dict[int, float] = field(default_factory=dict)
    """When it got its newest."""
    waited: dict[int, float] = field(default_factory=dict)
    """How many seconds it waited for a slot."""
    tokens: int = 0
    """Written so far, in all texts."""
    following: int = 0
    """Those of them that came with a later step than the first one of their text."""
    timer: asyncio.TimerHandle | None = None
    _queue: asyncio.Queue[Event | ApiError] = field(default_factory=asyncio.Queue)

    async def events(self) -> AsyncIterator[Event]:
        """What comes, until all texts have ended.

        Raises ApiError when the job takes too long or the model fails.
        """
        left = len(self.requests)
        while left:
            item = await self._queue.get()
            if isinstance(item, ApiError):
                raise item
            left -= item.update.finish_reason is not None
            yield item

    def receive(self, event: Event) -> float | None:
        """Take in an event. Returns the seconds since the text's event before; None for its first."""
        update, index, now = event.update, event.index, event.seconds
        gap = now - self.last[index] if index in self.last else None
        self.tokens += len(update.token_ids)
        if update.finish_reason != "cancelled":
            self.following += 0 if gap is None else len(update.token_ids)
            self.first.setdefault(index, now)
            self.waited[index] = update.waited
            self.last[index] = now
        if update.finish_reason is not None:
            self.running -= 1
            if self.running == 0 and self.timer is not None:
                self.timer.cancel()
        self._queue.put_nowait(event)
        return gap

    def cancel(self) -> None:
        """Take back what has not ended; its slots are free after the model's next step."""
        if self.timer is not None:
            self.timer.cancel()
        if self.running:
            self.take_back(self.tickets)

    def fail(self, error: ApiError) -> None:
        """End the job with an error for whoever waits for it."""
        self._queue.put_nowait(error)
        self.cancel()
