"""What the engine is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from inference.sampling import SamplingOptions

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class GenerationRequest:
    """One continuation of one prompt."""

    prompt: tuple[int, ...]
    """Token ids, without the id that begins a text."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    sample: int = 0
    """Number among the samples of one prompt; it picks the random stream, `sample_generator(seed, sample)`."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside each one; 0 reports the token's own value only."""
    prompt_logprobs: bool = False
    """Report the prompt's tokens too, with as many alternatives."""
    adapter: str | None = None
    """Name of an adapter that is attached to the model; None is the model as the engine found it, which is the base
    unless adapters were active."""
    ignore_eos: bool = False
    """Take an end of text for a token like others, and write on."""


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithm of the probability that the model itself gave a token: before temperature, penalties and
    filters, as vLLM's "raw_logprobs"."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their values, likeliest first; the token's own value there is the identical float."""


@dataclass(frozen=True)
class Update:
    """What one step brought one request."""

    text: str
    """Final text only: whole characters, and nothing of a stop string."""
    token_ids: tuple[int, ...]
    """New tokens, without an end of text; after "stop" they reach into or past the stop string."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One entry a token of `token_ids`, where the request asked for them."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """Once, with the first update, one entry a token of the prompt; None for those that the context could not hold."""
    finish_reason: FinishReason | None = None
    """Given in the last update: the model ended the text ("eos"), a stop string came up ("stop"), there was no room or
    wish for more tokens ("length"), or the request was taken back ("cancelled")."""
    waited: float = 0.0
    """Seconds from the request's submission until its prompt began to be read."""


@dataclass(frozen=True)
class Ticket:
    """A request that an engine has accepted."""

    number: int
