"""SIGKILL at any moment, again and again, under load: the store opens, chats go on, and no turn is said twice.

PARLEY_TEST_KILLS says how often; every run has the same dice. What the death of one worker costs is in test_workers.py.
"""

import asyncio
import os
import random
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from proxy.simulator import Simulator
from tests.end_to_end.callers import Heard, Request, Way, soon
from tests.end_to_end.test_commands import Running, command, config_at, started
from tests.end_to_end.test_workers import MODELS, Talk, check, check_losses, talks, workers
from tests.stores.servers import redis_server

KILLS = int(os.environ.get("PARLEY_TEST_KILLS", "4"))  # of each kind of proxy
CROWD = 15
LONGEST_LIFE = 0.6  # seconds under load

pytestmark = pytest.mark.timeout(60 + 15 * KILLS)


class Mortal:
    """A proxy that is killed and started again in one folder. Its clients wait while it is known to be dead."""

    def __init__(self, at: Path, config: str, count: int) -> None:
        self._at = at
        self._words = ("serve", "--config", config, "--port", "0", "--workers", str(count))
        self._stack = ExitStack()
        self._alive = asyncio.Event()
        self.logs: list[str] = []
        self.running: Running | None = None

    def way(self, way: Way) -> Way:
        """The same way, wherever the proxy listens by now."""

        async def living(_: str, key: str, request: Request) -> Heard:
            await self._alive.wait()
            assert self.running is not None
            return await way(self.running.url, key, request)

        return living

    async def lives(self) -> Running:
        """Start it; it must come up, whatever it finds."""
        self.running = await asyncio.to_thread(self._stack.enter_context, started(*self._words, at=self._at))
        self._alive.set()
        return self.running

    async def dies(self) -> None:
        """All its processes at once."""
        assert self.running is not None
        self._alive.clear()
        with suppress(ProcessLookupError):  # it has died of itself, which its log tells
            os.killpg(self.running.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._stack.close)
        self.logs.append(self.running.err.read_text())

    async def is_stillborn(self, seconds: float) -> None:
        """Killed while it starts."""
        with command(*self._words, at=self._at) as running:
            await asyncio.sleep(seconds)
            os.killpg(running.process.pid, signal.SIGKILL)


@contextmanager
def store_of(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield "sqlite:///parley.db"
    else:
        with redis_server() as server:
            yield server.url


async def talking(talk: Talk, over: asyncio.Event) -> None:
    while not over.is_set():
        await talk.turns(1)


def turns_of(crowd: Sequence[Talk]) -> int:
    return sum(len(talk.told) for talk in crowd)


def has_gone_on(crowd: Sequence[Talk], turns: int) -> bool:
    return turns_of(crowd) > turns


async def killings(mortal: Mortal, chance: random.Random, crowd: Sequence[Talk], count: int) -> None:
    """Kill it at chance moments: while it starts, under load, and, where there are some, a worker alone."""
    for number in range(KILLS):
        running = mortal.running
        assert running is not None
        await soon(partial(has_gone_on, crowd, turns_of(crowd) + CROWD), 30)
        await asyncio.sleep(chance.uniform(0, LONGEST_LIFE))
        if count > 1 and number % 2 == 0:
            os.kill(chance.choice(sorted(workers(running))), signal.SIGKILL)
            continue
        await mortal.dies()
        if number % 3 == 1:
            await mortal.is_stillborn(chance.uniform(0, 1.2))
        await mortal.lives()


@pytest.mark.parametrize(("kind", "count"), [("sqlite", 1), ("sqlite", 2), ("redis", 1)])
async def test_killed_at_any_moment(tmp_path: Path, backstage: tuple[Simulator, str], kind: str, count: int) -> None:
    """A proxy that is killed again and again comes up each time, and every chat goes on, without a turn said twice."""
    simulator, _ = backstage
    for vendor in simulator.vendors.values():
        vendor.latency, vendor.gap = 0.02, 0.002
    with store_of(kind) as store:
        mortal = Mortal(tmp_path, config_at(tmp_path, backstage, store=store), count)
        crowd = talks([""], CROWD)
        for talk in crowd:
            talk.chat.way = mortal.way(talk.chat.way)
        await mortal.is_stillborn(0.5)
        await mortal.lives()
        try:
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for talk in crowd:
                    group.create_task(talking(talk, over))
                await killings(mortal, random.Random(f"{kind} {count}"), crowd, count)
                over.set()
            for talk in crowd:
                await talk.turns(2)
        finally:
            await mortal.dies()
    assert sum(talk.lost for talk in crowd) >= KILLS, "it was killed while nothing happened"
    assert {talk.told[-1] for talk in crowd} == {"continued exact"}
    check_losses(crowd)
    check([simulator.vendors[name] for name in MODELS])
    assert not [log for log in mortal.logs if "Traceback" in log]
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "parley.db") as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        file.close()
