"""A bot that keeps the truth: it remembers what each of its conversations has seen, and fails on cue."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from proxy.config import ModelOptions
from proxy.errors import ConversationExpired, ProxyError
from proxy.messages import Ask, Delta, Event, Finish, Handle, Message, Turn, TurnRecord
from proxy.relay import Model, Relay, Rules
from proxy.reply import Listener, Reply, Said
from proxy.stores.memory import MemoryStore
from proxy.transcript import compose


async def hear(listener: Listener, timeout: float | None = None) -> list[Said]:
    """What a listener to one reply is told next."""
    return [said for _, said in await listener.hear(timeout)]


@dataclass
class Cue:
    """How one call goes: the fault before or after `pieces`, or how the reply ends."""

    pieces: tuple[str, ...] = ()
    fault: ProxyError | None = None
    finish: Finish = field(default_factory=Finish)
    forget: bool = False
    new_handle: bool = False
    mute: bool = False  # no Finish
    wait: asyncio.Event | None = None  # before the last piece


@dataclass
class ScriptedBot:
    """A Bot. `conversations` holds for each handle what it was sent and what it said, in order."""

    identity: str = "scripted"
    conversations: dict[int, list[str]] = field(default_factory=dict)
    cues: deque[Cue] = field(default_factory=deque)
    turns: list[Turn] = field(default_factory=list)
    refuse: Callable[[Turn], None] = lambda turn: None
    hung_up: int = 0
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def check(self, turn: Turn) -> None:
        self.refuse(turn)

    def forwarded(self, turn: Turn) -> Mapping[str, str]:
        return {"priming": turn.priming}

    def _taken_in(self, turn: Turn, cue: Cue) -> tuple[int, list[str]]:
        """The conversation that has seen this turn now; or the fault that kept it from being delivered."""
        id = int(turn.handle.data["id"]) if turn.handle else next(self._ids)
        if cue.forget:
            self.conversations.pop(id, None)
        if turn.handle and id not in self.conversations:
            raise ConversationExpired("The scripted bot has forgotten this conversation")
        if cue.fault is not None and not cue.fault.delivered:
            raise cue.fault
        conversation = self.conversations.setdefault(id, [])
        conversation.append(compose(turn, priming=turn.primes))
        return id, conversation

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        self.turns.append(turn)
        cue = self.cues.popleft() if self.cues else Cue()
        id, conversation = self._taken_in(turn, cue)
        if turn.handle is None:
            yield Handle({"id": id})
        pieces = cue.pieces or (f"reply {len(conversation) // 2 + 1} ", f"to {turn.new[-1].text}")
        try:
            for i, piece in enumerate(pieces):
                if cue.wait is not None and i == len(pieces) - 1:
                    await cue.wait.wait()
                yield Delta(piece)
                if cue.fault is not None:
                    raise cue.fault
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up += 1
            raise
        conversation.append("".join(pieces))
        if cue.new_handle:
            fresh = next(self._ids)
            self.conversations[fresh] = self.conversations.pop(id)
            yield Handle({"id": fresh})
        if not cue.mute:
            yield cue.finish

    async def start(self) -> None:
        """Nothing is to be done."""

    async def aclose(self) -> None:
        """Nothing is held."""


class House:
    """A relay with one scripted bot, and a client that keeps its chat as clients do."""

    def __init__(
        self, store: MemoryStore | None = None, *, linger: float = 10, secret: bytes | None = b"secret", **options: Any
    ) -> None:
        self.now = 1000.0
        self.bot = ScriptedBot()
        self.records: list[TurnRecord] = []
        self.store = MemoryStore(max_parked=100, clock=lambda: self.now) if store is None else store
        rules = Rules(secret, idle_ttl=1000, linger=linger, utility_prompts=[re.compile("^### Task:")])
        self.relay = Relay(self.store, rules, sink=self.records.append, clock=lambda: self.now)
        self.model = Model("model", self.bot, ModelOptions(vendor="scripted", **options))

    async def ask(self, *chat: Message, **more: Any) -> Reply:
        body: bytes = more.pop("body", b"")
        return await self.relay.ask(self.model, Ask("tenant", chat, body=lambda: body, **more))

    async def told(self, *chat: Message, **more: Any) -> tuple[str, TurnRecord]:
        reply = await self.ask(*chat, **more)
        text = ""
        with Listener([reply]) as listener:
            while True:
                for said in await hear(listener, 5):
                    if isinstance(said, Finish):
                        return text, reply.record
                    text += said.text

    async def said(self, text: str, chat: list[Message], **more: Any) -> str:
        """One more turn of a chat, which grows; returns how it was continued."""
        chat.append(Message("user", text))
        answer, record = await self.told(*chat, **more)
        chat.append(Message("assistant", answer))
        return f"{record.how} {record.reason}".strip()

    @property
    def parked(self) -> int:
        return len(self.store)


def user(text: str) -> Message:
    return Message("user", text)
