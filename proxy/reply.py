"""A running reply: spoken once, in a task of its own, and heard from its beginning by any number of listeners.

Heartbeats, clients that leave, repeated requests and draining are questions of listening; the speaker knows of none.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Self

from proxy.errors import InvalidRequest, RateLimited, ShuttingDown
from proxy.messages import Ask, Delta, Finish, Parked, TurnRecord
from proxy.patience import Alarm

Said = Delta | Finish

REMEMBERED = 60.0  # seconds after its end that a reply which nobody heard waits for its client to ask again
MOST_REMEMBERED = 100  # such replies, and
LONGEST_REMEMBERED = 256 * 1024  # characters of one
MOST_KEYS = 10_000  # idempotency keys
MOST_LISTENERS = 32  # to one reply: a client that asks again and again leaves its line each time


class ListenerLeft(Exception):
    """The client behind this listener is gone."""


class Reply:
    """What a bot says to an ask. `record` tells how it came about; it is complete once `ended` is done.

    `asked` is the head of what it answers, `parked` the entry that its handle was parked as, once it is. A reply that
    nobody listens to any more runs on for `linger` seconds and is then stopped.
    """

    def __init__(self, ask: Ask, asked: bytes, record: TurnRecord, *, linger: float) -> None:
        self.ask = ask
        self.asked = asked
        self.record = record
        self.parked: Parked | None = None
        self.alone = asyncio.Event()  # set while nobody listens any more
        self.heard_out = asyncio.get_running_loop().create_future()  # done when somebody has heard the end
        self.complete = False  # all was said
        self._said: list[Said] = []
        self._over = False
        self._fault: Exception | None = None
        self._linger = linger
        self._listeners: set[Listener] = set()
        self._deadline: asyncio.TimerHandle | None = None

    def speak(self, speaking: Callable[[], Awaitable[None]]) -> None:
        """Begin, in a task of its own, which says what is to be said."""
        self.ended = asyncio.create_task(self._speak(speaking))
        self.ended.add_done_callback(self._end)

    def say(self, said: Said) -> None:
        """The next piece, or the end; all who listen hear it."""
        if isinstance(said, Finish):
            self.complete = True
        else:
            self.record.deltas += 1
            self.record.first_delta = self.record.first_delta or time.monotonic()
        self._said.append(said)
        self._ring()

    @property
    def stopping(self) -> bool:
        """Whether the vendor is being hung up on."""
        return self.ended.cancelling() > 0

    @property
    def crowded(self) -> bool:
        """Whether nobody else is to listen."""
        return len(self._listeners) >= MOST_LISTENERS

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(said.text for said in self._said if isinstance(said, Delta))

    def stop(self) -> None:
        """Hang up on the vendor; the handle is lost."""
        self.ended.cancel()

    async def _speak(self, speaking: Callable[[], Awaitable[None]]) -> None:
        try:
            await speaking()
        except Exception as fault:  # noqa: BLE001 - it is raised again in front of every listener
            self._fault = _anew(fault)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._over = True
        self._ring()
        if self._deadline is not None:
            self._deadline.cancel()

    def _ring(self) -> None:
        for listener in self._listeners:
            listener.ring()

    def _join(self, listener: "Listener") -> None:
        self._listeners.add(listener)
        self.record.heard = True
        self.alone.clear()
        if self._deadline is not None:
            self._deadline.cancel()

    def _leave(self, listener: "Listener") -> None:
        self._listeners.discard(listener)
        if self._listeners:
            return
        self.alone.set()
        if not self._over:
            self.record.heard = False
            self._deadline = asyncio.get_running_loop().call_later(self._linger, self.stop)

    def _check(self) -> None:
        """Raise what it ended with, if that was no good end."""
        if self._over and not self.complete:
            stopped = ShuttingDown("The reply was stopped before its end", delivered=True, retry_after=1)
            raise _anew(self._fault or stopped)

    def _was_heard_out(self) -> None:
        if not self.heard_out.done():
            self.heard_out.set_result(None)


def _anew(fault: Exception) -> Exception:
    """The same as if nobody had raised it: what is kept must not hold all that was at hand where it was raised."""
    anew: Exception = type(fault).__new__(type(fault), *fault.args)
    vars(anew).update(vars(fault))
    return anew


class Listener:
    """One client's ear for the replies to its request: one, or as many as it wants choices.

    To be used as a context; hears each reply from its beginning.
    """

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = replies
        self._heard = [0] * len(replies)
        self._left = False
        self._bell: asyncio.Future[None] | None = None
        self._alarm = Alarm(self.ring)

    def __enter__(self) -> Self:
        for reply in self._replies:
            reply._join(self)
        return self

    def __exit__(self, *raised: object) -> None:
        self._alarm.end()
        for reply in self._replies:
            reply._leave(self)

    async def hear(self, timeout: float | None = None) -> Sequence[tuple[int, Said]]:
        """All that was said since the last call, by which choice, waiting for it at most `timeout` seconds.

        Raises the fault that a reply ended with, once all before it was heard; ListenerLeft after `leave`.
        """
        said = self._unheard()
        if not said:
            self._bell = self._alarm.loop.create_future()
            self._alarm.set(inf if timeout is None else self._alarm.loop.time() + timeout)
            await self._bell
            said = self._unheard()
        return said

    def leave(self) -> None:
        """Stop hearing, from whatever task: the client has gone."""
        self._left = True
        self.ring()

    def ring(self) -> None:
        """Something happened: wake up."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _unheard(self) -> Sequence[tuple[int, Said]]:
        if self._left:
            raise ListenerLeft
        found: list[tuple[int, Said]] = []
        complete = True
        for choice, reply in enumerate(self._replies):
            heard, said = self._heard[choice], len(reply._said)
            if heard < said:
                found += [(choice, event) for event in reply._said[heard:]]
                self._heard[choice] = said
            complete = complete and reply.complete
        if not found:
            for reply in self._replies:
                reply._check()
        elif complete:
            for reply in self._replies:  # all or none: who asks once more is told every choice again
                reply._was_heard_out()
        return found


