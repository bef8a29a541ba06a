"""The truth: a bot that remembers all it was sent and what it said, and a witness who holds it against the rules.

What is wrong is put down in `violations`, for a complaint raised inside a bot would be taken for the bot's own fault.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Literal

from proxy.errors import (
    ConversationExpired,
    NoAnswer,
    ProxyError,
    RateLimited,
    VendorAuthFailed,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.reply import Listener, Reply
from proxy.transcript import compose
from tests.continuity.rows import TOKEN, Rows, may_be_cut, past, plain, rows, tiers, tokens
from tests.continuity.timeless import TimelessLoop

IDLE_TTL, MARGIN, LINGER = 1000.0, 50.0, 10.0
REPLAY = 60.0  # how long a reply that nobody heard is kept
BARGE_IN = 3.0  # how long a request waits for the reply that it interrupted

Outcome = Literal["ok", "undelivered", "unknown", "lost", "no-answer", "blank", "mute", "like-an-error"]

UNDELIVERED = (VendorUnavailable, VendorAuthFailed, VendorRateLimited, VendorRefused, RateLimited)
UNKNOWN = (VendorTimeout, VendorFailed)


@dataclass(frozen=True, repr=False)
class Plan:
    """How one call goes. `held`: it goes on only when it is told; `after`: pieces said before a fault.

    `echo`: the reply is always the same to the same turn, so that identical chats stay identical.
    """

    outcome: Outcome = "ok"
    which: int = 0
    after: int = 0
    pieces: int = 2
    held: bool = False
    echo: bool = False
    thinks: bool = False
    renames: bool = False
    late_handle: bool = False

    def __repr__(self) -> str:
        told = {part.name: getattr(self, part.name) for part in fields(self)}
        more = [f"{name}={value!r}" for name, value in told.items() if value != getattr(Plan, name)]
        return f"Plan({', '.join(more)})"


@dataclass(eq=False)
class Room:
    """A vendor's conversation. `stands_for` is None while a turn runs in it, and for good if one came to no end."""

    handle: str
    stands_for: Rows | None = None
    partitions: set[tuple[str, ...]] = field(default_factory=set)
    calls: "list[Call]" = field(default_factory=list)
    asks: Counter[int] = field(default_factory=Counter)
    spoken_at: float = 0
    setting: str = ""
    renamed: bool = False
    forgotten: bool = False


@dataclass(eq=False)
class Call:
    """One turn at the bot."""

    request: "Request"
    plan: Plan
    handle: str
    room: Room | None = None
    before: Rows | None = None
    setting: str = ""
    recap: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    held: bool = False
    permits: int = 0
    over: bool = False
    complete: bool = False
    unheard: bool = False
    parked: bool = False
    ended_at: float = 0
    bell: asyncio.Future[None] | None = None

    @property
    def text(self) -> str:
        return "".join(self.said)

    def release(self, steps: int | None) -> None:
        """Let it go on for so many steps, or to its end."""
        self.permits += steps or 0
        self.held = self.held and steps is not None
        if self.bell is not None and not self.bell.done():
            self.bell.set_result(None)

    async def pass_gate(self) -> None:
        while self.held and not self.permits:
            self.bell = asyncio.get_running_loop().create_future()
            await self.bell
        self.permits -= 1


@dataclass(eq=False)
class Request:
    """A client's request and what became of it. `ask` is the same for one question, however often it is asked."""

    ask: int
    house: int
    partition: tuple[str, ...]
    setting: str
    priming: str
    messages: tuple[Message, ...]
    body: bytes
    plans: deque[Plan]
    at: float
    repeated: bool = False
    key: str = ""
    utility: bool = False
    expected: str = ""
    waits_for: Call | None = None
    sources: "list[Request]" = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    reply: Reply | None = None
    listener: Listener | None = None
    heard: list[str] = field(default_factory=list)
    finished: bool = False
    left: bool = False
    left_early: bool = False
    dead: bool = False
    fault: ProxyError | None = None
    over: bool = False
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        cut = past(self.messages)
        self.history, self.turn = cut.history, cut.turn

    @property
    def scoped(self) -> bool:
        return bool(self.partition[3])

    @property
    def text(self) -> str:
        return "".join(self.heard)

    @property
    def joined(self) -> bool:
        """Whether it was answered without a call of its own."""
        return self.reply is not None and not self.calls and any(self.reply is r.reply for r in self.sources)

    @property
    def seating(self) -> bool:
        """Whether it may still take a handle."""
        return not (self.over or self.calls or self.joined or self.dead)

    def equals(self, other: "Request") -> bool:
        return (self.house, self.partition, self.body) == (other.house, other.partition, other.body)


