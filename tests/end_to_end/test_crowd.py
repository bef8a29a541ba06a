"""A crowd at random over real sockets: forks, edits, faults, restarts and clients that leave, all at once.

What the vendors heard and what the clients were given is held against the rules after every round (see crowd.py).
`python -m tests.end_to_end.test_crowd --store redis --steps 10000` plays on with fresh chance and says what happened.
"""

import argparse
import asyncio
import functools
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import openai
import pytest

from proxy.app import create_app
from proxy.cli import Vendors
from proxy.config import Config, load
from proxy.simulator import Simulator
from proxy.stores.punctual import Punctual
from tests.conftest import demo_models, served
from tests.end_to_end.callers import async_client, calling, soon
from tests.end_to_end.crowd import OUR_ERROR, Ask, Ledger, Owner, Said, Witness, marked, numbers, renumbered
from tests.stores.servers import redis_server

STORES = ("memory", "sqlite", "redis")
PARTS = 2
ROUNDS, TURNS = 6, 2  # rounds in a world, and steps of every client in a round
LINGERS = (5.0, 0.03)  # seconds
KEYS = {"shop": "key-of-shop", "help": "key-of-help"}
MODELS = ("newoaks", "newoaks", "newoaks-two", "misterturing", "quickchat", "quickchat-legacy", "askhandle")
STREAMING = ("newoaks", "misterturing")
OWNERS = (
    Owner("shop", "ann"),
    Owner("shop", "ann", "s1"),
    Owner("shop", "bob"),
    Owner("help", "ann"),
    Owner("help", "ann", "s1"),
    Owner("shop", "ann", "s2"),
    Owner("shop", "bob", "s1"),
    Owner("shop", "cleo"),
    Owner("shop", ""),
    Owner("shop", "", "s1"),
)
PRIMINGS = (
    "",
    "You serve 3f2b8c1e-0d4a-4b6e-9c7d-000000000001. Be kind.",
    "You serve 3f2b8c1e-0d4a-4b6e-9c7d-000000000002. Be kind.",
)
FAULTS = ("limited", "failed", "cut-off", "garbled", "unauthorized", "forgotten", "refused", "empty", "html", "null",
          "unavailable", "gateway-timeout")  # fmt: skip
TEXTBOOK = {  # what must come about in every world, and how often at least
    "as expected: continued exact": 50,
    "as expected: continued interrupted": 2,
    "as expected: continued contained": 4,
    "as expected: continued window": 6,
    "as expected: caught-up": 2,
    "joined": 1,
    "opened": 1,
    "rebuilt unknown-history": 1,
    "utility": 1,
}
BROKEN = (OSError, asyncio.IncompleteReadError, TimeoutError)


