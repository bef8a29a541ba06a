"""Those who call the proxy: the official SDK in all its ways, and a plain socket where bytes and hang-ups count."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from proxy.simulator import Vendor
from tests.conftest import Stage

MODELS = ("askhandle", "misterturing", "newoaks", "quickchat", "quickchat-legacy")
SSL = ssl.create_default_context()  # made once: it is most of what a client costs

Request = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """What a client was given: the text, and what came with it."""

    text: str
    headers: Mapping[str, str]
    finish: str | None
    usage: CompletionUsage | None = None
    pieces: Sequence[str] = ()

    @property
    def how(self) -> str:
        """`x-parley-conversation` and its reason, as one word each."""
        return " ".join(filter(None, map(self.headers.get, ("x-parley-conversation", "x-parley-reason"))))


Way = Callable[[str, str, Request], Awaitable[Heard]]


def sync_client(url: str, key: str = "none") -> OpenAI:
    """The SDK, without its retries."""
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=DefaultHttpxClient(verify=SSL))


def async_client(url: str, key: str = "none") -> AsyncOpenAI:
    """The SDK's other half."""
    http = DefaultAsyncHttpxClient(verify=SSL)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http)


def _folded(chunks: Sequence[ChatCompletionChunk], headers: Mapping[str, str]) -> Heard:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    pieces = [choice.delta.content for choice in choices if choice.delta.content]
    finishes = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(finishes) == 1, "a stream has one finish"
    usage = next((chunk.usage for chunk in chunks if chunk.usage), None)
    return Heard("".join(pieces), dict(headers), finishes[0], usage, pieces)


async def async_plain(url: str, key: str, request: Request) -> Heard:
    async with async_client(url, key) as client:
        raw = await client.chat.completions.with_raw_response.create(**request)
    completion = raw.parse()
    choice = completion.choices[0]
    return Heard(choice.message.content or "", dict(raw.headers), choice.finish_reason, completion.usage)


async def async_stream(url: str, key: str, request: Request) -> Heard:
    async with async_client(url, key) as client:
        raw = await client.chat.completions.with_raw_response.create(**request, stream=True)
        return _folded([chunk async for chunk in raw.parse()], raw.headers)


async def sync_plain(url: str, key: str, request: Request) -> Heard:
    def call() -> Heard:
        with sync_client(url, key) as client:
            raw = client.chat.completions.with_raw_response.create(**request)
        completion = raw.parse()
        choice = completion.choices[0]
        return Heard(choice.message.content or "", dict(raw.headers), choice.finish_reason, completion.usage)

    return await asyncio.to_thread(call)


async def sync_stream(url: str, key: str, request: Request) -> Heard:
    def call() -> Heard:
        with sync_client(url, key) as client:
            raw = client.chat.completions.with_raw_response.create(**request, stream=True)
            return _folded(list(raw.parse()), raw.headers)

    return await asyncio.to_thread(call)


WAYS: Mapping[str, Way] = {
    "sync": sync_plain,
    "sync-stream": sync_stream,
    "async": async_plain,
    "async-stream": async_stream,
}


@dataclass
class Refused(Exception):
    """A raw answer that is no reply: another status than 200, or a stream without `[DONE]`."""

    answer: "Answer"


async def raw_plain(url: str, key: str, request: Request) -> Heard:
    """The same without the SDK, at half the cost: for tests that are not about it."""
    answer = await _raw(url, key, request)
    if answer.status != 200:
        raise Refused(answer)
    (choice,) = answer.json["choices"]
    return Heard(choice["message"]["content"], answer.headers, choice["finish_reason"])


async def raw_stream(url: str, key: str, request: Request) -> Heard:
    answer = await _raw(url, key, {**request, "stream": True})
    if answer.status != 200 or answer.data[-1:] != ["[DONE]"]:
        raise Refused(answer)
    choices = [choice for chunk in answer.data[:-1] for choice in chunk["choices"]]
    pieces = [choice["delta"].get("content", "") for choice in choices]
    return Heard("".join(pieces), answer.headers, choices[-1]["finish_reason"], None, pieces)


async def _raw(url: str, key: str, request: Request) -> "Answer":
    body = dict(request)
    headers = [f"{name}: {value}" for name, value in body.pop("extra_headers", {}).items()]
    return await call(url, body, headers=[f"authorization: Bearer {key}", "connection: close", *headers])


