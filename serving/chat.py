"""POST /v1/chat/completions: answers to conversations."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import Request
from starlette.responses import Response

from serving.answers import (
    FINISH,
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from serving.jobs import Event
from serving.schemas import ChatRequest
from serving.service import Prompt, Service, collect, timings, usage
from serving.streams import stream


async def chat(service: Service, asked: ChatRequest, request: Request) -> ChatCompletion | Response:
    """Answer a request, in one piece or as a stream.

    Raises ApiError when it cannot be served; see `ServedModel.chat_ids` and `Service.submit`.
    """
    model = service.model(asked.model)
    service.thread.admit(asked.n or 1)
    ids = await service.prompt_workers.run(request, lambda: model.chat_ids(asked.messages, service.tokenizer))
    wished = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    logprobs = asked.top_logprobs or 0 if asked.logprobs else None
    job = service.submit(request, asked, [Prompt(tuple(ids), "", tuple(ids))], wished, logprobs)
    name, created = f"chatcmpl-{request.state.request_id}", int(time.time())
    texts = [_Text(service, logprobs, index) for index in range(len(job.requests))]
    if asked.stream:
        header = ChatChunk(id=name, created=created, model=model.id, choices=[])
        return await stream(request, job, header, lambda event: texts[event.index].chunks(event), asked.reports_usage)
    choices = [texts[index].whole(events) for index, events in enumerate(await collect(job, request))]
    return ChatCompletion(
        id=name, created=created, model=model.id, choices=choices, usage=usage(job), timings=timings(job)
    )


class _Text:
    """One choice of the answer, as it grows."""

    def __init__(self, service: Service, logprobs: int | None, index: int) -> None:
        self.service, self.logprobs, self.index = service, logprobs, index
        self._begun = False

    def _explained(self, *events: Event) -> ChatLogprobs | None:
        if self.logprobs is None:
            return None
        return self.service.texts.chat([one for event in events for one in event.update.logprobs or ()], self.logprobs)

    def chunks(self, event: Event) -> Iterator[ChatChunkChoice]:
        """An event as stream chunks: the role first and once, the end in a chunk of its own."""
        if not self._begun:
            self._begun = True
            yield ChatChunkChoice(index=self.index, delta=Delta(role="assistant", content=""))
        update, logprobs = event.update, self._explained(event)
        if update.text or (logprobs is not None and logprobs.content):
            yield ChatChunkChoice(index=self.index, delta=Delta(content=update.text), logprobs=logprobs)
        if update.finish_reason is not None:
            yield ChatChunkChoice(index=self.index, delta=Delta(), finish_reason=FINISH[update.finish_reason])

    def whole(self, events: list[Event]) -> ChatChoice:
        """All events as one choice."""
        reason = events[-1].update.finish_reason
        assert reason is not None
        content = "".join(event.update.text for event in events)
        return ChatChoice(
            index=self.index,
            message=AnswerMessage(content=content),
            logprobs=self._explained(*events),
            finish_reason=FINISH[reason],
        )
