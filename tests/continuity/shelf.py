"""The stores under test, behind a glass that sees what is parked, and is slow or out of reach on demand."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from proxy.errors import StoreUnavailable
from proxy.messages import Parked
from proxy.ports import ConversationStore
from proxy.stores import open_store
from proxy.stores.memory import MemoryStore
from tests.continuity.truth import Entry, Witness

T = TypeVar("T")
Clock = Callable[[], float]

PER_HEAD = 32
STATES = ("find", "take", "put", "all", "after")  # what fails; "after": all is done, and then called a failure


class Cupboard(Protocol):
    """Where stores come from. `open` gives each relay its own, on common ground; `lose` is called between examples."""

    survives: bool

    def open(self, *, max_parked: int, clock: Clock) -> ConversationStore: ...

    def lose(self) -> None: ...


class InMemory:
    """One store for all relays of a process, gone with it."""

    survives = False
    make: Callable[..., ConversationStore] = MemoryStore

    def __init__(self) -> None:
        self._store: ConversationStore | None = None

    def open(self, *, max_parked: int, clock: Clock) -> ConversationStore:
        if self._store is None:
            self._store = type(self).make(max_parked=max_parked, clock=clock)
        return self._store

    def lose(self) -> None:
        self._store = None


class ByUrl:
    """A store that outlives its process. `url` is told a number that no example before had."""

    survives = True

    def __init__(self, url: Callable[[int], str]) -> None:
        self._url = url
        self._numbers = itertools.count()
        self._number = next(self._numbers)

    def open(self, *, max_parked: int, clock: Clock) -> ConversationStore:
        return open_store(self._url(self._number), max_parked=max_parked, clock=clock)

    def lose(self) -> None:
        self._number = next(self._numbers)


class Watched:
    """A ConversationStore that tells the witness. `pauses` are turns of the loop before and after each call.

    `real`: it has threads or sockets behind it.
    """

    def __init__(self, inner: ConversationStore, witness: Witness, *, max_parked: int, pauses: int, real: bool) -> None:
        self._inner = inner
        self._real = real
        self._witness = witness
        self._max_parked = max_parked
        self._pauses = pauses
        self.in_flight = 0
        self.dead = False

    async def secret(self) -> bytes:
        return await self._inner.secret()

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        return await self._through("find", lambda: self._inner.find(labels))

    async def take(self, id: str) -> Parked | None:
        return await self._through("take", lambda: self._taken(id))

    async def take_newest(self, label: str) -> Parked | None:
        return await self._through("take", lambda: self._taken_newest(label))

    async def put(self, parked: Parked) -> None:
        await self._through("put", lambda: self._put(parked))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _taken(self, id: str) -> Parked | None:
        known = self._witness.parked.get(id)
        if known is not None:
            known.sure = False
        parked = await self._inner.take(id)
        if parked is not None and self._witness.parked.pop(id, None) is None:
            self._witness.wrong("I4", f"the entry of {parked.handle} was given out twice")
        return parked

    async def _taken_newest(self, label: str) -> Parked | None:
        """Which it will be is not known before: meanwhile none is sure to be there."""
        sure = [entry for entry in self._witness.parked.values() if entry.sure]
        for entry in sure:
            entry.sure = False
        parked = await self._inner.take_newest(label)
        for entry in sure:
            entry.sure = True
        if parked is not None and self._witness.parked.pop(parked.id, None) is None:
            self._witness.wrong("I4", f"the entry of {parked.handle} was given out twice")
        return parked

    async def _put(self, parked: Parked) -> None:
        handle = str(parked.handle.data["id"])
        room = self._witness.rooms.get(handle)
        if room is None or room.stands_for is None:
            self._witness.wrong("the table", f"{handle} is parked, but stands for nothing known")
        if any(entry.handle == handle and entry.sure for entry in self._witness.parked.values()):
            self._witness.wrong("I4", f"{handle} is parked twice")
        if len(self._witness.parked) + 1 >= min(self._max_parked, PER_HEAD):
            self._witness.lossy = True
        entry = self._witness.parked[parked.id] = Entry(handle, sure=False)
        call = room.calls[-1] if room is not None and room.calls else None
        await self._inner.put(parked)
        entry.sure = True
        if call is not None:
            call.parked = True

    async def _through(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """In a task of its own: what has been asked of a real store happens, even when its caller is gone."""
        return await asyncio.shield(asyncio.create_task(self._done(name, work)))

    async def _one_by_one(self, work: Callable[[], Awaitable[T]]) -> T:
        """Real stores answer when they like; an example must go the same way each time."""
        async with self._witness.at_the_store:
            await self._witness.loop.quiet()
            return await work()

    async def _done(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        self.in_flight += 1
        try:
            for _ in range(self._pauses):
                await asyncio.sleep(0)
            state = self._witness.store_state
            if self.dead or state in (name, "all"):
                raise StoreUnavailable("The store is out of reach")
            done = await self._one_by_one(work) if self._real else await work()
            if state == "after":
                raise StoreUnavailable("The store did not answer in time")
            for _ in range(self._pauses):
                await asyncio.sleep(0)
            return done
        finally:
            self.in_flight -= 1
