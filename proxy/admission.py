"""Whether a bot may be asked now: so many turns at a time, so many in line, and none while it keeps failing."""

import asyncio
import time
from collections.abc import Callable

from proxy.errors import BotResting, RateLimited, VendorError, VendorFailed, VendorTimeout, VendorUnavailable
from proxy.messages import BotLoad
from proxy.telemetry import log

RETRY_AFTER = 1.0  # seconds that a client is told to wait when the line is full

FAULTS = (VendorUnavailable, VendorFailed, VendorTimeout)  # what tells of the bot, and not of one message


class Admission:
    """The way to one bot. `failures` in a row close it for `pause` seconds (0: never); then one turn tries it.

    A turn that waits in line holds no conversation: it looks for one when it is let in.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int,
        queue: int,
        failures: int,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._slots = asyncio.Semaphore(concurrency)
        self._queue = queue
        self._running = self._waiting = 0
        self._limit = failures
        self._pause = pause
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0
        self._trying = False

    @property
    def load(self) -> BotLoad:
        """What goes on here now. A bot rests until a turn that tried it has shown that it answers again."""
        return BotLoad(self._name, self._running, self._waiting, self._is_closed)

    def entered(self, *, sibling: bool = False) -> "Stay":
        """A turn at the bot, as a context: raises RateLimited when the line is full, BotResting while it is left alone.

        A `sibling` belongs to a request of which another turn was let in: where that one tries the bot, so may it.
        """
        return Stay(self, sibling)

    async def _enter(self, sibling: bool) -> bool:
        """Be let in, maybe after a wait in line. True: this turn tries a bot that kept failing."""
        self._check_rest(sibling)
        if self._waiting >= self._queue and self._slots.locked():
            busy = "This bot is answering as many turns as it may, and its queue is full: try again in a moment"
            raise RateLimited(busy, code="bot_busy", retry_after=RETRY_AFTER)
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            self._check_rest(sibling)  # it may have begun while this turn stood in line
        except BotResting:
            self._slots.release()
            raise
        self._running += 1
        trying = self._is_closed and not self._trying
        self._trying = self._trying or trying
        return trying

    def _leave(self, fault: BaseException | None, trying: bool) -> None:
        self._running -= 1
        self._slots.release()
        self._trying = self._trying and not trying
        if isinstance(fault, FAULTS):
            was_closed = self._is_closed
            self._failures += 1
            if self._is_closed and (trying or not was_closed):  # those still under way close nothing again
                self._close()
        elif fault is None or isinstance(fault, VendorError):  # the bot is there, whatever it has against this turn
            self._open()

    @property
    def _is_closed(self) -> bool:
        return bool(self._limit) and self._failures >= self._limit

    def _check_rest(self, sibling: bool) -> None:
        left = self._closed_until - self._clock()
        if self._is_closed and (left > 0 or (self._trying and not sibling)):
            alone = "This bot has kept failing and is left alone for a moment"
            raise BotResting(alone, retry_after=max(left, RETRY_AFTER))

    def _close(self) -> None:
        self._closed_until = self._clock() + self._pause
        told = {"model": self._name, "failures": self._failures, "pause": self._pause}
        log.warning("a bot keeps failing and is left alone", extra={"parley": told})

    def _open(self) -> None:
        if self._is_closed:
            log.info("a bot answers again", extra={"parley": {"model": self._name}})
        self._failures = 0


class Stay:
    """One turn's stay at a bot. What ends it tells how the bot is."""

    def __init__(self, admission: Admission, sibling: bool) -> None:
        self._admission = admission
        self._sibling = sibling

    async def __aenter__(self) -> None:
        self._trying = await self._admission._enter(self._sibling)

    async def __aexit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        self._admission._leave(fault, self._trying)
