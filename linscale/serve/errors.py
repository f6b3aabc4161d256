"""Errors as clients of the OpenAI API expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linscale.config import UserError

TYPES = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error", 429: "rate_limit_error"}
SHOWN = 60  # characters of a value in a message
logger = logging.getLogger(__name__)


class ApiError(Exception):
    """A request that is answered by an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message.encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.content(), self.status, headers)


def refused(error: UserError, prompt: str = "prompt") -> ApiError:
    """The answer to a request whose values do not do. Messages begin with the field; `prompt` is what it is called."""
    message = re.sub("^prompt(?= =|:)", prompt, str(error))
    named = re.match(r"([a-z_]+)(?: =|:)", message)
    return ApiError(400, message, param=named[1] if named else None, code="invalid_value")


def internal(error: BaseException) -> ApiError:
    """The answer when the server is at fault: what it was is in the log alone."""
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


class Catch:
    """Answers what nothing else has caught, as a mistake of the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if begun:
                raise
            await internal(error).response()(scope, receive, send)


def add_handlers(app: FastAPI) -> None:
    """Have every error of the app answered in this form."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def _user_error(request: Request, error: UserError) -> JSONResponse:
        return refused(error).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return ApiError(404, f"{request.url.path}: no such path", code="unknown_path").response()
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message).response()


def _of_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """All problems of a request's fields in one line."""
    lines = [_problem(each) for each in problems]
    fields = [name for name, _ in lines if name]
    return ApiError(
        400, "; ".join(text for _, text in lines), param=fields[0] if fields else None, code="invalid_value"
    )


def _problem(item: Mapping[str, Any]) -> tuple[str, str]:
    """The field of a problem, and what it is."""
    where = [str(part) for part in item["loc"] if part != "body"]
    name, kind, value = ".".join(where), item["type"], item.get("input")
    if kind == "json_invalid":
        return "", f"the request is not JSON: {item['ctx']['error']} at character {item['loc'][-1]}"
    if kind == "extra_forbidden":
        return name, f"unknown field '{name}'"
    if kind == "missing":
        return name, f"'{name}' is required" if name else "the request is empty; expected a JSON object"
    if not where:
        return "", "the request is not a JSON object; send one with Content-Type: application/json"
    shown = ascii(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    message = item["msg"].removeprefix("Value error, ")
    return name, f"{name} = {shown}: {message[:1].lower()}{message[1:]}"