class World:
    """Simulated vendors with a witness at their door, and proxies before one store. `era`: what a restart has lost."""

    def __init__(self, stack: ExitStack, store: str, url: str, lingers: Sequence[float]) -> None:
        self.simulator = Simulator()
        self.witness = Witness(self.simulator)
        self.ledger = Ledger(self.simulator, self.witness)
        self.simulator_url = stack.enter_context(served(self.witness))
        self.survives = store != "memory"
        self.era = 0
        for vendor in self.simulator.vendors.values():
            vendor.latency, vendor.gap = 0.003, 0.001
        self._store = url
        self._lingers = lingers
        self._stages = [stack.enter_context(ExitStack()) for _ in lingers]
        self.urls = [self._started(at) for at in range(len(lingers))]
        self._clients: dict[tuple[str, str], openai.AsyncOpenAI] = {}

    def _config(self, linger: float) -> Config:
        entries = demo_models(self.simulator_url, self.simulator)
        entries["newoaks-two"] = dict(entries["newoaks"])
        for entry in entries.values():
            entry |= {"breaker": {"failures": 0}, "html": "keep", "recap_max_chars": 100_000}
        sections = {
            "keys": [{"name": name, "key": key} for name, key in KEYS.items()],
            "server": {"shutdown_grace": 0.3},
            "conversation": {"linger": linger},
        }
        told = json.dumps({"models": entries, "store": self._store, **sections})
        return load(told, vendors=Vendors(), environ={})

    def _started(self, at: int) -> str:
        return self._stages[at].enter_context(served(create_app(self._config(self._lingers[at]))))

    def sdk(self, url: str, key: str) -> openai.AsyncOpenAI:
        """The official client; one for each proxy and key, with the connections that it keeps."""
        if (url, key) not in self._clients:
            self._clients[url, key] = async_client(url, key)
        return self._clients[url, key]

    async def restart(self, at: int) -> None:
        """A proxy ends, and another takes its place."""
        await self.hang_up()
        await asyncio.to_thread(self._stages[at].close)
        self.era += not self.survives
        self.urls[at] = await asyncio.to_thread(self._started, at)

    async def hang_up(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def check(self) -> None:
        """Wait until the vendors have nothing left to do, and look at what they saw."""
        await soon(lambda: not self.witness.inside, 15)
        self.ledger.check()
        assert not self.ledger.wrong, "\n\n".join(self.ledger.wrong[:3])


@contextmanager
def world(store: str, lingers: Sequence[float]) -> Iterator[World]:
    """A world on a store of its own; with memory, each proxy has one to itself, so there is only one."""
    logs = [logging.getLogger(name) for name in ("parley", "uvicorn.error")]
    with ExitStack() as stack:
        for log in logs:  # the faults are meant
            stack.callback(log.setLevel, log.level)
            log.setLevel(logging.CRITICAL)
        # A crowded machine is no fault of a store's.
        stack.enter_context(patch("proxy.stores.Punctual", functools.partial(Punctual, deadline=20)))
        url = "memory://"
        if store == "sqlite":
            shm = Path("/dev/shm")  # noqa: S108 - what is committed need not outlast the machine
            folder = stack.enter_context(TemporaryDirectory(dir=shm if shm.is_dir() else None))
            url = f"sqlite:///{folder}/parley.db"
        elif store == "redis":
            url = stack.enter_context(redis_server()).url
        yield World(stack, store, url, lingers[:1] if store == "memory" else lingers)


# --- a client


@dataclass
class Chat:
    """A chat as its client keeps it. `seat`: the ask that it was last answered, if all since is as it was then."""

    owner: Owner
    model: str
    priming: str = ""
    messages: list[Said] = field(default_factory=list)
    seat: Ask | None = None

    @property
    def depth(self) -> int:
        return sum(role == "user" for role, _ in self.messages)

    @property
    def answered(self) -> bool:
        return bool(self.messages) and self.messages[-1][0] == "assistant"

    def copy(self, **more: Any) -> "Chat":
        return replace(self, messages=list(self.messages), **more)


@dataclass(frozen=True)
class Manner:
    """How a request is sent. `leave`: after so many pieces of the reply (0: before the first byte, after `pause`)."""

    way: str = "plain"
    at: int = 0
    leave: int | None = None
    pause: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)


PLAIN, STREAM = Manner(), Manner("stream")
AGAIN = {"x-stainless-retry-count": "1"}


