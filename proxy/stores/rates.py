"""Requests a minute, counted by name: in this process, or in Redis for all who share it."""

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from pyrate_limiter import GCRA, Duration, InMemoryStateStore, Rate, RedisStateStore, StateStore

from proxy.telemetry import log

LEFT_ALONE = 5.0  # seconds that a shared counter which failed is not asked again
DEADLINE = 0.5  # seconds that a shared counter may take; then this process goes by its own


class Rates:
    """Lets through what a name may ask for in a minute, at once or spread, and then as it comes free again.

    Each of `share` processes lets through its part. With `redis`, a client, all who use it count together, under
    `prefix`; while it cannot be reached each goes by its part again.
    """

    def __init__(
        self, redis: Any = None, *, prefix: str = "", share: int = 1, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._share = share
        self._clock = clock
        self._own: dict[str, StateStore] = {}
        self._common: dict[str, StateStore] = {}
        self._lost_until = 0.0  # on the monotonic clock; 0: all is well

    async def wait(self, name: str, per_minute: int) -> float:
        """Count one request. Returns the seconds until it may be made again, 0 if it may be made now."""
        now = round(self._clock() * 1000)
        if self._redis is not None and time.monotonic() >= self._lost_until:
            counter = self._common.setdefault(name, RedisStateStore(self._redis, f"{self._prefix}rate:{name}"))
            try:
                async with asyncio.timeout(DEADLINE):
                    seconds = await _spent(counter, per_minute, now)
            except Exception as fault:  # noqa: BLE001 - whatever the driver says: requests are answered all the same
                if not self._lost_until:
                    log.warning("rates are counted by each process", extra={"parley": {"why": type(fault).__name__}})
                self._lost_until = time.monotonic() + LEFT_ALONE
            else:
                if self._lost_until:
                    log.warning("rates are shared again")
                self._lost_until = 0.0
                return seconds
        own = self._own.setdefault(name, InMemoryStateStore())
        return await _spent(own, max(1, per_minute // self._share), now)

    async def aclose(self) -> None:
        """Let go of the connections."""
        if self._redis is not None:
            await self._redis.aclose()


async def _spent(counter: StateStore, per_minute: int, now: int) -> float:
    decision = counter.check(GCRA(), [Rate(per_minute, Duration.MINUTE)], now, 1)
    if isawaitable(decision):
        decision = await decision
    return 0.0 if decision.allowed else max((decision.retry_after_ms or 0) / 1000, 0.001)
