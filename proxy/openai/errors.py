"""Our errors in OpenAI's envelope: the one table of statuses, and the middleware that answers with it."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil

import orjson
from starlette.exceptions import HTTPException

from proxy.errors import (
    BotResting,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    ProxyError,
    RateLimited,
    RequestTooLarge,
    ShuttingDown,
    Unauthorized,
    VendorError,
    VendorRateLimited,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.reply import ListenerLeft
from proxy.telemetry import App, Receive, Scope, Send, log


@dataclass(frozen=True, slots=True)
class Row:
    """How one kind of error is answered; `retry` is what the SDKs read in `x-should-retry`."""

    status: int
    type: str
    retry: bool


ROWS: Mapping[type[ProxyError], Row] = {  # the nearest ancestor's row counts
    ProxyError: Row(500, "api_error", False),
    InvalidRequest: Row(400, "invalid_request_error", False),
    Unauthorized: Row(401, "invalid_request_error", False),
    ModelNotFound: Row(404, "invalid_request_error", False),
    NotFound: Row(404, "invalid_request_error", False),
    MethodNotAllowed: Row(405, "invalid_request_error", False),
    RequestTooLarge: Row(413, "invalid_request_error", False),
    RateLimited: Row(429, "rate_limit_error", True),
    VendorRateLimited: Row(429, "rate_limit_error", True),
    ShuttingDown: Row(503, "api_error", True),
    VendorError: Row(502, "api_error", False),
    VendorUnavailable: Row(502, "api_error", True),
    BotResting: Row(503, "api_error", True),
    VendorTimeout: Row(504, "api_error", False),
}

# What else of OpenAI's API clients ask for.
_OTHERS = {"assistants", "audio", "batches", "containers", "conversations", "embeddings", "evals", "files"}
_OTHERS |= {"fine_tuning", "images", "moderations", "realtime", "responses", "threads", "uploads", "vector_stores"}

PATIENCE = 2.0  # seconds, and bytes, that a client may go on sending a body that was refused for its size
HEARD_OUT = 64 * 1024 * 1024


def row(fault: ProxyError) -> Row:
    """The table's row for an error."""
    return next(ROWS[kind] for kind in type(fault).__mro__ if kind in ROWS)


def envelope(fault: ProxyError) -> bytes:
    """`{"error": {...}}`; the message ends in the code, by which our own texts are known in a history."""
    message = f"{fault.message} (parley: {fault.code})"
    param = fault.param if isinstance(fault, InvalidRequest) else None
    return orjson.dumps({"error": {"message": message, "type": row(fault).type, "param": param, "code": fault.code}})


def headers(fault: ProxyError) -> list[tuple[bytes, bytes]]:
    """The headers an error is answered with, its body's apart."""
    retry = row(fault).retry and not fault.delivered
    lines = [(b"x-should-retry", b"true" if retry else b"false")]
    if fault.retry_after is not None:
        lines.append((b"retry-after", b"%d" % max(0, ceil(fault.retry_after))))
    elif row(fault).status == 429:
        lines.append((b"retry-after", b"1"))
    if isinstance(fault, MethodNotAllowed):
        lines.append((b"allow", fault.allow.encode()))
    if isinstance(fault, ShuttingDown | RequestTooLarge):
        lines.append((b"connection", b"close"))
    return lines


async def send_json(
    send: Send, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (), *, status: int = 200, more: bool = False
) -> None:
    """Send a response whose body is JSON; with `more` it is not over yet, though nothing will be added."""
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": more})


class Envelope:
    """ASGI middleware: whatever is raised before the response has begun is answered in OpenAI's form.

    It stands inside AccessLine, which notes the status of a response that has begun.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # so that routing raises what it would else answer in its own way
        try:
            await self._app(scope, receive, send)
        except ListenerLeft:
            scope["parley"]["outcome"] = "left"
        except Exception as fault:
            if scope["type"] != "http" or "status" in scope["parley"]:  # the response has begun
                raise
            await answer(send, explained(fault, scope), receive)


def explained(fault: Exception, scope: Scope) -> ProxyError:
    """Any exception as one of ours. What nobody expected is logged by its place and told by the request id only."""
    known = scope.get("parley", {})
    if isinstance(fault, ProxyError):
        error = fault
    elif isinstance(fault, HTTPException):
        error = _from_routing(fault, scope)
    else:
        log.error("internal error", extra={"parley": {"request_id": known.get("request_id")}}, exc_info=fault)
        error = ProxyError(f"Something went wrong here; the log tells more under {known.get('request_id')}")
    known["outcome"] = error.code
    return error


def _from_routing(fault: HTTPException, scope: Scope) -> ProxyError:
    path = scope["path"][:200]
    if fault.status_code == 405:
        allow = ", ".join(sorted((fault.headers or {}).get("Allow", "").split(", ")))
        return MethodNotAllowed(f"{scope['method']} is not allowed on {path}; use {allow}", allow=allow)
    asked = re.match(r"/v1/([a-z_]+)", path)
    if asked and asked[1] in _OTHERS:
        return NotFound(
            f"{path} is nothing that a hosted chat bot can serve: let your client ask another service for it. Bots are "
            "asked at /v1/chat/completions or, in the old shape, at /v1/completions"
        )
    return NotFound(
        f"There is nothing at {path}. Chat bots are served at /v1/chat/completions, and listed at /v1/models"
    )


async def answer(send: Send, fault: ProxyError, receive: Receive) -> None:
    """Send an error as a whole response. Who is still sending gets a while to hear it before the line is cut."""
    still_sending = isinstance(fault, RequestTooLarge)
    await send_json(send, envelope(fault), headers(fault), status=row(fault).status, more=still_sending)
    if still_sending:
        with suppress(TimeoutError):
            await asyncio.wait_for(_hear_out(receive), PATIENCE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hear_out(receive: Receive) -> None:
    size = 0
    more = True
    while more and size < HEARD_OUT:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