class Client:
    """Somebody with chats; all that it does is written down in the ledger."""

    def __init__(self, place: World, chance: random.Random) -> None:
        self.place = place
        self.chance = chance
        self.chats: list[Chat] = []
        self.steps = 0

    def number(self, owner: Owner) -> int:
        return self.place.ledger.number(owner)

    def text(self, chat: Chat, word: str = "plain") -> str:
        """A question as everybody asks it at this point of a chat, and as nobody else does: by its blanks."""
        number = self.number(chat.owner)
        if word == "tell":
            return marked(f"Tell me about step {chat.depth} of it.", number)
        return marked(f"say Well then, this is the {word} step {chat.depth}, and there is more to come.", number)

    async def say(self, chat: Chat, text: str, manner: Manner = PLAIN, expected: str = "continued exact") -> Ask:
        """One more turn."""
        chat.messages.append(("user", text))
        return await self.ask(chat, manner, expected=expected if chat.seat else "")

    async def ask(self, chat: Chat, manner: Manner, *, expected: str = "", utility: bool = False) -> Ask:
        """Send a chat as it is; what was heard to its end is kept."""
        ledger = self.place.ledger
        ask = ledger.add(
            number=numbers(chat.messages[-1][1])[-1],
            owner=chat.owner,
            model=chat.model,
            priming=chat.priming,
            messages=tuple(chat.messages),
            era=self.place.era,
            seat=chat.seat if expected else None,
            expected=expected,
            utility=utility,
        )
        chat.seat = None
        self.steps += 1
        if manner.way == "sdk":
            await self._through_the_sdk(ask, manner)
        else:
            await self._through_a_socket(ask, manner)
        if ask.whole:
            chat.messages.append(("assistant", ask.text))
            chat.seat = ask
        return ask

    def _request(self, ask: Ask, manner: Manner) -> tuple[dict[str, Any], dict[str, str]]:
        priming = [("system", ask.priming)] if ask.priming else []
        messages = [{"role": role, "content": text} for role, text in (*priming, *ask.messages)]
        body: dict[str, Any] = {"model": ask.model, "messages": messages}
        headers = dict(manner.headers)
        if ask.owner.scope:
            headers["x-conversation-id"] = ask.owner.scope
        if ask.owner.user == "cleo":
            headers["x-openwebui-user-id"] = "cleo"
        elif ask.owner.user:
            body["safety_identifier" if ask.owner.user == "bob" else "user"] = ask.owner.user
        return body, headers

    async def _through_the_sdk(self, ask: Ask, manner: Manner) -> None:
        body, headers = self._request(ask, manner)
        url = self.place.urls[manner.at % len(self.place.urls)]
        completions = self.place.sdk(url, KEYS[ask.owner.tenant]).chat.completions.with_raw_response
        try:
            if self.chance.random() < 0.5:
                raw = await completions.create(**body, extra_headers=headers)
                hear(ask, 200, raw.headers)
                ask.pieces.append(raw.parse().choices[0].message.content or "")
            else:
                streamed = await completions.create(**body, extra_headers=headers, stream=True)
                hear(ask, 200, streamed.headers)
                async for chunk in streamed.parse():
                    ask.pieces += [choice.delta.content or "" for choice in chunk.choices]
            ask.whole = True
        except openai.APIStatusError as fault:
            ask.status, ask.error = fault.status_code, fault.message
        except openai.APIError as fault:  # in the midst of a stream
            ask.error = fault.message

    async def _through_a_socket(self, ask: Ask, manner: Manner) -> None:
        body, headers = self._request(ask, manner)
        body["stream"] = manner.way == "stream"
        lines = [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"authorization: Bearer {KEYS[ask.owner.tenant]}", "connection: close"]
        url = self.place.urls[manner.at % len(self.place.urls)]
        async with asyncio.timeout(30), calling(url, body, headers=lines) as line:
            if manner.leave == 0:
                await asyncio.sleep(manner.pause)
                line.leave()
                return
            try:
                answer = await line.begin()
                hear(ask, answer.status, answer.headers)
                pending = b""
                async for piece in line.pieces(answer):
                    pending = take(ask, pending + piece)
                    if manner.leave is not None and len(ask.pieces) >= manner.leave:
                        line.leave()
                        return
            except BROKEN:
                return


def hear(ask: Ask, status: int, headers: Mapping[str, str]) -> None:
    """Status and headers of an answer."""
    ask.status = status
    ask.how = " ".join(filter(None, map(headers.get, ("x-parley-conversation", "x-parley-reason"))))


def take(ask: Ask, data: bytes) -> bytes:
    """What came of an answer's body: a JSON document, or whole events; the rest is returned."""
    if data.startswith(b"{"):
        document = json.loads(data)
        if "error" in document:
            ask.error = document["error"]["message"]
        else:
            ask.pieces.append(document["choices"][0]["message"]["content"])
            ask.whole = True
        return b""
    *events, rest = data.split(b"\n\n")
    for block in events:
        event = block.rpartition(b"\n")[2]  # a heartbeat may stand before it
        if not event.startswith(b"data: {"):
            continue
        document = json.loads(event[6:])
        if "error" in document:
            ask.error = document["error"]["message"]
            continue
        (choice,) = document["choices"]
        ask.pieces += filter(None, [choice["delta"].get("content")])
        ask.whole = ask.whole or choice["finish_reason"] is not None
    return rest


# --- at its whims


