"""Server-sent events, as OpenAI's API streams them."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.answers import ChatChunk, ChatChunkChoice, Completion, CompletionChoice
from serving.errors import ApiError
from serving.jobs import Event, Job
from serving.service import timings, usage, watched

Header = Completion | ChatChunk
"""A chunk without choices: what is the same in all of a stream."""
Choices = Iterable[CompletionChoice] | Iterable[ChatChunkChoice]


async def stream(
    request: Request, job: Job, header: Header, chunks: Callable[[Event], Choices], with_usage: bool
) -> StreamingResponse:
    """A response that sends the chunks of every event, one choice in each, then the usage if asked, then `[DONE]`.

    It begins with the job's first event, so what goes wrong before has a status of its own.

    Raises ApiError when the job takes too long to begin, or the model fails.
    """
    events = job.events()
    async with watched(job, request):
        first = await anext(events)
    return _EventStream(job, _data(job, first, events, header, chunks, with_usage))


class _EventStream(StreamingResponse):
    """Takes the job back when the client goes away."""

    def __init__(self, job: Job, data: AsyncIterator[str]) -> None:
        super().__init__(_framed(data), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


async def _data(
    job: Job,
    first: Event,
    rest: AsyncIterator[Event],
    header: Header,
    chunks: Callable[[Event], Choices],
    with_usage: bool,
) -> AsyncIterator[str]:
    event: Event | None = first
    left = len(job.requests)
    while event is not None:
        left -= event.update.finish_reason is not None
        for choice in chunks(event):
            ends = not left and choice.finish_reason is not None
            yield _json(header, with_usage, choices=[choice], timings=timings(job) if ends else None)
        event = await anext(rest, None)
    if with_usage:
        yield _json(header, with_usage, usage=usage(job))


async def _framed(data: AsyncIterator[str]) -> AsyncIterator[bytes]:
    try:
        async for one in data:
            yield _event(one)
    except ApiError as error:
        yield _event(json.dumps(error.body()))
    except Exception:
        # The status has been sent, so all that can still be said is said here.
        traceback.print_exc(file=sys.stderr)
        yield _event(json.dumps(ApiError(500, "the server failed; its log says how").body()))
    else:
        yield _event("[DONE]")


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _json(header: Header, with_usage: bool, **changes: Any) -> str:
    """`usage` is there where the client asked for it, `timings` at the end, and of a delta what is new; everything else
    is there even when it is null, as clients need it of `finish_reason`."""
    chunk: BaseModel = header.model_copy(update=changes)
    values = chunk.model_dump()
    if not with_usage:
        del values["usage"]
    if values["timings"] is None:
        del values["timings"]
    for choice in values["choices"]:
        if "delta" in choice:
            choice["delta"] = {key: value for key, value in choice["delta"].items() if value is not None}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))
