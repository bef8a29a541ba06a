"""A running reply on its way to a client: requests read, replies sent as one JSON answer or as a stream of chunks.

Nothing is sent before the reply's first piece, its end or its fault, or one heartbeat's silence: until then every
fault still gets its own status.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from proxy.errors import InvalidRequest, RequestTooLarge
from proxy.messages import Delta, Finish
from proxy.openai.errors import envelope, explained, send_json
from proxy.reply import Listener, ListenerLeft, Reply, Said
from proxy.telemetry import Receive, Scope, Send, turn_fields

BYTES_PER_TOKEN = 4  # what an estimate goes by
SILENCES_PER_CHUNK = 60.0  # seconds of silence before an empty chunk goes out: some clients' timers hear no comments

Headers = list[tuple[bytes, bytes]]
HeaderValues = Mapping[bytes, bytes]  # by their names in lower case; of one that comes twice the last
Heard = Sequence[tuple[int, Said]]
Usage = dict[str, int]

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_HEARTBEAT = b": still thinking\n"
_DONE = b"data: [DONE]\n\n"
_HEADER_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class Dialect(Protocol):
    """How one door writes an answer: whole, or as the events of a stream. `choice` counts the replies to a request."""

    def whole(self, texts: Sequence[str], finishes: Sequence[Finish], usage: Usage) -> bytes:
        """The one JSON answer."""

    def opening(self, choice: int) -> bytes:
        """The event ahead of a reply's first piece."""

    def delta(self, choice: int, text: str) -> bytes:
        """A piece of text."""

    def ending(self, choice: int, finish: Finish) -> bytes:
        """The event that says why a reply ended."""

    def usage(self, usage: Usage) -> bytes:
        """The event that `include_usage` asks for."""


class Form(NamedTuple):
    """What the client asked of the answer's form."""

    dialect: Dialect
    stream: bool
    include_usage: bool
    prompt_tokens: int
    ignored: Sequence[str] = ()


