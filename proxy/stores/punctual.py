"""A store that answers in time or not at all, and whose loss and return are told once."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from proxy.errors import StoreUnavailable
from proxy.messages import Parked
from proxy.ports import ConversationStore
from proxy.telemetry import log

DEADLINE = 0.5  # seconds
LAST_CALL = 0.1  # of them, the part in which this process reads what came while it stood still itself

T = TypeVar("T")


class Punctual:
    """A ConversationStore in front of another: StoreUnavailable after `deadline` seconds at the latest.

    Each call runs in a task of its own, which only the deadline can cancel: a caller who leaves does not tear at
    the driver in the midst of an exchange, and what is parked for one who left is parked.
    """

    def __init__(self, store: ConversationStore, *, deadline: float = DEADLINE) -> None:
        self._store = store
        self._deadline = deadline
        self._running: set[asyncio.Task[Any]] = set()
        self._lost_at: float | None = None  # when it failed last, on the loop's clock; None: all is well

    async def secret(self) -> bytes:
        """The secret of the store behind."""
        return await self._ask(self._store.secret())

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        """Entries with any of these labels, newest first."""
        return await self._ask(self._store.find(labels))

    async def take(self, id: str) -> Parked | None:
        """Remove an entry and return it. One that is removed too late is lost to all."""
        return await self._ask(self._store.take(id))

    async def take_newest(self, label: str) -> Parked | None:
        """Remove the newest entry with a label and return it. One that is removed too late is lost to all."""
        return await self._ask(self._store.take_newest(label))

    async def put(self, parked: Parked) -> None:
        """Park an entry. After StoreUnavailable it may be parked all the same."""
        await self._ask(self._store.put(parked))

    async def aclose(self) -> None:
        """Wait for what is running, then close the store behind."""
        if self._running:
            await asyncio.wait(self._running)
        await self._store.aclose()

    async def _ask(self, answer: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(self._in_time(answer))
        self._running.add(task)
        task.add_done_callback(self._over)
        await asyncio.wait((task,))
        return task.result()

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # now it counts as seen, should the caller have left

    async def _in_time(self, answer: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(None) as limit:
                last_call = min(LAST_CALL, self._deadline / 2)
                timer = loop.call_at(
                    started + self._deadline - last_call, lambda: limit.reschedule(loop.time() + last_call)
                )
                try:
                    answered = await answer
                finally:
                    timer.cancel()
        except (StoreUnavailable, TimeoutError) as error:
            fault = StoreUnavailable(f"the store did not answer within {self._deadline:g} s")
            if isinstance(error, StoreUnavailable):
                fault = error
            if self._lost_at is None:
                log.warning("store lost", extra={"parley": {"why": fault.message}})
            self._lost_at = loop.time()
            raise fault from None
        if self._lost_at is not None and started >= self._lost_at:  # not one that had set out before
            self._lost_at = None
            log.info("store back")
        return answered