class Whims(Client):
    """A client that does one thing or another. Of one chat there may be many copies, each with its own end."""

    def __init__(self, place: World, chance: random.Random, owner: Owner) -> None:
        super().__init__(place, chance)
        self.owner = owner
        self.deeds: Mapping[str, tuple[int, Callable[[Chat], Awaitable[None]]]] = {
            "go on": (10, self.go_on),
            "leave": (6, self.leave),
            "edit": (3, self.edit),
            "regenerate": (3, self.regenerate),
            "fork": (2, self.fork),
            "repeat": (2, self.repeat),
            "burst": (2, self.burst),
            "switch": (2, self.switch),
            "prime": (2, self.prime),
            "move": (2, self.move),
            "title": (1, self.title),
            "wrap": (2 if owner.scope else 0, self.wrap),
            "slide": (2 if owner.scope else 0, self.slide),
        }

    def manner(self, **more: Any) -> Manner:
        way = self.chance.choices(("plain", "stream", "sdk"), (4, 4, 2))[0]
        return Manner(**{"way": way, "at": self.chance.randint(0, 1), **more})

    def word(self) -> str:
        return self.chance.choices(("plain", "other", "tell", self.owner.user or "nobody"), (6, 2, 2, 1))[0]

    async def step(self) -> None:
        """One thing that a client may do with one of its chats, or with a new one."""
        if not self.chats or self.chance.random() < 0.12:
            self.add(Chat(self.owner, self.chance.choice(MODELS), self.chance.choice((*PRIMINGS, ""))))
        weights = [2**i for i in range(len(self.chats))]
        chat = self.chance.choices(self.chats, weights)[0]
        deeds, chances = zip(*((deed, chance) for chance, deed in self.deeds.values()), strict=True)
        await self.chance.choices(deeds, chances)[0](chat)

    def add(self, chat: Chat) -> Chat:
        self.chats.append(chat)
        del self.chats[:-6]
        return chat

    async def go_on(self, chat: Chat, text: str = "", manner: Manner | None = None) -> None:
        """The next turn. A question without an answer is asked again, or merged with the next, or an error is kept."""
        ask = await self.say(chat, text or self.text(chat, self.word()), manner or self.manner())
        if ask.whole:
            return
        chance = self.chance.random()
        if chance < 0.4 or len(chat.messages) > 20:
            chat.messages.pop()
        elif chance < 0.6 and OUR_ERROR.search(ask.error):
            chat.messages.append(("assistant", ask.error))

    async def edit(self, chat: Chat) -> None:
        """Go back to an earlier question and ask another instead; or only change it, and go on."""
        branch = self.add(chat.copy(seat=None))
        places = [i for i, (role, _) in enumerate(branch.messages) if role == "user"]
        if places and self.chance.random() < 0.7:
            del branch.messages[self.chance.choice(places) :]
        elif places:
            branch.messages[places[0]] = ("user", marked("say What if it were edited?", self.number(self.owner)))
        await self.go_on(branch)

    async def regenerate(self, chat: Chat) -> None:
        """Ask the last question once more."""
        while chat.answered:
            chat.messages.pop()
        chat.seat = None
        if chat.messages:
            ((_, text),) = renumbered([chat.messages.pop()], lambda: self.number(self.owner))
            await self.go_on(chat, text)

    async def fork(self, chat: Chat) -> None:
        """A copy, and both go on at once."""
        await asyncio.gather(self.go_on(self.add(chat.copy())), self.go_on(chat))

    async def burst(self, chat: Chat) -> None:
        """Several copies say the same at once."""
        copies = [chat.copy() for _ in range(3)]
        self.add(copies[0])
        await asyncio.gather(*(self.go_on(copy, self.text(copy), self.manner()) for copy in copies))

    async def switch(self, chat: Chat) -> None:
        """Another model for a turn or two, and back."""
        model, chat.model, chat.seat = chat.model, self.chance.choice(MODELS), None
        await self.go_on(chat)
        if self.chance.random() < 0.8:
            chat.model, chat.seat = model, None
            await self.go_on(chat)

    async def prime(self, chat: Chat) -> None:
        """Another system prompt: outside a scope that is another conversation."""
        priming = self.chance.choice(PRIMINGS)
        if priming != chat.priming and not chat.owner.scope:
            chat.seat = None
        chat.priming = priming
        await self.go_on(chat)

    async def move(self, chat: Chat) -> None:
        """The very same words in another partition: another key, another person, within a scope or without."""
        owner = self.chance.choice(OWNERS)
        copy = Chat(owner, chat.model, chat.priming, [*renumbered(chat.messages, lambda: self.number(owner))])
        if owner == self.owner:
            self.add(copy)
        await self.go_on(copy)

    async def title(self, chat: Chat) -> None:
        """A front end wants a title."""
        copy = chat.copy(seat=None)
        copy.messages.append(("user", marked("### Task:\nGenerate a title for all that", self.number(chat.owner))))
        await self.ask(copy, self.manner(), utility=True)

    async def wrap(self, chat: Chat) -> None:
        """What was retrieved is put before the question, and not kept."""
        text = self.text(chat, "other")
        await self.go_on(chat, f"Use this: step {chat.depth}.\n\n{text}")
        if chat.messages and chat.answered:
            chat.messages[-2], chat.seat = ("user", text), None
            await self.go_on(chat)

    async def slide(self, chat: Chat) -> None:
        """The oldest messages are forgotten."""
        places = [i for i, (role, _) in enumerate(chat.messages[:-1]) if role == "user"]
        if places:
            del chat.messages[: self.chance.choice(places)]
            chat.seat = None
        await self.go_on(chat)

    async def repeat(self, chat: Chat) -> None:
        """A request is made again while the first is under way."""
        chat.messages.append(("user", self.text(chat)))
        key = {"idempotency-key": f"key-{self.chance.random()}"}
        headers = self.chance.choice(({}, AGAIN, key))
        first, other = chat.copy(), chat.copy(seat=None)
        at = self.chance.randint(0, 1)
        await asyncio.gather(
            self.ask(first, self.manner(headers=key, at=at), expected="continued exact" if first.seat else ""),
            self.ask(other, self.manner(headers=headers, at=self.chance.choice((at, 0, 1)))),
        )
        self.add(first)
        chat.messages.pop()
        chat.seat = None

    async def leave(self, chat: Chat) -> None:
        """Hang up at some moment, and come back: with what was heard, without it, or with the same once more."""
        count = self.chance.choice((0, 0, 1, 2, 4, 8, 14, 17))
        manner = self.manner(way="stream", leave=count, pause=self.chance.random() * 0.04)
        if count > 1:
            chat.model = chat.model if chat.model in STREAMING else self.chance.choice(STREAMING)
            chat.seat = None
        ask = await self.say(chat, self.text(chat), manner)
        if ask.whole:
            return
        if self.chance.random() < 0.5:
            await asyncio.sleep(self.chance.random() * 0.1)
        chance = self.chance.random()
        if chance < 0.5 and ask.text:
            chat.messages.append(("assistant", " ".join(ask.text.split(" ")[: self.chance.randint(30, 60)])))
            await self.go_on(chat)
        elif chance < 0.8:
            await self.ask(chat, self.manner(headers=AGAIN, at=manner.at))
        else:
            chat.messages.pop()


