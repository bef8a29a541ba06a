"""A running reply: spoken once, in a task of its own, and heard from its beginning by any number of listeners.

Heartbeats, clients that leave and draining are questions of listening; the speaker knows of none of them.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from proxy.errors import ShuttingDown
from proxy.messages import Delta, Finish, TurnRecord

Said = Delta | Finish


class ListenerLeft(Exception):
    """The client behind this listener is gone."""


class Reply:
    """What a bot is saying. `record` tells how it came about; it is complete once `ended` is done.

    A reply that nobody listens to any more runs on for `linger` seconds and is then stopped.
    """

    def __init__(self, events: AsyncGenerator[Said, None], record: TurnRecord, *, linger: float) -> None:
        self.record = record
        self._said: list[Said] = []
        self._over = False
        self._fault: Exception | None = None
        self._linger = linger
        self._listeners: set[Listener] = set()
        self._deadline: asyncio.TimerHandle | None = None
        self.ended = asyncio.create_task(self._speak(events))
        self.ended.add_done_callback(self._end)

    def listen(self) -> "Listener":
        """A new listener, to be used as a context; hears the reply from its beginning."""
        return Listener(self)

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(said.text for said in self._said if isinstance(said, Delta))

    def stop(self) -> None:
        """Hang up on the vendor; the handle is lost."""
        self.ended.cancel()

    async def _speak(self, events: AsyncGenerator[Said, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._said.append(event)
                    self._ring()
        except Exception as fault:  # noqa: BLE001 - it is raised again in front of every listener
            self._fault = fault

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
        if self._deadline is not None:
            self._deadline.cancel()

    def _leave(self, listener: "Listener") -> None:
        self._listeners.discard(listener)
        if not self._listeners and not self._over:
            self.record.heard = False
            self._deadline = asyncio.get_running_loop().call_later(self._linger, self.stop)

    def _since(self, heard: int) -> Sequence[Said]:
        if heard == len(self._said) and self._over:
            raise self._fault or ShuttingDown("The reply was stopped before its end", delivered=True, retry_after=1)
        return self._said[heard:]


class Listener:
    """One client's ear."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._heard = 0
        self._left = False
        self._bell: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._reply._join(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reply._leave(self)

    async def hear(self, timeout: float | None = None) -> Sequence[Said]:
        """All that was said since the last call, waiting for it at most `timeout` seconds; then nothing.

        Raises the fault the reply ended with, once all before it was heard; ListenerLeft after `leave`.
        """
        said = self._unheard()
        if not said:
            await self._wait(timeout)
            said = self._unheard()
        self._heard += len(said)
        return said

    def leave(self) -> None:
        """Stop hearing, from whatever task: the client has gone."""
        self._left = True
        self.ring()

    def ring(self) -> None:
        """Something happened: wake up."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _unheard(self) -> Sequence[Said]:
        if self._left:
            raise ListenerLeft
        return self._reply._since(self._heard)

    async def _wait(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._bell = loop.create_future()
        timer = loop.call_later(timeout, self.ring) if timeout is not None else None
        try:
            await self._bell
        finally:
            self._bell = None
            if timer is not None:
                timer.cancel()
