"""Who must keep the promises of `proxy.ports.Bot`: one row per bot and manner, and the scene it is tried on.

A vendor joins with a row in MEMBERS; test_contract.py knows no vendor.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from proxy.messages import Delta, Event, Handle, Message, Turn
from proxy.simulator import BASES, Simulator, Vendor
from proxy.simulator.bot import Conversation
from proxy.vendors import load
from proxy.vendors.base import HttpBot

PROMPTLY = 3.0  # seconds: ample on a busy machine; whatever must not happen in that time would last for ever
SIMULATED = Simulator().vendors


@dataclass(frozen=True)
class Member:
    """One bot in one manner.

    `model` is its name in the simulator, `keys` are options that the simulated vendor has under the same names,
    `options` are others. `modes` are set at the simulated vendor.

    `opens`: the operations that come before the first message. `context`: the field that takes the system prompt; ""
    if that stands in the message. `piecewise`: text comes out before the vendor has ended. `polls`: the operation that
    fetches a late answer. `renews`: a refused credential is fetched anew, once. `hasty`: options of a bot that does
    not wait for an answer that will not come. `twin`: differs from another row only in how a good answer comes, so
    that what does not depend on this is not tried again. `never`: which faults ("fault", or "operation-fault") and
    texts it cannot meet, and why.
    """

    model: str
    keys: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    modes: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    opens: tuple[str, ...] = ()
    context: str = ""
    piecewise: bool = False
    polls: tuple[str, ...] = ()
    renews: bool = False
    hasty: Mapping[str, Any] = field(default_factory=dict)
    twin: bool = False
    never: Mapping[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        """What its simulated vendor can do wrong."""
        return SIMULATED[self.model].kinds

    def entry(self, simulator: Simulator, url: str) -> dict[str, Any]:
        """The bot as a configuration would have it."""
        vendor = simulator.vendors[self.model]
        where = {"vendor": self.model.partition("-")[0], "base_url": f"{url}/{self.model}{BASES.get(self.model, '')}"}
        return {**where, **{key: getattr(vendor, key) for key in self.keys}, **self.options}


NEWOAKS = Member("newoaks", ("secret_key", "chatbot_id"), opens=("open",))
NEWOAKS_STREAMED = replace(NEWOAKS, stream=True, piecewise=True)
ASKHANDLE = Member(
    "askhandle", ("token",), options={"poll_interval": 0.005}, opens=("open",), hasty={"poll_interval": 60}
)
MISTERTURING = Member(
    "misterturing",
    ("api_key", "assistant_id"),
    opens=("open",),
    piecewise=True,
    never={"truncated": "text that ends early, its connection closed in order, looks like shorter text"},
)

MEMBERS: Mapping[str, Member] = {
    "newoaks": NEWOAKS,  # neither framing nor cuts touch a plain reply: it is tried once
    "newoaks-lines": NEWOAKS_STREAMED,
    "newoaks-lines-cut": replace(NEWOAKS_STREAMED, modes={"cuts": 7}, twin=True),
    "newoaks-sse": replace(NEWOAKS_STREAMED, modes={"framing": "sse"}, twin=True),
    "newoaks-sse-cut": replace(NEWOAKS_STREAMED, modes={"framing": "sse", "cuts": 5}, twin=True),
    "quickchat": Member("quickchat", ("token", "scenario_id")),
    "quickchat-legacy": Member("quickchat-legacy", ("api_key", "scenario_id"), stream=True, context="message_context"),
    "askhandle": ASKHANDLE,
    "askhandle-login": replace(
        ASKHANDLE,
        keys=("username", "password"),
        stream=True,
        opens=("token", "open"),
        renews=True,
        never={"token-refused": "there it means a wrong password"},
    ),
    "askhandle-polled": replace(
        ASKHANDLE,
        modes={"answer_after": 2, "lost_room": 404},
        polls=("poll",),
        twin=True,
        never=dict.fromkeys(["huge", "invalid-utf8"], "strikes the poll that brings the answer, not the message"),
    ),
    "misterturing": replace(MISTERTURING, options={"framing": "raw"}),
    "misterturing-auto": replace(
        MISTERTURING,
        stream=True,
        modes={"cuts": 3, "id_field": "data.id"},
        twin=True,
        never={**MISTERTURING.never, "events": "text that begins with a whole event is taken for events"},
    ),
    "misterturing-sse": replace(
        MISTERTURING,
        stream=True,
        modes={"framing": "sse", "cuts": None, "id_field": ""},
        twin=True,
        never={**MISTERTURING.never, "other line ends": "events cannot carry a carriage return"},
    ),
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
        """The kinds of event as they came, Deltas that follow each other told once."""
        kinds = [type(event) for event in self.events]
        return [kind for at, kind in enumerate(kinds) if not (kind is Delta and at and kinds[at - 1] is Delta)]


@dataclass
class Scene:
    """Bots of one member before its simulated vendor, on a real socket."""

    member: Member
    vendor: Vendor
    entry: Mapping[str, Any]
    bots: list[HttpBot[Any]] = field(default_factory=list)

    def bot(self, *, shreds: int = 0, **options: Any) -> HttpBot[Any]:
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
        """How many calls for this the vendor has read and is answering, or has answered."""
        return sum(call.operation == operation and call.status > 0 for call in list(self.vendor.calls))

    def secrets(self) -> list[str]:
        """What no error and no repr may show: what is configured, and what could be fetched with it."""
        fetched = getattr(self.vendor, "token", "")
        configured = [secret.get_secret_value() for bot in self.bots for secret in bot.options.credential.values()]
        return [secret for secret in (*configured, fetched) if secret]


@asynccontextmanager
async def scene_of(member: Member, simulator: Simulator, url: str) -> AsyncIterator[Scene]:
    """A scene with the vendor as new. At its end no request was forbidden by the documents and no task is left."""
    vendor = simulator.vendors[member.model]
    usual = {name: getattr(vendor, name) for name in ("gap", *member.modes)}
    vendor.reset()
    for name, value in member.modes.items():
        setattr(vendor, name, value)
    scene = Scene(member, vendor, member.entry(simulator, url))
    try:
        yield scene
    finally:
        for name, value in usual.items():
            setattr(vendor, name, value)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        vendor.release()
        for bot in scene.bots:
            await bot.aclose()
    assert left == set()
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
        pieces = aiter(self._stream)
        try:
            async for piece in pieces:
                for at in range(0, len(piece), self._size):
                    yield piece[at : at + self._size]
        finally:  # else a task of its own would do it, some time
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()
