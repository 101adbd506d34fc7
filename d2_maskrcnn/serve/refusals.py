"""Answers to requests that are refused: a status and one line."""

import math

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from d2_maskrcnn.errors import UserError, one_line

CLIENT_CLOSED = 499  # nginx's status for a client that has gone, seen in logs and metrics only
MAX_RETRY_SECONDS = 60
PARAMETERS = {"threshold": "a number from 0 to 1", "masks": "true or false", "format": "json, png or jpeg"}


class Refusal(HTTPException):
    """Raised to refuse a request.

    Args:
        status: HTTP status.
        message: one line that says what was expected.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        headers = None
        if retry_after is not None:
            headers = {"Retry-After": str(min(max(math.ceil(retry_after), 1), MAX_RETRY_SECONDS))}
        super().__init__(status, message, headers)


def error_response(status: int, message: object, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return ``{"error": message}`` with the message on one line."""
    return JSONResponse({"error": one_line(message)}, status, headers)


async def answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer a :class:`Refusal`, or an unknown path or method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    text = error.detail
    if not isinstance(error, Refusal):
        text = f"{request.method} {request.url.path:.100}: {text.lower()}; /docs lists what this server offers."
    return error_response(error.status_code, text, headers)


async def answer_invalid_parameter(request: Request, error: Exception) -> JSONResponse:
    """Answer a query parameter of a wrong type or outside its range."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = first["loc"][-1]
    return error_response(422, f"{name} {first.get('input')!r:.100}: expected {PARAMETERS[name]}.")


async def answer_bad_input(request: Request, error: Exception) -> JSONResponse:
    """Answer an image that cannot be read."""
    return error_response(400, error)


HANDLERS = {
    HTTPException: answer_http_exception,
    RequestValidationError: answer_invalid_parameter,
    UserError: answer_bad_input,
}
