"""No regress: the calls of Python and C functions that a turn, a chunk and a message cost, counted, against the table.

In one process and without sockets, so that nothing depends on the machine: the vendor is a transport, the client is
plain ASGI. What the network's libraries cost is not in these numbers; what is timed, and how, is in the README here.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import httpx2
import orjson
import pytest
import uvloop

from proxy.app import Proxy, assemble
from proxy.config import Config
from proxy.stores.memory import MemoryStore
from proxy.vendors import load

WARM, COUNTED = 3, 5  # turns before counting, and while counting
REPLY = "This is a reply of some length, as a bot may give it, in one piece or in many."
TOLERATED = 1.2

# Calls for: a plain turn that is continued; the same streamed, in one chunk; each further chunk that comes by itself;
# each further chunk of one read; each further message of a history. Lower a number when it has become too high.
TABLE: Mapping[str, Mapping[str, float]] = {
    "askhandle": {"turn": 997, "streamed": 992, "message": 20.5},
    "newoaks": {"turn": 1057, "streamed": 1105, "chunk": 117, "burst": 18, "message": 20.5},
    "quickchat": {"turn": 1024, "streamed": 1019, "message": 20.5},
    "misterturing": {"turn": 1023, "streamed": 1014, "chunk": 99, "burst": 1, "message": 20.5},
}
ENTRIES: Mapping[str, Mapping[str, str]] = {
    "askhandle": {"token": "t"},
    "newoaks": {"secret_key": "s", "chatbot_id": "b"},
    "quickchat": {"token": "t", "scenario_id": "s"},
    "misterturing": {"api_key": "k", "assistant_id": "a"},
}


OPENED: Mapping[str, bytes] = {
    "rooms": b'{"uuid": "room-%d"}',
    "GetSession": b'{"Success": true, "Data": {"SessionID": %d}}',
    "conversation": b'{"conversation_id": "c-%d"}',
}
ANSWERED: Mapping[str, Mapping[str, Any]] = {
    "messages": {"uuid": "m", "support_answer": REPLY},
    "ClientAsk": {"Success": True, "Data": {"content": REPLY, "TotalToken": 9}},
    "chat": {"conv_id": "q", "reply": REPLY},
}


class Pieces(httpx2.AsyncByteStream):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
            await asyncio.sleep(0)  # what comes by itself is sent by itself
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@dataclass
class Vendor(httpx2.AsyncBaseTransport):
    """All four APIs in their shortest form. Streams have so many chunks, each read by itself or all at once."""

    chunks: int = 1
    burst: bool = False
    opened: int = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        body = b"".join([piece async for piece in request.stream])
        pieces = self._answer(request.url.path, body)
        if self.burst:
            pieces = [b"".join(pieces)]
        return httpx2.Response(200, headers=[("content-type", "text/event-stream")], stream=Pieces(pieces))

    def _answer(self, path: str, body: bytes) -> list[bytes]:
        words = [REPLY] * self.chunks
        call = path.rstrip("/").rpartition("/")[2]
        if call in OPENED:
            self.opened += 1
            return [OPENED[call] % self.opened]
        if path.startswith("/assistant"):
            return [word.encode() for word in words]
        if call == "ClientAsk" and orjson.loads(body)["stream"]:
            return [*(orjson.dumps({"content": word}) + b"\n" for word in words), b'{"answer": ""}\n']
        return [orjson.dumps(ANSWERED[call])]


class Counter:
    """Counts calls while it is open."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> "Counter":
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


def proxied(vendor: str, transport: Vendor) -> Proxy:
    entry = {"vendor": vendor, "base_url": "http://vendor.test", **ENTRIES[vendor]}
    made = load(vendor)
    options = made.Options.model_validate(entry)
    config = Config.model_validate({"keys": [{"name": "web", "key": "sk-web"}], "models": {"bot": options}})
    return assemble(config, {"bot": made(options, transport=transport)}, MemoryStore(max_parked=1000))


async def ask(app: Proxy, messages: Sequence[Mapping[str, str]], *, stream: bool = False) -> tuple[str, int]:
    """The way a turn was continued, and how often something was sent."""
    body = orjson.dumps({"model": "bot", "messages": messages, "stream": stream})
    headers = {"host": "p", "authorization": "Bearer sk-web", "content-type": "application/json", "user-agent": "test"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("p", 80),
        "client": ("c", 1),
        "state": {},
    }
    inbox: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, inbox.get, send)  # type: ignore[arg-type] # messages are any mappings here
    assert sent[0]["status"] == 200, sent
    return dict(sent[0]["headers"])[b"x-parley-conversation"].decode(), len(sent)


def history(number: int, told: int) -> list[dict[str, str]]:
    """A chat of so many exchanges and a question."""
    said = [{"role": "user", "content": f"Question {number}: what of this, and of that?"}]
    for n in range(told):
        said += [{"role": "assistant", "content": REPLY}, {"role": "user", "content": f"And then, number {n}?"}]
    return said


def calls(vendor: str, *, told: int = 1, chunks: int = 1, stream: bool = False, burst: bool = False) -> float:
    """Calls of one turn that is continued, after `told` exchanges."""

    async def turns() -> float:
        transport = Vendor(chunks=1)
        app = proxied(vendor, transport)
        counter = Counter()
        for number in range(WARM + COUNTED):
            for so_far in range(told):
                await ask(app, history(number, so_far))
            transport.chunks, transport.burst = chunks, burst
            asked = history(number, told)
            if number < WARM:
                how, _ = await ask(app, asked, stream=stream)
            else:
                with counter:
                    how, sends = await ask(app, asked, stream=stream)
                assert sends >= (chunks if stream and not burst else 2), "chunks came together"
            assert how == "continued", how
            transport.chunks, transport.burst = 1, False
        return counter.calls / COUNTED

    return uvloop.run(turns())


MEASURES: Mapping[str, Callable[..., float]] = {
    "turn": calls,
    "streamed": lambda vendor: calls(vendor, stream=True),
    "chunk": lambda vendor: (calls(vendor, stream=True, chunks=60) - calls(vendor, stream=True, chunks=10)) / 50,
    "burst": lambda vendor: (
        (calls(vendor, stream=True, chunks=60, burst=True) - calls(vendor, stream=True, chunks=10, burst=True)) / 50
    ),
    "message": lambda vendor: (calls(vendor, told=30) - calls(vendor, told=10)) / 40,
}


@pytest.mark.parametrize(("vendor", "what"), [(vendor, what) for vendor, row in TABLE.items() for what in row])
def test_calls(vendor: str, what: str) -> None:
    """A turn, a chunk and a message cost at most a fifth more calls than they did, and the table is kept true."""
    known = TABLE[vendor][what]
    found = MEASURES[what](vendor)

    assert known / TOLERATED <= found <= known * TOLERATED, f"{what} of {vendor}: {found:.1f} calls, the table: {known}"


if __name__ == "__main__":
    print(json.dumps({v: {what: round(MEASURES[what](v), 1) for what in row} for v, row in TABLE.items()}, indent=2))
