"""A running reply on its way to a client: requests read, replies sent as one JSON answer or as a stream of chunks.

Nothing is sent before the reply's first piece, its end or its fault, or one heartbeat's silence: until then every
fault still gets its own status.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import orjson

from proxy.errors import InvalidRequest, RequestTooLarge
from proxy.messages import Delta, Finish
from proxy.openai.errors import envelope, explained
from proxy.reply import Listener, ListenerLeft, Reply, Said
from proxy.telemetry import Receive, Scope, Send, turn_fields

BYTES_PER_TOKEN = 4  # what an estimate goes by
SILENCES_PER_CHUNK = 60.0  # seconds of silence before an empty chunk goes out: some clients' timers hear no comments

Headers = list[tuple[bytes, bytes]]

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_HEARTBEAT = b": still thinking\n"
_DONE = b"data: [DONE]\n\n"
_HEADER_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Form:
    """What the client asked of the answer's form."""

    model: str
    stream: bool
    include_usage: bool
    prompt_tokens: int
    ignored: Sequence[str] = ()


class Chunks:
    """One reply's stream chunks: everything but the text is rendered once."""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        head = orjson.dumps(self._head)[:-1]
        self._before = b"data: " + head + b',"choices":[{"index":0,"delta":{"content":'
        self._after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def opening(self) -> bytes:
        """The chunk that names the role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, text: str) -> bytes:
        """A piece of text."""
        return self._before + orjson.dumps(text) + self._after

    def ending(self, finish: Finish) -> bytes:
        """The chunk that says why it ended."""
        return self._chunk({}, finish.reason)

    def usage(self, usage: dict[str, int]) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return b"data: " + orjson.dumps({**self._head, "choices": [], "usage": usage}) + b"\n\n"

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return b"data: " + orjson.dumps({**self._head, "choices": [choice]}) + b"\n\n"


async def read_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """The request's body. Raises RequestTooLarge over `limit` bytes, InvalidRequest for another type than JSON."""
    headers = dict(scope["headers"])
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


@asynccontextmanager
async def listening(reply: Reply, receive: Receive) -> AsyncIterator[Listener]:
    """A listener that leaves by itself when the client hangs up."""
    with reply.listen() as listener:
        watch = asyncio.create_task(_await_disconnect(receive))
        watch.add_done_callback(lambda _: listener.leave())
        try:
            yield listener
        finally:
            watch.cancel()


async def _await_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def deliver(scope: Scope, receive: Receive, send: Send, reply: Reply, form: Form, *, heartbeat: float) -> None:
    """Hear the reply and pass it on in the form asked for. A client that leaves is no fault."""
    known = scope["parley"]
    try:
        async with listening(reply, receive) as listener:
            if form.stream:
                await _stream(scope, send, reply, listener, form, heartbeat=heartbeat)
            else:
                await _fold(send, reply, listener, form)
        known["outcome"] = known.get("outcome", "ok")
    except ListenerLeft:
        known["outcome"] = "left"
    finally:
        known |= {name: value for name, value in turn_fields(reply.record).items() if name != "outcome"}


async def _fold(send: Send, reply: Reply, listener: Listener, form: Form) -> None:
    pieces: list[str] = []
    finish: Finish | None = None
    while finish is None:
        for said in await listener.hear():
            if isinstance(said, Delta):
                pieces.append(said.text)
            else:
                finish = said
    text = "".join(pieces)
    body = orjson.dumps(
        {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": form.model,
            "choices": [_choice(text, finish)],
            "usage": usage(form, text, finish),
        }
    )
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    lines += _told(reply, form, finish)
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _choice(text: str, finish: Finish) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish.reason}


async def _stream(scope: Scope, send: Send, reply: Reply, listener: Listener, form: Form, *, heartbeat: float) -> None:
    """Chunks as they come; all that came with one read of the vendor's leaves in one send."""
    chunks = Chunks(form.model)
    pieces: list[str] = []
    said = await listener.hear(heartbeat)  # what is raised here still gets its own status
    lines = _STREAM_HEADERS + _told(reply, form, *(event for event in said if isinstance(event, Finish)))
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    out = chunks.opening()
    silence = 0.0
    while True:
        silence = 0.0 if said else silence + heartbeat
        out += _rendered(chunks, said, pieces, form) if said else _HEARTBEAT
        if silence >= SILENCES_PER_CHUNK:
            silence = 0.0
            out += chunks.delta("")
        over = bool(said) and isinstance(said[-1], Finish)
        await send({"type": "http.response.body", "body": out, "more_body": not over})
        if over:
            return None
        out = b""
        try:
            said = await listener.hear(heartbeat)
        except ListenerLeft:
            raise
        except Exception as fault:  # noqa: BLE001 - the status is gone: the stream ends with the error, without [DONE]
            out = b"data: " + envelope(explained(fault, scope)) + b"\n\n"
            return await send({"type": "http.response.body", "body": out, "more_body": False})


def _rendered(chunks: Chunks, said: Sequence[Said], pieces: list[str], form: Form) -> bytes:
    out: list[bytes] = []
    for event in said:
        if isinstance(event, Delta):
            pieces.append(event.text)
            out.append(chunks.delta(event.text))
        else:
            out.append(chunks.ending(event))
            if form.include_usage:
                out.append(chunks.usage(usage(form, "".join(pieces), event)))
            out.append(_DONE)
    return b"".join(out)


def estimated_tokens(size: int) -> int:
    """Tokens in so many bytes of text, roughly, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def usage(form: Form, text: str, finish: Finish) -> dict[str, int]:
    """The vendor's total where it gave one, split by our estimate; else the estimate."""
    completion = estimated_tokens(len(text.encode()))
    prompt = form.prompt_tokens
    if finish.usage is not None:
        completion = min(completion, finish.usage.total_tokens)
        prompt = finish.usage.total_tokens - completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _told(reply: Reply, form: Form, *finish: Finish) -> Headers:
    """The headers that say how the answer came about; what only the reply's end tells is left out before it."""
    record = reply.record
    lines: Headers = []
    if record.how:
        lines.append((b"x-parley-conversation", record.how.encode()))
    if record.reason:
        lines.append((b"x-parley-reason", record.reason.encode()))
    if ignored := ignored_names(form.ignored):
        lines.append((b"x-parley-ignored", ignored.encode()))
    for end in finish:
        lines.append((b"x-parley-usage", b"estimated" if end.usage is None else b"vendor"))
        if end.extra.get("no_answer"):
            lines.append((b"x-parley-no-answer", b"true"))
    return lines


def ignored_names(names: Iterable[str]) -> str:
    """At most 20 well-formed names, for a header: what a client sends is not trusted to be one."""
    return ", ".join([name for name in dict.fromkeys(names) if _HEADER_WORD.match(name)][:20])