ASKING: ContextVar[Request] = ContextVar("ASKING")


@dataclass
class Entry:
    """What a store was given to keep. `sure`: it said that it did, and nobody tried to take it."""

    handle: str
    sure: bool


class Witness:
    """Sees every ask, every call and every parked handle."""

    def __init__(self, loop: TimelessLoop) -> None:
        self.loop = loop
        self.rooms: dict[str, Room] = {}
        self.old_handles: set[str] = set()
        self.parked: dict[str, Entry] = {}
        self.requests: list[Request] = []  # those that are not over
        self.past: list[Request] = []
        self.calls: list[Call] = []  # those that are not over
        self.new_calls: list[Call] = []
        self.violations: list[str] = []
        self.tally: Counter[str] = Counter()
        self.at_the_store = asyncio.Lock()
        self.lossy = False  # a bound was reached: what is parked may be gone
        self.store_state = ""
        self._numbers = 0

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def wrong(self, rule: str, what: str, call: Call | None = None) -> None:
        more = ""
        if call is not None:
            room = call.room
            more = (
                f"\n  history {call.request.history}\n  turn {call.request.turn}"
                f"\n  conversation stood for {call.before}"
                f"\n  partition {call.request.partition}; the conversation's {room.partitions if room else ''}"
            )
        self.violations.append(f"{rule}: {what}{more}")

    # --- what is to be expected

    def known(self, partition: tuple[str, ...]) -> list[Room]:
        """Conversations of this partition that are surely parked, fresh or not."""
        handles = dict.fromkeys(entry.handle for entry in self.parked.values() if entry.sure)
        rooms = [self.rooms[handle] for handle in handles if handle in self.rooms]
        return [room for room in rooms if partition in room.partitions and room.stands_for]

    def exact(self, request: Request) -> int:
        """How many handles are parked at the head of this request's history."""
        rooms = self.known(request.partition)
        return sum(room.stands_for == request.history and self.is_fresh(room) for room in rooms)

    def is_fresh(self, room: Room) -> bool:
        return self.loop.time() - room.spoken_at < IDLE_TTL - MARGIN

    def expect(self, request: Request) -> None:
        """Say by which tier this request must be answered, if that can be said."""
        others = [other for other in self.requests if other is not request]
        request.sources = [other for other in others if other.equals(request)]
        request.sources += [other for other in self.past if other.equals(request) and self._may_be_replayed(other)]
        if request.sources and (request.repeated or request.key):
            same = [other for other in request.sources if request.repeated or other.key == request.key]
            if any(self._must_be_joined(other) for other in same):
                request.expected = "joined"
            return
        if request.utility or not request.history or not request.turn:
            return
        if self.lossy or self.store_state or self.is_contested(request):
            return
        rooms = self.known(request.partition)
        held = [(room, tiers(room.stands_for or (), request.history, scoped=request.scoped)) for room in rooms]
        if any("exact" in found and self.is_fresh(room) for room, found in held):
            request.expected = "exact"
            return
        request.expected = self._tolerant(request, held)

    def _tolerant(self, request: Request, held: Sequence[tuple[Room, set[str]]]) -> str:
        for tier in ("interrupted", "contained", "window"):
            found = [room for room, holds in held if tier in holds]
            if any(room.renamed or not self.is_fresh(room) for room in found):
                return ""
            running = self._interruptible(request) if tier == "interrupted" else []
            heads = len({room.stands_for for room in found}) + len(running)
            if heads > 1:
                return ""
            if running:
                request.waits_for = None if self._is_heard(running[0]) else running[0]
                return ""
            if heads == 1:
                return tier
        if any("caught-up" in holds and self.is_fresh(room) and not room.renamed for room, holds in held):
            return "caught-up"
        return ""

    def _interruptible(self, request: Request) -> list[Call]:
        """Replies under way that the last assistant message may be the beginning of."""
        last = request.history[-1]
        if not may_be_cut(last):
            return []
        calls = [call for call in self.calls if call.request.house == request.house and not call.request.utility]
        return [
            call
            for call in calls
            if call.request.partition == request.partition
            and call.request.history + call.request.turn == request.history[:-1]
            and plain(Message("assistant", call.text)).startswith(last.text)
        ]

    def _is_heard(self, call: Call) -> bool:
        return any(not r.left and (r is call.request or r.reply is call.request.reply) for r in self.requests)

    def _may_be_replayed(self, request: Request) -> bool:
        """Whether a reply whose client has left may still be heard by one who asks again."""
        if not request.calls or request.dead:
            return False
        call = request.calls[-1]
        if not call.over:
            return True
        still_there = call.room is not None and call.room.calls[-1:] == [call]
        return call.complete and still_there and self.loop.time() - call.ended_at < REPLAY

    def is_contested(self, request: Request | None = None) -> bool:
        """Whether another request may still take a handle, be it that its client has left already."""
        left = (other for other in self.past if other.reply is not None and not other.reply.ended.done())
        return any(other.seating for other in self.requests if other is not request) or any(
            not (other.calls or other.joined or other.dead) for other in left
        )

    def _must_be_joined(self, request: Request) -> bool:
        """Whether its reply is under way; or ended when its client had left, and its handle is still there."""
        if not request.calls or request.dead or request.utility:
            return False
        call = request.calls[-1]
        if not call.over:
            return True
        handles = {entry.handle for entry in self.parked.values() if entry.sure}
        there = call.room is not None and call.room.handle in handles and self._may_be_replayed(request)
        alone = not any(other.equals(request) for other in self.requests + self.past if other is not request)
        return there and alone and request.left_early and not (self.lossy or self.store_state)

    # --- what a bot sees

    def called(self, turn: Turn, bot: str) -> Call:
        """A turn arrives: find its conversation, and see whether it may go there."""
        request = ASKING.get()
        plan = request.plans.popleft() if request.plans else Plan()
        handle = str(turn.handle.data["id"]) if turn.handle else ""
        call = Call(request, plan, handle, recap=TOKEN.findall(turn.recap), held=plan.held)
        request.calls.append(call)
        self.calls.append(call)
        self.new_calls.append(call)
        if handle in self.old_handles:
            self.wrong("rule 2", f"the handle {handle} was changed by its vendor, and the old one used", call)
        call.room = self.rooms.get(handle) if handle else Room(f"{bot}-{self.number()}")
        if call.room is None:
            self.wrong("I1", f"the handle {handle} is not one of this bot's", call)
            call.room = Room(f"{bot}-{self.number()}")
        call.before = call.room.stands_for
        sent = compose(turn, priming=getattr(turn, "primes", turn.handle is None))
        if handle:
            self._check_continued(call)
        else:
            self.rooms[call.room.handle] = call.room
            if call.recap != tokens(request.history):
                self.wrong("I1", f"a new conversation was told {call.recap}", call)
        self._check_sent(call, turn, sent)
        call.room.partitions.add(request.partition)
        if len(call.room.partitions) > 1:
            self.wrong("I2", "two partitions in one conversation", call)
        return call

    def _check_sent(self, call: Call, turn: Turn, sent: str) -> None:
        request = call.request
        said = rows(message for message in turn.new if message.role != "system")
        asked = [row for row in request.turn if row.role != "system"]
        assert call.room is not None
        if " ".join(row.text for row in said) != " ".join(row.text for row in asked):
            self.wrong("the rule, 2", f"sent {said} instead of the turn", call)
        if not sent.endswith(turn.new[-1].text) and turn.new[-1].role == "user":
            self.wrong("recap", "the question does not stand last", call)
        if request.setting not in ("", call.room.setting) and request.priming not in sent:
            self.wrong("scope", f"the conversation was not told its new priming: {sent!r}", call)
        call.setting = call.room.setting
        if request.priming and request.priming in sent:
            call.room.setting = request.setting

    def _check_continued(self, call: Call) -> None:
        request, room = call.request, call.room
        assert room is not None
        if any(not other.over for other in room.calls):
            self.wrong("I4", "two turns at once in one conversation", call)
        if request.ask in room.asks:
            self.wrong("I3", "a turn is sent into a conversation that has seen it", call)
        if call.before is None:
            self.wrong("I1", "a conversation is continued that stands for nothing known", call)
            return
        if self.loop.time() - room.spoken_at > IDLE_TTL - MARGIN:
            self.wrong("I4", f"resumed after {self.loop.time() - room.spoken_at} s", call)
        holds = tiers(call.before, request.history, scoped=request.scoped)
        if not holds:
            self.wrong("I1", "no tier allows to continue this", call)
        if room.renamed and "exact" not in holds:
            self.wrong("matching", "a handle that its vendor changed was matched otherwise than exactly", call)
        rest = request.history[len(call.before) :] if holds == {"caught-up"} else ()
        if holds and call.recap != tokens(rest):
            self.wrong("I1", f"told {call.recap} by recap instead of {tokens(rest)}", call)

    def heard_end(self, request: Request) -> None:
        """A client hears the end of its reply: the handle must be parked by now."""
        call = request.calls[-1] if request.calls else None
        if call is None or call.room is None or request.utility or self.store_state or not call.room.stands_for:
            return
        if call.room.calls[-1] is call and not call.parked:
            self.wrong("the rule, 2", "the client heard the end before the handle was parked", call)

    # --- what is to hold after a step

    def settled(self) -> None:
        """Nothing is left to do: look at all calls that came about."""
        for call in self.new_calls:
            request = call.request
            if call is request.calls[0] and request.expected:
                found = self._tiers_of(call)
                if request.expected not in found:
                    self.wrong("liveness", f"{request.expected} was to be had, not {found}", call)
            if call is request.calls[-1] and request.reply is not None:
                self._check_told(call, request.reply)
        self.new_calls.clear()
        for request in self.requests:
            self._check_alive(request)
        over = [request for request in self.requests if request.over]
        for request in over:
            self._check_heard(request)
        self.past += over
        self.requests = [request for request in self.requests if not request.over]
        self.calls = [call for call in self.calls if not call.over]

    def _tiers_of(self, call: Call) -> set[str]:
        """The tier that this call was matched by; those that it may have been if that is not known any more."""
        request = call.request
        if not call.handle:
            return {"rebuilt"}
        if call is request.calls[-1] and request.reply is not None:
            return {request.reply.record.reason or request.reply.record.how}
        return tiers(call.before or (), request.history, scoped=request.scoped)

    def _check_told(self, call: Call, reply: Reply) -> None:
        """What the client is told of its conversation is true."""
        how, reason = reply.record.how, reply.record.reason
        self.tally[f"{how} {reason}".strip()] += 1
        request = call.request
        holds = tiers(call.before or (), request.history, scoped=request.scoped) if call.handle else set()
        true = {
            "opened": not call.handle and not request.history,
            "rebuilt": not call.handle and bool(request.history),
            "continued": reason in holds - {"caught-up"},
            "caught-up": "caught-up" in holds,
            "utility": not call.handle and request.utility,
        }
        if not true[how]:
            self.wrong("I1", f"it is called {how} {reason}, but only {holds} hold", call)

    def _check_alive(self, request: Request) -> None:
        """A request that is not over is being spoken to, or waits for what it interrupted."""
        waited = self.loop.time() - request.at
        last = request.waits_for
        if last is not None and last.complete and last.ended_at - request.at < BARGE_IN:
            alone = [other for other in self.requests + self.past if other.waits_for is last] == [request]
            room = request.calls[0].room if request.calls else None
            rivals = [
                room
                for room in self.known(request.partition)
                if room is not last.room
                and "interrupted" in tiers(room.stands_for or (), request.history, scoped=request.scoped)
            ]  # come up while it waited: then it is not the only one any more
            told = alone and not rivals and last.room is not None and not last.room.renamed and not request.dead
            if told and room is not last.room and not self.store_state:
                self.wrong("liveness", "the reply that it interrupted has ended, and it was not continued", last)
            request.waits_for = None
        if request.over or request.dead or request.calls or request.joined:
            return
        if waited > BARGE_IN:
            self.wrong("liveness", f"a request waits for {waited} s, history {request.history}")

    def _check_heard(self, request: Request) -> None:
        """What a client heard is what the bot said to its own question."""
        text, calls = request.text, request.calls[-1:]
        if request.calls:
            ended = request.calls[-1]
            if ended.complete and not (request.finished or request.left or request.dead):
                self.wrong("liveness", f"the bot has answered, but its client got {request.fault!r}", ended)
        elif text or request.finished:
            if not (request.repeated or request.key):
                self.wrong("repeated request", "a request that is none was answered without a call")
            calls = [call for source in request.sources for call in source.calls]
            self.tally["joined"] += 1
        fits = [call for call in calls if (call.text == text if request.finished else call.text.startswith(text))]
        if (text or request.finished) and not fits:
            self.wrong("replies", f"a client heard {text!r}, the bot said {[call.text for call in calls]}")


