"""What all addresses of the server share: models, tokenizer, the model's thread, limits and measurements."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from inference import Engine, GenerationRequest, LoadedRun, SamplingOptions
from inference.passes import LONG, Compile, wants_native
from model.quantization import Bits, quantize
from serving.answers import Timings, Usage
from serving.errors import ApiError
from serving.jobs import Event, Job
from serving.metrics import Metrics
from serving.model_thread import ModelThread
from serving.models import ServedModel, served_models
from serving.options import ServerOptions
from serving.schemas import Sampled
from serving.token_texts import TokenTexts
from serving.workers import Workers, until_disconnected


@dataclass(frozen=True)
class Prompt:
    """A prompt as the engine takes it."""

    ids: tuple[int, ...]
    """Without the id that begins a text."""
    text: str
    shown: tuple[int, ...]
    """The ids as the client gave them, or those of its text."""


class Service:
    """A loaded run, ready to be served."""

    def __init__(
        self,
        loaded: LoadedRun,
        options: ServerOptions,
        adapters: Sequence[str] = (),
        bits: Bits | None = None,
        compiled: Compile = "auto",
    ) -> None:
        """
        Args:
            adapters: see `served_models`.
            bits: what the run's weights are kept in from now on, adapters left out; None for fp32.
            compiled: whether the engine writes by the native step, which then is compiled now if need be.

        Raises:
            UserError: an adapter cannot be had, the weights cannot be kept so, or "on" is impossible.
        """
        self.loaded, self.options = loaded, options
        self.tokenizer = loaded.tokenizer
        self.models = served_models(loaded, adapters)
        self.default = next(iter(self.models.values()))
        self.texts = TokenTexts(self.tokenizer)
        self.metrics = Metrics(self.default.id)
        self.started = int(time.time())
        if bits is not None:  # behind the adapters, which know their base by its weights
            quantize(loaded.model, bits)
        native = wants_native(loaded.model, compiled, LONG)
        engine = Engine(loaded, slots=options.slots, native=native)
        self.metrics.watch(engine)
        self.thread = ModelThread(engine, options.slots + options.max_waiting, self.metrics)
        # Apart, as prompts are short, while /tokenize takes texts of any length.
        self.prompt_workers, self.text_workers = Workers(options.request_seconds), Workers(options.request_seconds)
        self._unused = frozenset(self.tokenizer.unused_ids(self.tokenizer.vocab_size))

    def model(self, name: str | None) -> ServedModel:
        """Raises ApiError when there is no such model."""
        if name is None:
            return self.default
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"there is no model {name!r}; there are: {known}", "model", "model_not_found")
        return self.models[name]

    async def stop(self) -> None:
        """End after the model's present step."""
        self.prompt_workers.stop()
        self.text_workers.stop()
        await self.thread.stop()

    def prompt(self, model: ServedModel, given: str | Sequence[int]) -> Prompt:
        """Raises ApiError for an id that the tokenizer does not have, or a prompt that cannot fit the context."""
        if isinstance(given, str):
            model.check_size([given])
            ids = tuple(self.tokenizer.encode(given))
            return Prompt(ids, given, ids)
        shown = tuple(given)
        self.check_ids(shown, "prompt")
        # The engine puts it there itself.
        ids = shown[1:] if shown[:1] == (self.tokenizer.bos_id,) else shown
        model.room_behind(ids)
        return Prompt(ids, self.tokenizer.decode(shown), shown)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError for an id that the tokenizer does not have."""
        size, unused = self.tokenizer.vocab_size, self._unused
        wrong = next((number for number in ids if number >= size or number in unused), None)
        if wrong is not None:
            raise ApiError(400, f"{param}: there is no token {wrong}; ids end at {size - 1}", param)

    def submit(
        self,
        request: Request,
        asked: Sampled,
        prompts: Sequence[Prompt],
        max_tokens: int | None,
        logprobs: int | None,
        explain_prompt: bool = False,
    ) -> Job:
        """Queue `asked.n` texts for each prompt; those of the first prompt come first.

        Args:
            max_tokens: how long a text may become; by default, and at most, what the context and the server allow.
            logprobs: alternatives to report beside each token; None for nothing.
            explain_prompt: report the prompt's tokens too. A client that scores a text so asks for one token behind it,
                and counts on its being there, so then an end of text is a token like others.

        Raises:
            ApiError: a prompt is too long, or the queue is full; see `ModelThread.submit`.
        """
        model, count = self.model(asked.model), asked.n or 1
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        ignore_eos = asked.ignore_eos or (explain_prompt and max_tokens == 1)
        requests = []
        for prompt in prompts:
            sampling = self._sampling(asked, self._room(model, prompt, max_tokens), seed)
            requests += [
                GenerationRequest(prompt.ids, sampling, sample, logprobs, explain_prompt, model.adapter, ignore_eos)
                for sample in range(count)
            ]
        return self.thread.submit(requests, request.state.arrived, self.options.request_seconds)

    def _room(self, model: ServedModel, prompt: Prompt, wished: int | None) -> int:
        """How many tokens a continuation may have: many clients ask for more than there is room for."""
        limit = min(model.room_behind(prompt.ids), self.options.max_tokens)
        return limit if wished is None else min(wished, limit)

    def _sampling(self, asked: Sampled, max_tokens: int, seed: int) -> SamplingOptions:
        given: dict[str, Any] = {
            "temperature": asked.temperature,
            "top_k": asked.top_k if asked.top_k is not None and asked.top_k > 0 else None,
            "top_p": asked.top_p,
            "min_p": asked.min_p,
            "repetition_penalty": asked.repetition_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "presence_penalty": asked.presence_penalty,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return SamplingOptions(max_new_tokens=max_tokens, stop=asked.stops, seed=seed, overflow="stop", **chosen)


async def collect(job: Job, request: Request) -> list[list[Event]]:
    """The events of every text, when all have ended. Taken back when the client goes away.

    Raises ApiError when the job takes too long or the model fails.
    """
    collected: list[list[Event]] = [[] for _ in job.requests]
    async with watched(job, request):
        async for event in job.events():
            collected[event.index].append(event)
    return collected


@asynccontextmanager
async def watched(job: Job, request: Request) -> AsyncIterator[None]:
    """Within, the job is taken back when the client goes away, or when what is done within fails."""
    watcher = asyncio.ensure_future(until_disconnected(request))
    watcher.add_done_callback(lambda done: None if done.cancelled() else job.cancel())
    try:
        yield
    except BaseException:
        job.cancel()
        raise
    finally:
        watcher.cancel()


def usage(job: Job) -> Usage:
    """A prompt counts once, however many samples it has."""
    prompt = sum(len(each.prompt) for each in job.requests if each.sample == 0)
    return Usage(prompt_tokens=prompt, completion_tokens=job.tokens, total_tokens=prompt + job.tokens)


def timings(job: Job) -> Timings:
    """Times of a job that has ended, over all its texts."""
    first, last = min(job.first.values(), default=job.arrived), max(job.last.values(), default=job.arrived)
    waited = min(job.waited.values(), default=0.0)
    writing = last - first
    return Timings(
        queue_ms=1000 * waited,
        prompt_n=usage(job).prompt_tokens,
        prompt_ms=1000 * (first - job.arrived - waited),
        time_to_first_token_ms=1000 * (first - job.arrived),
        predicted_n=job.tokens,
        predicted_ms=1000 * writing,
        predicted_per_second=job.following / writing if writing else 0.0,
    )
