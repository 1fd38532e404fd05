"""The addresses of the server."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from serving.answers import (
    ChatCompletion,
    Completion,
    ModelCard,
    ModelList,
    Status,
    Text,
    TokenizerInfo,
    Tokens,
    Version,
)
from serving.chat import chat
from serving.completions import complete
from serving.errors import ApiError, documented, handle_errors
from serving.guard import Guard
from serving.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from serving.service import Service
from serving.tokens import detokenize, tokenize, tokenizer_info

PAGE = Path(__file__).parent / "page"


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        description = super().openapi()
        for methods in description["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)  # FastAPI's own form of error, which is not used here
        return description


def make_app(service: Service, api_keys: Sequence[str] = (), hosts: Sequence[str] | None = None) -> FastAPI:
    """The application that answers for `service`; its model runs from start-up to shutdown. See `Guard`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.thread.start()
        yield
        await service.stop()

    version = importlib.metadata.version("mini-gpt")
    # The interactive documentation of FastAPI would load scripts from elsewhere.
    app = _Application(title="mini-GPT", version=version, lifespan=lifespan, docs_url=None, redoc_url=None)
    handle_errors(app)
    app.add_middleware(Guard, options=service.options, api_keys=api_keys, hosts=hosts)
    _add_generation(app, service)
    _add_tokens(app, service)
    _add_state(app, service, version)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    data = {"type": "string", "description": "A chunk as JSON; at the end an error, or [DONE]."}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    streamed = {"content": {"text/event-stream": {"schema": event}}}
    errors = documented(404, 429, 504)

    @app.post("/v1/completions", response_model=Completion, responses={200: streamed, **errors})
    async def completions(asked: CompletionRequest, request: Request) -> Completion | Response:
        return await complete(service, asked, request)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: streamed, **errors})
    async def chat_completions(asked: ChatRequest, request: Request) -> ChatCompletion | Response:
        return await chat(service, asked, request)

    @app.get("/v1/models", responses=documented())
    async def models() -> ModelList:
        return ModelList(data=[_card(service, name) for name in service.models])

    @app.get("/v1/models/{name}", responses=documented(404))
    async def model(name: str) -> ModelCard:
        return _card(service, name)


def _card(service: Service, name: str) -> ModelCard:
    model = service.model(name)
    return ModelCard(id=model.id, created=service.started, root=model.id, parent=model.parent, max_model_len=model.room)


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", response_model=Tokens, responses=documented(404, 504))
    async def text_to_tokens(asked: TokenizeRequest, request: Request) -> Response:
        return await _made_aside(service, request, lambda: tokenize(service, asked))

    @app.post("/detokenize", response_model=Text, responses=documented(404, 504))
    async def tokens_to_text(asked: DetokenizeRequest, request: Request) -> Response:
        return await _made_aside(service, request, lambda: detokenize(service, asked))

    @app.get("/tokenizer_info", responses=documented())
    async def info() -> TokenizerInfo:
        return tokenizer_info(service)


async def _made_aside(service: Service, request: Request, answer: Callable[[], BaseModel]) -> Response:
    """A long answer, whose JSON takes a while too."""
    content = await service.text_workers.run(request, lambda: answer().model_dump_json())
    return Response(content, media_type="application/json")


def _add_state(app: FastAPI, service: Service, version: str) -> None:
    @app.get("/health", responses=documented())
    async def health() -> Status:
        if service.thread.failed:
            raise ApiError(503, "the model has failed; the server's log says how, and it must be started again")
        return Status(status="ok")

    @app.get("/ready", responses=documented())
    async def ready() -> Status:
        await health()
        if not service.thread.ready:
            raise ApiError(503, "the model is not ready yet", headers={"retry-after": "1"})
        return Status(status="ready")

    @app.get("/version", responses=documented())
    async def show_version() -> Version:
        return Version(version=version)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **documented()}, response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
