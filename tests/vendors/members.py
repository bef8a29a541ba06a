"""Who must keep the promises of `proxy.ports.Bot`: one row per bot and manner, and the scene it is tried on.

A vendor joins with a row in MEMBERS under the name it has in `demo_models` and in `Simulator.vendors`; test_contract.py
knows no vendor.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.simulator import Simulator, Vendor
from proxy.simulator.bot import Conversation
from proxy.vendors import load
from proxy.vendors.base import HttpBot
from tests.conftest import demo_models

PROMPTLY = 2.0  # seconds: ample on a busy machine; whatever must not happen in that time would last for ever


@dataclass(frozen=True)
class Member:
    """One bot in one manner.

    `model` is its name in `demo_models`, `modes` are attributes of its simulated vendor. `opens` is the operation that
    opens a conversation ("": none) and `context` the field that takes the system prompt ("": it stands in the message).
    `piecewise`: deltas come before the vendor has ended. `never` says of faults why they cannot be told from a reply.
    """

    model: str
    stream: bool = False
    modes: Mapping[str, Any] = field(default_factory=dict)
    opens: str = ""
    context: str = ""
    piecewise: bool = False
    never: Mapping[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        """What its simulated vendor can do wrong, as far as it can be told."""
        return SIMULATED[self.model].kinds - self.never.keys()


SIMULATED = Simulator().vendors

MEMBERS: Mapping[str, Member] = {
    # Neither framing nor cuts touch NewOaks' plain reply, so that is tried once.
    "newoaks": Member("newoaks", opens="open"),
    "newoaks-lines": Member("newoaks", stream=True, opens="open", piecewise=True),
    "newoaks-lines-cut": Member("newoaks", stream=True, modes={"cuts": 7}, opens="open", piecewise=True),
    "newoaks-sse": Member("newoaks", stream=True, modes={"framing": "sse"}, opens="open", piecewise=True),
    "newoaks-sse-cut": Member(
        "newoaks", stream=True, modes={"framing": "sse", "cuts": 3}, opens="open", piecewise=True
    ),
    "quickchat": Member("quickchat"),
    "quickchat-streamed": Member("quickchat", stream=True),
    "quickchat-legacy": Member("quickchat-legacy", context="message_context"),
    "quickchat-legacy-streamed": Member("quickchat-legacy", stream=True, context="message_context"),
}


@dataclass(frozen=True)
class Heard:
    """A reply, taken apart."""

    events: Sequence[Event]

    @property
    def handles(self) -> list[Handle]:
        return [event for event in self.events if isinstance(event, Handle)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def order(self) -> list[type[Event]]:
        """The kinds of event as they came, neighbours of one kind told once."""
        kinds = [type(event) for event in self.events]
        return [kind for at, kind in enumerate(kinds) if kind is Finish or kinds[at - 1 : at] != [kind]]


@dataclass
class Scene:
    """Bots of one member before its simulated vendor, on a real socket."""

    member: Member
    vendor: Vendor
    entry: Mapping[str, Any]
    bots: list[HttpBot[Any]] = field(default_factory=list)

    def bot(self, shreds: int | None = None, **options: Any) -> HttpBot[Any]:
        """A bot as its configuration would make it, with more or other options; `shreds` are its bytes per read."""
        made = load(self.entry["vendor"])
        transport = Shredder(shreds) if shreds else None
        self.bots.append(made(made.Options.model_validate({**self.entry, **options}), transport=transport))
        return self.bots[-1]

    def turn(self, text: str, handle: Handle | None = None, **fields: Any) -> Turn:
        return Turn(**{"new": (Message("user", text),), "handle": handle, "stream": self.member.stream, **fields})

    @property
    def conversations(self) -> Sequence[Conversation]:
        return list(self.vendor.conversations.values())

    @property
    def said(self) -> str:
        """What the vendor said last, in the newest conversation."""
        return [entry.text for entry in self.conversations[-1].entries if entry.role == "bot"][-1]

    def heard(self) -> list[str]:
        """Everything that the vendor has taken in, of all conversations."""
        return [entry.text for conversation in self.conversations for entry in conversation.heard]

    def count(self, operation: str) -> int:
        """How often the vendor was called for this."""
        return sum(call.operation == operation for call in list(self.vendor.calls))

    def secrets(self) -> list[str]:
        """What no error and no repr may show."""
        return [secret.get_secret_value() for bot in self.bots for secret in bot.options.credential.values()]


@asynccontextmanager
async def scene_of(member: Member, simulator: Simulator, url: str) -> AsyncIterator[Scene]:
    """A scene with the vendor as new. At its end no request was forbidden by the documents and no task is left."""
    vendor = simulator.vendors[member.model]
    usual = {name: getattr(vendor, name) for name in ("latency", "gap", *member.modes)}
    vendor.reset()
    for name, value in member.modes.items():
        setattr(vendor, name, value)
    scene = Scene(member, vendor, demo_models(url, simulator)[member.model])
    try:
        yield scene
    finally:
        for name, value in usual.items():
            setattr(vendor, name, value)
        vendor.release()
        for bot in scene.bots:
            await bot.aclose()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert vendor.violations == []


async def hear(bot: HttpBot[Any], turn: Turn) -> Heard:
    """The whole reply."""
    async with asyncio.timeout(PROMPTLY * 5):
        return Heard([event async for event in bot.reply(turn)])


async def until(holds: Callable[[], bool]) -> None:
    """Return as soon as this holds, which must be promptly."""
    async with asyncio.timeout(PROMPTLY):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in the server's thread
            await asyncio.sleep(0.002)


class Shredder(httpx2.AsyncHTTPTransport):
    """Hands on what the network brings in pieces of so many bytes, whatever they cut apart."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        shreds = Shreds(response.stream, self._size)
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=shreds, extensions=response.extensions
        )


class Shreds(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, size: int) -> None:
        self._stream = stream
        self._size = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            for shred in cut(piece, self._size):
                yield shred

    async def aclose(self) -> None:
        await self._stream.aclose()


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))
