"""What is known about one request and one turn, and who is told: no message text, no secrets."""

import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from json import JSONEncoder, dumps
from secrets import token_hex
from typing import Any

from proxy.messages import TurnRecord

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("parley")

PROBES = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: not logged, and answered while draining

_WELL_FORMED_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}\Z")


Sink = Callable[[TurnRecord], None]


def log_turn(record: TurnRecord) -> None:
    """A sink: a line for every turn whose end nobody heard; the others are told by their request's access line."""
    if not record.heard:
        log.info("turn", extra={"parley": turn_fields(record)})


def turn_fields(record: TurnRecord) -> dict[str, object]:
    """What a log line says of a turn."""
    ended = record.ended or time.monotonic()
    return {
        "model": record.model,
        "conversation": record.how,
        "reason": record.reason,
        "outcome": record.outcome,
        "first_delta_ms": _ms(record.first_delta - record.started) if record.first_delta is not None else None,
        "turn_ms": _ms(ended - record.started),
        "deltas": record.deltas,
        "parked": record.parked,
        **({"renamed": True} if record.renamed else {}),
    }


class AccessLine:
    """ASGI middleware, outermost: the request's id, its processing time, and one line in the log when it is over.

    Doors put what they know into `scope["parley"]`, a dict of plain values.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        request_id = _request_id(scope)
        known: dict[str, object] = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}
        scope["parley"] = known

        def stamped(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                known["status"] = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % _ms(time.perf_counter() - started)),
                ]
            return send(message)

        try:
            await self._app(scope, receive, stamped)
        finally:
            known["ms"] = _ms(time.perf_counter() - started)
            if scope["path"] not in PROBES:
                log.info("request", extra={"parley": known})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _WELL_FORMED_ID.match(value):
            return str(value.decode())
    return f"req_{token_hex(16)}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


_JSON = JSONEncoder(ensure_ascii=False, default=str)


class JsonLines(logging.Formatter):
    """One JSON object a line; an exception is told by its class and where it was raised, never by its message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "parley", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = _where(record)
        return _JSON.encode(line)


class PlainLines(JsonLines):
    """The same for eyes."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "parley", {})
        told = " ".join(f"{name}={_plain(value)}" for name, value in fields.items() if value not in (None, ""))
        where = f" {record.exc_info[0].__name__} at {_where(record)}" if record.exc_info and record.exc_info[0] else ""
        return f"{record.levelname.lower()} {record.getMessage()} {told}{where}"


def _plain(value: object) -> str:
    """One line of printable text, whatever a client sent."""
    text = str(value)
    return text if text.isprintable() else dumps(text)


def _where(record: logging.LogRecord) -> str:
    trace = record.exc_info[2] if record.exc_info else None
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(frames[-6:]))


def start_logging(*, plain: bool) -> None:
    """Send this program's log to stderr, a JSON object or a plain line each; the server's complaints likewise.

    For the whole process, log records then no longer know their line of code, thread and process, which no line tells:
    https://docs.python.org/3/howto/logging.html#optimization
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainLines() if plain else JsonLines())
    for name, level in (("parley", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
