"""POST /v1/completions: texts that go on from prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fastapi import Request
from starlette.responses import Response

from inference import TokenLogprob
from serving.answers import FINISH, Completion, CompletionChoice, CompletionLogprobs
from serving.jobs import Event
from serving.schemas import CompletionRequest
from serving.service import Prompt, Service, collect, timings, usage
from serving.streams import stream
from serving.token_texts import Offsets

DEFAULT_MAX_TOKENS = 16  # of OpenAI's API


async def complete(service: Service, asked: CompletionRequest, request: Request) -> Completion | Response:
    """Answer a request, in one piece or as a stream.

    Raises ApiError when it cannot be served; see `Service.submit`.
    """
    model = service.model(asked.model)
    given = _given(asked)
    service.thread.admit(len(given) * (asked.n or 1))
    prompts = await service.prompt_workers.run(request, lambda: [service.prompt(model, each) for each in given])
    max_tokens = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    echo = bool(asked.echo)
    job = service.submit(request, asked, prompts, max_tokens, asked.logprobs, echo and asked.logprobs is not None)
    header = Completion(id=f"cmpl-{request.state.request_id}", created=int(time.time()), model=model.id, choices=[])
    texts = [_Text(service, asked, index, prompts[index // (asked.n or 1)]) for index in range(len(job.requests))]
    if asked.stream:
        return await stream(request, job, header, lambda event: texts[event.index].chunks(event), asked.reports_usage)
    choices = [texts[index].whole(events) for index, events in enumerate(await collect(job, request))]
    return header.model_copy(update={"choices": choices, "usage": usage(job), "timings": timings(job)})


def _given(asked: CompletionRequest) -> Sequence[str | list[int]]:
    """One text, or list of ids, for each prompt."""
    if isinstance(asked.prompt, str):
        return [asked.prompt]
    ids = [each for each in asked.prompt if isinstance(each, int)]
    return [ids] if ids else [each for each in asked.prompt if not isinstance(each, int)]


class _Text:
    """One choice of the answer, as it grows."""

    def __init__(self, service: Service, asked: CompletionRequest, index: int, prompt: Prompt) -> None:
        self.service, self.asked, self.index, self.prompt = service, asked, index, prompt
        self._offsets = Offsets(service.tokenizer, () if asked.echo else prompt.ids)
        self._begun = False

    def add(self, event: Event) -> CompletionChoice:
        """What an event adds to the choice."""
        update = event.update
        text, tokens, logprobs = update.text, update.token_ids, list[TokenLogprob | None](update.logprobs or ())
        if self.asked.echo and not self._begun:
            text, tokens = self.prompt.text + text, (*self.prompt.shown, *tokens)
            logprobs = [*self._of_prompt(update.prompt_logprobs or ()), *logprobs]
        self._begun = True
        choice = CompletionChoice(index=self.index, text=text)
        if self.asked.logprobs is not None:
            offsets = self._offsets.add(tokens)
            choice.logprobs = self.service.texts.completion(tokens, logprobs, self.asked.logprobs, offsets)
        if update.finish_reason is not None:
            choice.finish_reason = FINISH[update.finish_reason]
        return choice

    def _of_prompt(self, known: tuple[TokenLogprob | None, ...]) -> list[TokenLogprob | None]:
        """One entry for each token that the client gave; null for the first, as in OpenAI's API."""
        missing = len(self.prompt.shown) - len(known)  # the id that begins a text, where the client gave it too
        return [*[None] * missing, *known] if missing else [None, *known[1:]] if known else []

    def chunks(self, event: Event) -> Iterator[CompletionChoice]:
        """An event as stream chunks; the end is told in one of its own."""
        choice = self.add(event)
        reason, choice.finish_reason = choice.finish_reason, None
        if choice.text or (choice.logprobs is not None and choice.logprobs.tokens):
            yield choice
        if reason is not None:
            yield CompletionChoice(index=self.index, text="", finish_reason=reason)

    def whole(self, events: list[Event]) -> CompletionChoice:
        """All events as one choice."""
        parts = [self.add(event) for event in events]
        whole = parts[-1].model_copy(update={"text": "".join(part.text for part in parts)})
        if whole.logprobs is not None:
            found = [part.logprobs for part in parts if part.logprobs is not None]
            whole.logprobs = CompletionLogprobs(
                tokens=[token for part in found for token in part.tokens],
                token_logprobs=[value for part in found for value in part.token_logprobs],
                top_logprobs=[top for part in found for top in part.top_logprobs or ()]
                if self.asked.logprobs
                else None,
                text_offset=[offset for part in found for offset in part.text_offset],
            )
        return whole