@dataclass
class Chat:
    """A chat as its client keeps it: the whole history, sent anew with every turn."""

    url: str
    model: str
    way: Way = raw_plain
    key: str = "none"
    more: Mapping[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    async def say(self, text: str) -> Heard:
        """One more turn."""
        self.messages.append({"role": "user", "content": text})
        heard = await self.ask()
        self.messages.append({"role": "assistant", "content": heard.text})
        return heard

    async def ask(self) -> Heard:
        """Send what is there; the answer is not kept."""
        return await self.way(self.url, self.key, {"model": self.model, "messages": self.messages, **self.more})

    def back_to(self, turn: int) -> "Chat":
        """A chat of its own that goes on from before the given turn (0 is the first)."""
        return Chat(self.url, self.model, self.way, self.key, self.more, [dict(m) for m in self.messages[: 2 * turn]])


def heard_by(vendor: Vendor) -> list[list[str]]:
    """The user texts of every vendor conversation, the oldest conversation first."""
    return [[entry.text for entry in conversation.heard] for conversation in vendor.conversations.values()]


async def soon(holds: Callable[[], object], seconds: float = 2.0) -> None:
    """Wait until something holds that happens in another thread."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.005)


# --- a plain socket


@dataclass
class Answer:
    """An HTTP answer as it came: status, header lines in lower case, and the chunks of its body with their times."""

    status: int
    lines: list[tuple[str, str]]
    pieces: list[bytes] = field(default_factory=list, repr=False)
    times: list[float] = field(default_factory=list, repr=False)
    whole: bool = True  # False: the body broke off

    @property
    def headers(self) -> Mapping[str, str]:
        return dict(self.lines)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> list[Any]:
        """The `data:` objects of an event stream; `[DONE]` as a string."""
        payloads = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


@dataclass
class Line:
    """An open connection that one request was sent over."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> Answer:
        """The whole answer."""
        answer = await self.begin()
        async for piece in self.pieces(answer):
            answer.pieces.append(piece)
            answer.times.append(time.monotonic())
        return answer

    async def begin(self) -> Answer:
        """Status and headers."""
        status = int((await self.reader.readuntil(b"\r\n")).split()[1])
        lines: list[tuple[str, str]] = []
        while line := (await self.reader.readuntil(b"\r\n")).decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(":")
            lines.append((name.lower(), value.strip()))
        return Answer(status, lines)

    async def pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """The body, a chunk at a time."""
        if "content-length" in answer.headers:
            yield await self.reader.readexactly(int(answer.headers["content-length"]))
            return
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.whole = False

    async def first_piece(self) -> bytes:
        """Wait for the first chunk of a body; the answer's headers are read over."""
        return await anext(self.pieces(await self.begin()))

    def leave(self) -> None:
        """Hang up, at once."""
        self.writer.transport.abort()


def request_bytes(path: str, body: bytes, method: str = "POST", headers: Iterable[str] = ()) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers]
    if not any(line.lower().startswith("content-type") for line in lines):
        lines.append("content-type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def calling(
    url: str,
    body: object = None,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Iterable[str] = (),
    buffer: int = 0,
) -> AsyncIterator[Line]:
    """A request sent over a connection of its own. `body`: bytes as they are, all else as JSON.

    `buffer`: bytes that the system may receive before they are read; 0: as many as it likes.
    """
    parts = urlsplit(url)
    caller = socket.socket()
    caller.setblocking(False)
    if buffer:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(caller, (parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=caller)
    try:
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        writer.write(request_bytes(path, sent, method, headers))
        await writer.drain()
        yield Line(reader, writer)
    finally:
        writer.close()


async def call(url: str, body: object = None, **how: Any) -> Answer:
    """A request over a plain socket, and its whole answer."""
    async with asyncio.timeout(20), calling(url, body, **how) as line:
        return await line.answer()


def question(model: str, *texts: str, **more: Any) -> dict[str, Any]:
    """A request body; texts are the user's and the assistant's in turn."""
    roles = ("user", "assistant")
    return {
        "model": model,
        "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)],
        **more,
    }


def fresh(built: Stage) -> Iterator[Stage]:
    """A stage with vendors as new; afterwards they have seen nothing that their documents forbid."""
    for vendor in built.simulator.vendors.values():
        vendor.reset()
        vendor.latency = vendor.gap = 0
    yield built
    for vendor in built.simulator.vendors.values():
        assert vendor.violations == []
        vendor.reset()
        vendor.latency = vendor.gap = 0