async def read_body(headers: HeaderValues, receive: Receive, *, limit: int) -> bytes:
    """The request's body. Raises RequestTooLarge over `limit` bytes, InvalidRequest for another type than JSON."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise InvalidRequest("Send the body as JSON, with the header `Content-Type: application/json`")
    body = bytearray()
    length = headers.get(b"content-length", b"")
    over = length.isdigit() and int(length) > limit
    more = True
    while more and not over:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ListenerLeft
        body += message.get("body", b"")
        over = len(body) > limit
        more = message.get("more_body", False)
    if over:
        raise RequestTooLarge(f"The body is over {limit} bytes, which is this proxy's limit (`max_body_bytes`)")
    return bytes(body)


async def deliver(
    scope: Scope, receive: Receive, send: Send, replies: Sequence[Reply], form: Form, *, heartbeat: float
) -> None:
    """Hear the replies and pass them on in the form asked for. A client that leaves is no fault."""
    known = scope["parley"]
    answer = _Answer(replies, form)
    try:
        with Listener(replies) as listener:
            watch = asyncio.create_task(_leave_with_client(listener, receive))
            try:
                if form.stream:
                    await _stream(scope, send, answer, listener, heartbeat=heartbeat)
                else:
                    await _fold(send, answer, listener)
            finally:
                watch.cancel()
        known["outcome"] = known.get("outcome", "ok")
    except ListenerLeft:
        known["outcome"] = "left"
    finally:
        known |= {name: value for name, value in turn_fields(replies[0].record).items() if name != "outcome"}


async def _leave_with_client(listener: Listener, receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        listener.leave()


class _Answer:
    """What was heard so far of the replies to one request."""

    def __init__(self, replies: Sequence[Reply], form: Form) -> None:
        self.form = form
        self._records = [reply.record for reply in replies]
        self._pieces: list[list[str]] = [[] for _ in replies]
        self._finishes: dict[int, Finish] = {}
        self.over = False  # every reply has come to its end

    @property
    def unfinished(self) -> int:
        """A choice that has not ended."""
        return next(choice for choice in range(len(self._pieces)) if choice not in self._finishes)

    def take(self, said: Heard) -> None:
        """Keep what was said."""
        for choice, event in said:
            if isinstance(event, Delta):
                self._pieces[choice].append(event.text)
            else:
                self._finishes[choice] = event
                self.over = len(self._finishes) == len(self._pieces)

    def whole(self) -> bytes:
        """All of it as one JSON answer."""
        finishes = [self._finishes[choice] for choice in range(len(self._pieces))]
        return self.form.dialect.whole(self._texts(), finishes, self._usage())

    def opening(self) -> bytes:
        """The events that every stream begins with."""
        return b"".join(self.form.dialect.opening(choice) for choice in range(len(self._pieces)))

    def rendered(self, said: Heard) -> bytes:
        """The events for what was said; with the last of them, the end of the stream."""
        self.take(said)
        dialect = self.form.dialect
        out = [
            dialect.delta(choice, event.text) if isinstance(event, Delta) else dialect.ending(choice, event)
            for choice, event in said
        ]
        if self.over:
            out += [dialect.usage(self._usage())] if self.form.include_usage else []
            out.append(_DONE)
        return b"".join(out)

    def headers(self) -> Headers:
        """How the answer came about; what only the end tells is left out before it. Of several choices a list each."""
        lines: Headers = []
        for name, told in ((b"x-parley-conversation", "how"), (b"x-parley-reason", "reason")):
            if any(values := [getattr(record, told) for record in self._records]):
                lines.append((name, ", ".join([value or "-" for value in values]).encode()))
        if ignored := ignored_names(self.form.ignored):
            lines.append((b"x-parley-ignored", ignored.encode()))
        if self.over:
            estimated = any(finish.usage is None for finish in self._finishes.values())
            lines.append((b"x-parley-usage", b"estimated" if estimated else b"vendor"))
            if any(finish.extra.get("no_answer") for finish in self._finishes.values()):
                lines.append((b"x-parley-no-answer", b"true"))
        return lines

    def _texts(self) -> list[str]:
        return ["".join(pieces) for pieces in self._pieces]

    def _usage(self) -> Usage:
        """The vendor's totals where it gave them, split by our estimate; else the estimate."""
        completion = sum([estimated_tokens(size_of(text)) for text in self._texts()])
        prompt = self.form.prompt_tokens
        totals = [finish.usage.total_tokens for finish in self._finishes.values() if finish.usage is not None]
        if len(totals) == len(self._pieces):
            completion = min(completion, sum(totals))
            prompt = sum(totals) - completion
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _fold(send: Send, answer: _Answer, listener: Listener) -> None:
    while not answer.over:
        answer.take(await listener.hear())
    await send_json(send, answer.whole(), answer.headers())


async def _stream(scope: Scope, send: Send, answer: _Answer, listener: Listener, *, heartbeat: float) -> None:
    """Events as they come; all that came with one read of the vendor's leaves in one send."""
    said = await listener.hear(heartbeat)  # what is raised here still gets its own status
    events = answer.rendered(said)
    await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS + answer.headers()})
    out = answer.opening()
    silence = 0.0
    while True:
        silence = 0.0 if said else silence + heartbeat
        out += events if said else _HEARTBEAT
        if silence >= SILENCES_PER_CHUNK:
            silence = 0.0
            out += answer.form.dialect.delta(answer.unfinished, "")
        await send({"type": "http.response.body", "body": out, "more_body": not answer.over})
        if answer.over:
            return None
        out = b""
        try:
            said = await listener.hear(heartbeat)
        except ListenerLeft:
            raise
        except Exception as fault:  # noqa: BLE001 - the status is gone: the stream ends with the error, without [DONE]
            out = b"data: " + envelope(explained(fault, scope)) + b"\n\n"
            return await send({"type": "http.response.body", "body": out, "more_body": False})
        events = answer.rendered(said)


def size_of(text: str) -> int:
    """Bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())


def estimated_tokens(size: int) -> int:
    """Tokens in so many bytes of text, roughly, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def ignored_names(names: Iterable[str]) -> str:
    """At most 20 well-formed names, for a header: what a client sends is not trusted to be one."""
    return ", ".join([name for name in dict.fromkeys(names) if _HEADER_WORD.match(name)][:20])
