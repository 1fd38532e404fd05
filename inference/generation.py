"""Text generation in one call: prompts in, completions out.

The model sees the id that begins a text and then the prompt, as every document stood in training; so an empty prompt is
fine. A prompt that is longer than the context loses its beginning.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference.engine import Engine
from inference.requests import FinishReason, GenerationRequest, Update
from inference.sampling import SamplingOptions
from inference.speculation import Proposer
from inference.speed import SampleClock, Speed
from model import Decoder

OnText = Callable[[int, str], None]
SLOTS = 32  # samples that are written at a time


@dataclass
class Completion:
    """One continuation, without its prompt."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """As sampled, without the end-of-text id; after "stop" they reach into or past the stop string."""
    finish_reason: FinishReason = "length"
    """The model ended the text ("eos"), a stop string came up ("stop"), or `max_new_tokens` was reached ("length")."""

    def add(self, update: Update) -> None:
        self.text += update.text
        self.token_ids += update.token_ids
        self.finish_reason = update.finish_reason or self.finish_reason


class _Loaded(NamedTuple):
    model: Decoder
    tokenizer: Tokenizer


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Sequence[int]],
    options: SamplingOptions | None = None,
    num_samples: int = 1,
    on_text: OnText | None = None,
    speed: Speed | None = None,
    proposer: Proposer | None = None,
    native: bool = False,
) -> list[Completion]:
    """Continue each prompt `num_samples` times; the samples of the first prompt come first.

    All share batches. Each has a random generator of its own, so sample i depends on the options and its prompt alone
    (within the rounding of matrix products, which can differ between batch sizes). `model` may be in the middle of its
    training: its mode comes back as it was, no gradient is recorded, the global random state is not touched, and an
    autocast around the call is respected.

    Args:
        prompts: texts, or token ids without the one that begins a text.
        on_text: called with the index of the completion and every piece of its text as soon as that is final: never
            with half a character or a part of a stop string. The pieces of a sample join to its `Completion.text`.
        speed: where to add up what the generation cost.
        proposer: makes decoding speculative (`inference/proposers.py`).
        native: write by the native step, as the engine's.

    Raises:
        UserError: `num_samples` below 1, a model whose context holds no more than one token, or a prompt that the
            context cannot hold though the options say that the text ends there.
    """
    options = options or SamplingOptions()
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if num_samples < 1:
        raise UserError(f"--num-samples {num_samples} is out of range: it must be at least 1")
    encoded = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    completions = [Completion() for _ in range(len(encoded) * num_samples)]
    if not completions:
        return []
    virtual = model.config.context_length - model.room  # positions before the text, which the cache holds too
    longest = virtual + 1 + max(map(len, encoded)) + options.max_new_tokens
    speed = speed or Speed()
    with _borrowed(model):
        engine = Engine(
            _Loaded(model, tokenizer),
            slots=min(len(completions), SLOTS),
            prefill_chunk=model.config.context_length,
            capacity=longest,
            speed=speed,
            proposer=proposer,
            native=native,
        )
        for number, completion in enumerate(completions):
            prompt = tuple(map(int, encoded[number // num_samples]))
            if number % num_samples == 0:
                _warn_if_cut(prompt, model.room - 1)
            request = GenerationRequest(prompt, options, sample=number % num_samples)
            engine.submit(request, _receiver(number, completion, on_text, SampleClock(speed)))
        engine.run()
    return completions


def _receiver(
    number: int, completion: Completion, on_text: OnText | None, clock: SampleClock
) -> Callable[[Update], None]:
    def receive(update: Update) -> None:
        clock.note(len(update.token_ids))
        completion.add(update)
        if update.text and on_text is not None:
            on_text(number, update.text)

    return receive


def _warn_if_cut(prompt: Sequence[int], room: int) -> None:
    if len(prompt) > room > 0:
        print(f"warning: the prompt has {len(prompt)} tokens; the model sees only the last {room}", file=sys.stderr)


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