# --- by the book


class Reader(Client):
    """A client whom nobody disturbs, so that it is known how each of its requests must be answered."""

    def __init__(self, place: World, chance: random.Random, name: str) -> None:
        super().__init__(place, chance)
        self.name = name
        self.count = 0

    def chat(self, model: str, scope: str = "", priming: str = "") -> Chat:
        """A chat of somebody who was never there before."""
        self.count += 1
        return Chat(Owner("shop", f"{self.name}-{self.count}", scope), model, priming)

    async def begun(self, chat: Chat, turns: int = 2) -> Chat:
        """Some turns, each in another way and at another proxy."""
        for i in range(turns):
            await self.say(chat, self.text(chat), Manner(("plain", "stream", "sdk")[i % 3], at=i))
        return chat

    async def read(self) -> None:
        """Every case once, at the same time."""
        cases = (
            self.plainly, self.cut_short, self.barge_in, self.wrapped, self.window, self.switched, self.repeated,
            self.unheard, self.strangers, self.primed, self.titled, self.failed, self.refused,
        )  # fmt: skip
        await asyncio.gather(*(case() for case in cases))

    async def plainly(self) -> None:
        await asyncio.gather(*(self.begun(self.chat(model), 5) for model in sorted(set(MODELS))))

    async def cut_short(self) -> None:
        """Heard whole, and kept in part."""
        chat = await self.begun(self.chat("newoaks"))
        role, text = chat.messages.pop()
        chat.messages.append((role, text[: len(text) // 2]))
        await self.say(chat, self.text(chat), Manner("stream", at=1), "continued interrupted")
        await self.say(chat, self.text(chat))

    async def barge_in(self) -> None:
        """The next question is asked before the reply has ended."""
        chat = await self.begun(self.chat("misterturing"), 1)
        ask = await self.say(chat, self.text(chat), Manner("stream", leave=6))
        if not ask.whole:
            chat.messages.append(("assistant", ask.text))
            await self.say(chat, self.text(chat))
        await self.say(chat, self.text(chat))

    async def wrapped(self) -> None:
        """Retrieval text around the question, each time another."""
        chat = self.chat("quickchat", "r1")
        for i in range(3):
            text = self.text(chat)
            await self.say(chat, f"Use this: number {i}.\n\n{text}", STREAM, "continued contained")
            chat.messages[-2] = ("user", text)

    async def window(self) -> None:
        """A client that keeps the last two exchanges."""
        chat = await self.begun(self.chat("askhandle", "r1"), 3)
        for i in range(3):
            del chat.messages[:2]
            await self.say(chat, self.text(chat, f"other{i}"), Manner(at=i), "continued window")

    async def switched(self) -> None:
        """One turn with another model, and back."""
        chat = await self.begun(self.chat("newoaks"))
        seat = chat.seat
        chat.model, chat.seat = "newoaks-two", None
        await self.say(chat, self.text(chat))
        chat.model, chat.seat = "newoaks", seat
        await self.say(chat, self.text(chat), PLAIN, "caught-up")
        await self.say(chat, self.text(chat))

    async def repeated(self) -> None:
        """Two connections and one question."""
        chat = await self.begun(self.chat("newoaks"), 1)
        chat.messages.append(("user", self.text(chat)))
        key = {"idempotency-key": f"{self.name}-key"}
        copies = [chat.copy(), chat.copy()]
        await asyncio.gather(*(self.ask(copy, Manner("stream", headers=key)) for copy in copies))
        await self.say(copies[0], self.text(copies[0]))

    async def unheard(self) -> None:
        """Gone before the end, and back with the same question when the reply has ended."""
        chat = await self.begun(self.chat("misterturing"), 1)
        ask = await self.say(chat, self.text(chat), Manner("stream", leave=3))
        await asyncio.sleep(0.2)
        if not ask.whole:
            await self.ask(chat, Manner(headers=AGAIN))
        await self.say(chat, self.text(chat))

    async def strangers(self) -> None:
        """Two keys, and the same request byte by byte, idempotency key included."""
        one = await self.begun(self.chat("quickchat"), 1)
        other = one.copy(owner=replace(one.owner, tenant="help"), seat=None)
        one.messages.append(("user", self.text(one)))
        other.messages.append(one.messages[-1])
        for _, text in other.messages:
            self.place.ledger.owners[numbers(text)[-1]].add(other.owner)
        headers = {"idempotency-key": f"{self.name}-stranger", **AGAIN}
        await asyncio.gather(*(self.ask(chat, Manner(headers=headers)) for chat in (one, other)))
        await asyncio.gather(*(self.say(chat, self.text(chat)) for chat in (one, other)))

    async def primed(self) -> None:
        """In a scope the system prompt may change."""
        chat = await self.begun(self.chat("quickchat-legacy", "r1", PRIMINGS[1]), 2)
        chat.priming = PRIMINGS[2]
        await self.begun(chat)

    async def titled(self) -> None:
        """A title is asked for between two turns."""
        chat = await self.begun(self.chat("askhandle"), 1)
        copy = chat.copy(seat=None)
        copy.messages.append(("user", marked("### Task:\nGenerate a title for all that", self.number(chat.owner))))
        await self.ask(copy, PLAIN, utility=True)
        await self.say(chat, self.text(chat))

    async def failed(self) -> None:
        """After a turn of which nothing is known but that it was sent, nobody goes on there."""
        for model, fault in (("newoaks", "failed"), ("misterturing", "cut-off"), ("quickchat", "garbled")):
            chat = await self.begun(self.chat(model), 1)
            await self.say(chat, f"{self.text(chat)}\nfault {fault}", expected="")
            chat.messages.pop()
            await self.say(chat, self.text(chat))
            await self.say(chat, self.text(chat))

    async def refused(self) -> None:
        """After a turn that was certainly not taken in, the chat goes on where it was."""
        for model in ("newoaks", "quickchat"):
            chat = await self.begun(self.chat(model), 1)
            await self.say(chat, f"{self.text(chat)}\nfault limited", expected="")
            chat.messages.pop()
            ask = await self.say(chat, self.text(chat))
            if ask.how not in ("continued exact", "rebuilt store-unavailable"):
                self.place.ledger.wrong.append(f"the table: {ask.how!r} after a turn that was not taken in\n{ask}")


# --- all together


async def trouble(place: World, chance: random.Random, over: asyncio.Event) -> None:
    """Faults now and then, and a vendor that forgets everything, or changes its conversation's name."""
    vendors = list(place.simulator.vendors.values())
    while not over.is_set():
        vendor = chance.choice(vendors)
        if chance.random() < 0.05:
            vendor.forget()
        elif chance.random() < 0.1:
            place.simulator.quickchat.fail("new-id")
        else:
            vendor.fail(chance.choice(FAULTS))
        await asyncio.sleep(0.03)
    for vendor in vendors:
        for fault in vendor._faults:
            fault.left = 0


async def play(place: World, chance: random.Random, rounds: int = ROUNDS) -> int:
    """Rounds with readers, with trouble, and after a restart, one after the other. Returns the number of requests."""
    crowd = [Whims(place, chance, owner) for owner in OWNERS]
    readers = [Reader(place, chance, f"reader-{number}") for number in range(0, rounds, 3)]
    try:
        for number in range(rounds):
            await play_round(place, chance, crowd, readers[number // 3], number)
    finally:
        await place.hang_up()
    return sum(client.steps for client in (*crowd, *readers))


async def play_round(place: World, chance: random.Random, crowd: Sequence[Whims], reader: Reader, number: int) -> None:
    over = asyncio.Event()
    others: list[Awaitable[None]] = []
    if number % 3 == 0:
        others.append(reader.read())
    elif number % 3 == 1:
        others.append(trouble(place, chance, over))

    async def work(client: Whims) -> None:
        for _ in range(TURNS):
            await client.step()

    beside = asyncio.gather(*others)
    await asyncio.gather(*map(work, crowd))
    over.set()
    await beside
    await place.check()
    if number % 3 == 2:
        await place.restart(number // 3 % len(place.urls))


def missing(tally: Counter[str]) -> list[str]:
    """What the textbook promises and did not come about."""
    return [name for name, count in TEXTBOOK.items() if tally[name] < count]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("store", STORES)
async def test_crowd_never_mixes(store: str, part: int) -> None:
    """Whatever a crowd does, no vendor conversation is mixed up, and what can be continued is."""
    with world(store, LINGERS[part:] + LINGERS[:part]) as place:
        requests = await play(place, random.Random(f"{store} {part}"))
        assert requests >= 270
        assert missing(place.ledger.tally) == []


# --- the long profile


def main() -> None:
    """Play so many requests, and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.test_crowd", description=__doc__)
    parser.add_argument("--store", choices=STORES, default="memory")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    started, total, steps, seed = time.monotonic(), Counter[str](), 0, chosen.seed
    try:
        while steps < chosen.steps:
            with world(chosen.store, LINGERS[seed % 2 :] + LINGERS[: seed % 2]) as place:
                steps += asyncio.run(play(place, random.Random(seed)))
                total += place.ledger.tally
            seed += 1
            print(f"\r{steps} steps", end="", file=sys.stderr, flush=True)
    finally:
        seconds = time.monotonic() - started
        print(f"\n{chosen.store}: {steps} steps, {seconds:.0f} s, {steps / seconds:.0f} steps/s; last seed {seed}")
        for name, count in sorted(total.items()):
            print(f"{count:8} {name}")


if __name__ == "__main__":
    main()