FAULTS: Mapping[Outcome, Sequence[type[ProxyError]]] = {
    "undelivered": UNDELIVERED,
    "unknown": UNKNOWN,
    "no-answer": (NoAnswer,),
}


class TruthfulBot:
    """A Bot that does as a request's plan says. The request is known by the context that the reply's task runs in."""

    def __init__(self, witness: Witness, name: str) -> None:
        self._witness = witness
        self.name = self.identity = name

    def check(self, turn: Turn) -> None:
        """It can carry everything."""

    def forwarded(self, turn: Turn) -> Mapping[str, str]:
        return {"priming": turn.priming, **turn.metadata}

    async def start(self) -> None:
        """Nothing is to be done."""

    async def aclose(self) -> None:
        """Nothing is held."""

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        call = self._witness.called(turn, self.name)
        room = call.room
        assert room is not None
        lost = bool(call.handle) and (room.forgotten or call.plan.outcome == "lost")
        room.stands_for = None
        room.asks[call.request.ask] += 1
        room.calls.append(call)
        try:
            await call.pass_gate()
            if lost or call.plan.outcome == "undelivered":
                self._not_delivered(call, room, lost=lost)
            async for event in self._spoken(call, room):
                yield event
        finally:
            call.over = True

    def _not_delivered(self, call: Call, room: Room, *, lost: bool) -> None:
        """The vendor's conversation is as it was; or the vendor knows it no more."""
        room.stands_for, room.setting = call.before, call.setting
        room.calls.remove(call)
        room.asks -= Counter([call.request.ask])
        call.over = True
        if lost:
            room.forgotten = True
            raise ConversationExpired("The bot has forgotten this conversation")
        raise UNDELIVERED[call.plan.which % len(UNDELIVERED)]("It was not delivered")

    async def _spoken(self, call: Call, room: Room) -> AsyncGenerator[Event, None]:
        plan = call.plan
        if not call.handle and not plan.late_handle:
            yield Handle({"id": room.handle})
        pieces = self._pieces(call)
        faults = FAULTS.get(plan.outcome, ())
        for i, piece in enumerate(pieces[: plan.after] if faults else pieces):
            if i:
                await call.pass_gate()
            call.said.append(piece)
            yield Delta(piece)
        if faults:
            raise faults[plan.which % len(faults)]("The bot has failed")
        await call.pass_gate()
        before = room.handle
        self._complete(call, room)
        if room.handle != before or (plan.late_handle and not call.handle):
            yield Handle({"id": room.handle})
        if plan.outcome != "mute":
            yield Finish()

    def _complete(self, call: Call, room: Room) -> None:
        """The reply is said. Of one that says nothing, or never ends, nothing is known."""
        plan, request = call.plan, call.request
        told = rows([Message("assistant", call.text)])
        if told and plan.outcome != "mute":
            room.stands_for = request.history + request.turn + told
            call.complete = True
        request.left_early = request.left
        call.over = True
        call.ended_at = room.spoken_at = self._witness.loop.time()
        renames = plan.renames and bool(call.handle)
        if renames:
            room.renamed = True  # for good: it may have lost then what it stood for
            self._witness.old_handles.add(room.handle)
            del self._witness.rooms[room.handle]
            room.handle = f"{self.name}-{self._witness.number()}"
            self._witness.rooms[room.handle] = room

    def _pieces(self, call: Call) -> list[str]:
        plan = call.plan
        if plan.outcome == "blank":
            return [" ", "\n\u200b"]
        number = sum(map(ord, str(call.request.turn))) % 900 if plan.echo else 1000 + self._witness.number()
        pieces = ["<think>let me see</think>\n"] if plan.thinks else []
        pieces += ["Well then, ", f"I say\nr{number} ", "to that, é.", " And  more", " of it"][: max(plan.pieces, 2)]
        if plan.outcome == "like-an-error":
            pieces.append(" (parley: vendor_failed)")
        return pieces
