"""The one thread that runs the model.

The event loop hands texts in and gets what a step brought in one go; it never waits for the model.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from inference import Engine, GenerationRequest, SamplingOptions, Ticket, Update
from serving.errors import ApiError, too_late
from serving.jobs import Event, Job
from serving.metrics import Metrics

SOON = {"retry-after": "1"}


class ModelThread:
    """Steps the engine while there is something to do."""

    def __init__(self, engine: Engine, capacity: int, metrics: Metrics) -> None:
        """`capacity`: how many texts may run and wait together."""
        self.engine, self.capacity, self.metrics = engine, capacity, metrics
        self.ready = False
        """Whether a first text has been written."""
        self.failed = False
        self.jobs: set[Job] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._outbox: list[tuple[Job, Event]] = []
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin; to be called in the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End after the present step."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    @property
    def in_flight(self) -> int:
        """Texts that run or wait."""
        return sum(job.running for job in self.jobs)

    def admit(self, count: int) -> None:
        """Raises ApiError when `count` texts are more than are ever served together (400), than there is room for in
        the queue now (429), or when there is no model (503)."""
        if self.failed or not self.ready:
            raise ApiError(503, "the model has failed" if self.failed else "the model is not ready yet", headers=SOON)
        if count > self.capacity:
            raise ApiError(400, f"{count} texts are more than the {self.capacity} that fit; ask for fewer")
        if self.in_flight + count > self.capacity:
            raise ApiError(429, "too many texts are waiting; ask again soon", headers=SOON)

    def submit(self, requests: Sequence[GenerationRequest], arrived: float, seconds: float) -> Job:
        """Queue all `requests`, or none of them.

        Args:
            arrived: when the HTTP request came, in seconds of `time.perf_counter`.
            seconds: how long it may take from then on.

        Raises:
            ApiError: see `admit`.
            UserError: the engine refuses one of them.
        """
        self.admit(len(requests))
        job = Job(requests, arrived, self._take_back)
        self.jobs.add(job)
        try:
            for index, request in enumerate(requests):
                job.running += 1
                job.tickets.append(self.engine.submit(request, self._receiver(job, index)))
        except Exception:
            job.running -= 1
            job.cancel()
            self._forget(job)
            raise
        left = seconds - (time.perf_counter() - arrived)
        job.timer = self._loop.call_later(left, job.fail, too_late(seconds))
        self._wake.set()
        return job

    def _take_back(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self.engine.cancel(ticket)
        self._wake.set()

    def _receiver(self, job: Job, index: int) -> Callable[[Update], None]:
        def receive(update: Update) -> None:
            self._outbox.append((job, Event(index, update, time.perf_counter())))

        return receive

    def _run(self) -> None:
        try:
            self._warm_up()
            while not self._stopping:
                self._wake.clear()
                busy = self.engine.step()
                if self._outbox:
                    outbox, self._outbox = self._outbox, []
                    self._loop.call_soon_threadsafe(self._deliver, outbox)
                if not busy:
                    self._wake.wait()
        except Exception:
            # The engine's state is unknown now; those who wait must learn of it, and a supervisor by /health.
            traceback.print_exc(file=sys.stderr)
            self._loop.call_soon_threadsafe(self._fail)

    def _warm_up(self) -> None:
        """The first pass takes longer than others; no client should wait for it."""
        self.engine.submit(GenerationRequest((), SamplingOptions(max_new_tokens=2)), lambda update: None)
        self.engine.run()
        self.ready = True

    def _deliver(self, outbox: Sequence[tuple[Job, Event]]) -> None:
        for job, event in outbox:
            gap = job.receive(event)
            self.metrics.observe(job, event, gap)
            self._forget(job)

    def _forget(self, job: Job) -> None:
        if job.running == 0:
            self.jobs.discard(job)

    def _fail(self) -> None:
        self.failed = True
        for job in self.jobs:
            job.fail(ApiError(500, "the model failed; the server's log says how"))
        self.jobs.clear()
