"""Text generation with a key-value cache: prompts in, completions out.

The model sees the id that begins a text and then the prompt, as every document stood in training; so an empty prompt is
fine. When the context is full, the newest half of it is kept, behind that id, and encoded again.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference.sampling import SamplingOptions, next_ids, sample_generators
from inference.streaming import TextStream
from model import Decoder, KVCache

FinishReason = Literal["eos", "stop", "length"]
OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Completion:
    """One continuation, without its prompt."""

    text: str
    token_ids: list[int]
    """As sampled, without the end-of-text id; after "stop" they reach into or past the stop string."""
    finish_reason: FinishReason
    """The model ended the text ("eos"), a stop string came up ("stop"), or `max_new_tokens` was reached ("length")."""


@dataclass
class Speed:
    """Tokens and seconds spent, the reading of contexts (prefill) and token-by-token writing (decode) apart."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def add(self, prefill: bool, tokens: int, seconds: float) -> None:
        if prefill:
            self.prefill_tokens += tokens
            self.prefill_seconds += seconds
        else:
            self.decode_tokens += tokens
            self.decode_seconds += seconds


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Sequence[int]],
    options: SamplingOptions | None = None,
    num_samples: int = 1,
    on_text: OnText | None = None,
    speed: Speed | None = None,
) -> list[Completion]:
    """Continue each prompt `num_samples` times; the samples of the first prompt come first.

    The samples of one prompt share a batch. Each has a random generator of its own, so sample i depends on the options
    and its prompt alone (within the rounding of matrix products, which can differ between batch sizes). `model` may be
    in the middle of its training: its mode comes back as it was, no gradient is recorded, the global random state is
    not touched, and an autocast around the call is respected.

    Args:
        prompts: texts, or token ids without the one that begins a text.
        on_text: called with the index of the completion and every piece of its text as soon as that is final: never
            with half a character or a part of a stop string. The pieces of a sample join to its `Completion.text`.
        speed: where to add up what the generation cost.

    Raises:
        UserError: `num_samples` below 1, or a model whose context holds no more than one token.
    """
    options = options or SamplingOptions()
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if num_samples < 1:
        raise UserError(f"--num-samples {num_samples} is out of range: it must be at least 1")
    if model.room < 2:
        raise UserError("a model with a context of one token cannot continue text; train with model.context_length > 1")
    completions: list[Completion] = []
    with _borrowed(model):
        for prompt in prompts:
            batch = _Batch(model, tokenizer, prompt, options, num_samples, on_text, first=len(completions))
            completions += batch.run(speed or Speed())
    return completions


@contextmanager
def _borrowed(model: Decoder) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards everything is as the caller had it."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        # Autocast remembers low-precision copies of the weights. Those made here carry no gradient, and in some torch
        # releases a training step under the same autocast would silently learn nothing through them.
        torch.clear_autocast_cache()


@dataclass
class _Sample:
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class _Batch:
    """The samples of one prompt, which grow together, so that they always have the same length."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        prompt: str | Sequence[int],
        options: SamplingOptions,
        count: int,
        on_text: OnText | None,
        first: int,
    ) -> None:
        self.model, self.options = model, options
        self.bos_id, self.eos_ids = tokenizer.bos_id, tokenizer.eos_ids
        self.unused_ids = tokenizer.unused_ids(model.config.vocab_size)
        self.on_text, self.first = on_text, first
        self.context = model.room
        self.generators = sample_generators(options.seed, count)
        weight = model.embedding.weight
        self.device = weight.device
        prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self.samples = [_Sample(TextStream(tokenizer, options.stop, prompt_ids)) for _ in range(count)]
        # The repetition penalty counts the whole prompt, but not the id that stands before it.
        self.seen = torch.zeros(count, model.config.vocab_size, dtype=torch.bool)
        self.seen[:, prompt_ids] = True
        self.history = torch.tensor([self._fit(prompt_ids)] * count, dtype=torch.int64)
        virtual = model.config.context_length - model.room  # positions before the text, which the cache holds too
        capacity = virtual + min(self.context, self.history.shape[1] + options.max_new_tokens)
        self.cache = KVCache(model.config, count, capacity, weight.device, _compute_dtype(weight))

    def run(self, speed: Speed) -> list[Completion]:
        """Write until every sample has ended."""
        ids = self.history
        for _ in range(self.options.max_new_tokens):
            began, prefill = time.perf_counter(), self.cache.length == 0
            # Logits are drawn from on the CPU, in double precision, which not every device has.
            logits = self.model(ids.to(self.device), cache=self.cache, last_only=True)[:, -1].cpu()
            logits[:, self.unused_ids] = -math.inf
            chosen = next_ids(logits, self.seen, self.options, self.generators)
            speed.add(prefill, ids.numel(), time.perf_counter() - began)
            for number, token_id in enumerate(chosen.tolist()):
                self._accept(number, token_id)
            if all(sample.finish_reason for sample in self.samples):
                break
            ids = self._following(chosen[:, None])
        return [self._finish(number) for number in range(len(self.samples))]

    def _fit(self, prompt_ids: list[int]) -> list[int]:
        """The id that begins a text and as much of the end of the prompt as the context holds."""
        room = self.context - 1
        if len(prompt_ids) > room:
            print(
                f"warning: the prompt has {len(prompt_ids)} tokens; the model sees only the last {room}",
                file=sys.stderr,
            )
        return [self.bos_id, *prompt_ids[-room:]]

    def _following(self, chosen: Tensor) -> Tensor:  # (batch, 1) -> (batch, 1), or (batch, time) when starting over
        """What to feed next: the chosen ids, or once the context is full its newest half."""
        self.seen.scatter_(1, chosen, True)
        self.history = torch.cat((self.history, chosen), dim=1)
        if self.cache.length < self.model.config.context_length:
            return chosen
        newest = self.history[:, -(self.context // 2) :]
        self.history = torch.cat((torch.full_like(chosen, self.bos_id), newest), dim=1)
        self.cache.reset()
        return self.history

    def _accept(self, number: int, token_id: int) -> None:
        """Give one new token to its sample, unless that has ended; ended samples only keep the batch in step."""
        sample = self.samples[number]
        if sample.finish_reason:
            return
        if token_id in self.eos_ids:
            sample.finish_reason = "eos"
            return
        sample.token_ids.append(token_id)
        self._emit(number, sample.stream.add(token_id))
        if sample.stream.stopped:
            sample.finish_reason = "stop"

    def _finish(self, number: int) -> Completion:
        sample = self.samples[number]
        self._emit(number, sample.stream.close())
        if sample.stream.stopped:
            sample.finish_reason = "stop"
        return Completion(sample.stream.text, sample.token_ids, sample.finish_reason or "length")

    def _emit(self, number: int, text: str) -> None:
        if text and self.on_text is not None:
            self.on_text(self.first + number, text)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that keys and values come out in: the autocast's, where one is active, else the weights'.

    A frozen embedding may be stored in half precision, and gives fp32 all the same.
    """
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype if weight.requires_grad else torch.float32