class Replies:
    """The replies of this process: those that run, and for a while those whose end nobody has heard."""

    def __init__(self) -> None:
        self.running: set[Reply] = set()
        self._by_head: dict[bytes, list[Reply]] = {}
        self._unheard: dict[Reply, asyncio.TimerHandle] = {}  # ended, the oldest first
        self._keys: OrderedDict[tuple[str, str], tuple[bytes, float]] = OrderedDict()

    def add(self, reply: Reply) -> None:
        """Know a reply that has begun to speak, until its end was heard or is forgotten."""
        self.running.add(reply)
        self._by_head.setdefault(reply.asked, []).append(reply)
        self._remember_key(reply.ask, inf)
        reply.ended.add_done_callback(lambda _: self._ended(reply))
        reply.heard_out.add_done_callback(lambda _: self.forget(reply))

    def speaking(self, asked: bytes) -> Sequence[Reply]:
        """The running replies to this head."""
        return [reply for reply in self._by_head.get(asked, ()) if reply in self.running and not reply.stopping]

    def to(self, ask: Ask, asked: bytes) -> Reply | None:
        """The reply to an ask that is made once more: it runs, or has ended unheard.

        Raises InvalidRequest for an idempotency key that is remembered with another body, RateLimited for a reply that
        has all the listeners it may have.
        """
        body, until = self._keys.get((ask.tenant, ask.idempotency_key), (b"", 0.0))
        if until and asyncio.get_running_loop().time() < until and body != ask.body():
            raise InvalidRequest(
                "This Idempotency-Key was used for another body a moment ago: use a new one for every new request",
                code="idempotency_key_reused",
            )
        for reply in self._by_head.get(asked, ()):
            if reply.ask.choice != ask.choice or reply.heard_out.done() or reply.stopping:
                continue
            theirs, ours = reply.ask.idempotency_key, ask.idempotency_key
            again = ours == theirs != "" or (ask.repeated and not (ours and theirs))
            if again and reply.ask.body() == ask.body():
                if reply.crowded:
                    crowd = "Too many requests are waiting for this one reply: hang up before asking again"
                    raise RateLimited(crowd, code="bot_busy", retry_after=1)
                return reply
        return None

    def _remember_key(self, ask: Ask, until: float) -> None:
        now = asyncio.get_running_loop().time() if self._keys else 0.0
        while self._keys and next(iter(self._keys.values()))[1] <= now:
            self._keys.popitem(last=False)
        if ask.idempotency_key:
            self._keys[ask.tenant, ask.idempotency_key] = ask.body(), until
            self._keys.move_to_end((ask.tenant, ask.idempotency_key))
            if len(self._keys) > MOST_KEYS:
                self._keys.popitem(last=False)

    def _ended(self, reply: Reply) -> None:
        loop = asyncio.get_running_loop()
        self.running.discard(reply)
        self._remember_key(reply.ask, loop.time() + REMEMBERED)
        told = reply.complete and not reply.heard_out.done()
        if not told or reply.parked is None or len(reply.text) > LONGEST_REMEMBERED:
            self.forget(reply)
            return
        body = reply.ask.body()
        reply.ask = reply.ask._replace(messages=(), body=lambda: body)  # remembered for long after the bot was told
        self._unheard[reply] = loop.call_later(REMEMBERED, self.forget, reply)
        if len(self._unheard) > MOST_REMEMBERED:
            self.forget(next(iter(self._unheard)))

    def forget(self, reply: Reply) -> None:
        """Tell it to nobody who asks from now on."""
        reply.heard_out.cancel()  # nobody waits for that now: it knows the reply, which knows it
        if timer := self._unheard.pop(reply, None):
            timer.cancel()
        known = self._by_head.get(reply.asked, [])
        if reply in known:
            known.remove(reply)
        if not known:
            self._by_head.pop(reply.asked, None)
