"""Errors in the form in which OpenAI's API gives them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from common.errors import UserError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error"}
TYPES |= {413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error"}


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetails


class ApiError(Exception):
    """An answer with status 4xx or 5xx."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`param` is the field of the request that is wrong; `code` a word for programs."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def too_late(seconds: float) -> ApiError:
    """What a request is told that takes longer than it may."""
    return ApiError(504, f"the request took longer than {seconds:g} seconds; ask for less", code="timeout")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What FastAPI is told of the errors that an address can answer with."""
    return {status: {"model": ErrorBody} for status in (400, 401, 408, 413, 500, 503, *statuses)}


def handle_errors(app: FastAPI) -> None:
    """Let `app` answer every error in this form."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return ApiError(400, str(error)).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = {
            400: "the body is not JSON in UTF-8, or too deeply nested",  # which FastAPI does not tell apart
            404: f"there is nothing at {request.url.path}",
        }.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Outside the middleware that gives every other answer its id.
        request_id = request.scope.get("state", {}).get("request_id", "")
        print(f"x-request-id {request_id} failed:", file=sys.stderr, flush=True)  # uvicorn then says how
        message = "the server failed; its log says how, under this x-request-id"
        return ApiError(500, message, headers={"x-request-id": request_id}).response()

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(UserError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _invalid(error: RequestValidationError) -> ApiError:
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    where = [str(part) for part in first["loc"][1:]]
    if not where:
        return ApiError(400, "the body must be a JSON object, with the header Content-Type: application/json")
    # A union names each of its members behind the field.
    reasons = dict.fromkeys(problem["msg"] for problem in problems if list(map(str, problem["loc"][1:2])) == where[:1])
    return ApiError(400, f"{where[0]}: {'; or '.join(list(reasons)[:4])}", param=where[0])
