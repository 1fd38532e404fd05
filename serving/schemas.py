"""Requests, with the fields and bounds of OpenAI's API and the extensions that vLLM has too.

Unknown fields are passed over, as clients send many. Those that ask for something that cannot be had here, and without
which the answer would mean something else, are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator


def _whole(text: str) -> str:
    """JSON can spell half of a surrogate pair; no answer could hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]

# A list is given up at its first wrong element: an error for each of a million would hold up the whole server.
_T = TypeVar("_T")
Several = Annotated[list[_T], Field(fail_fast=True, max_length=2048)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, max_length=2**20)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(_Strict):
    include_usage: bool = False
    """Send a last chunk with the usage."""


class Sampled(_Strict):
    """What both ways of generating have in common."""

    model: Text | None = None
    """Name of a model of /v1/models; by default the run that is served."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    """Keep the K likeliest tokens; 0 or -1 keep all."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    user: str | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def reports_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Sampled):
    """POST /v1/completions"""

    prompt: Text | Several[Text] | TokenIds | Several[TokenIds]
    """Texts or token ids. An id that begins a text may stand in front; it is there in any case."""
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: None = None
    suffix: None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Any) -> Any:
        if prompt == []:
            raise ValueError("give at least one prompt")
        return prompt


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class ChatMessage(_Strict):
    role: Text = Field(max_length=64)
    content: Text | Several[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and content as a chat template takes them."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ResponseFormat(_Strict):
    type: Literal["text"]


class ChatRequest(Sampled):
    """POST /v1/chat/completions"""

    messages: Several[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    functions: list[Any] | None = Field(None, max_length=0)


class TokenizeRequest(_Strict):
    model: Text | None = None
    prompt: Text
    add_special_tokens: bool = True
    """Put the id that begins a text in front."""


class DetokenizeRequest(_Strict):
    model: Text | None = None
    tokens: TokenIds
