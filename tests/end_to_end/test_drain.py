"""SIGTERM before a crowd: what ends within the grace is whole and is found after a restart, what does not is told.

Who sees the end of one stream, and every worker of a family, is in test_commands.py and test_workers.py.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.simulator import Simulator
from proxy.simulator.faults import Fault
from tests.conftest import demo_models
from tests.end_to_end.callers import Answer, Chat, Line, call, calling, heard_by, question, soon
from tests.end_to_end.test_commands import Running, config_at, started
from tests.stores.servers import redis_server

IN_TIME, TOO_LATE, PLAIN = 160, 40, 5  # streams, and plain calls of both kinds
PARTS = 8  # in which the former end: 160 at one moment are more than a busy machine's store takes in half a second
GRACE = 6.0  # seconds; a busy machine must check the doors and end the streams in them
SOON = 5.0  # seconds after the grace in which the process must be gone, on a busy machine
WORDS = " ".join(f"word{number}" for number in range(12))
ROOM = {"max_connections": 300, "max_concurrency": 300, "queue": 1}


@dataclass
class Visit:
    """A request under way: what was asked, and what has come back so far."""

    text: str
    line: Line
    answer: Answer | None = None

    async def whole(self) -> Answer:
        """All that comes until the end, however that looks."""
        self.answer = self.answer or await self.line.begin()
        async for piece in self.line.pieces(self.answer):
            self.answer.pieces.append(piece)
        return self.answer

    @property
    def said(self) -> str:
        """The text of a stream so far."""
        assert self.answer is not None
        chunks = [chunk for chunk in self.answer.data if chunk != "[DONE]" and "choices" in chunk]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    async def goes_on(self, url: str) -> str:
        """How the client's next turn, with what it was told so far, is continued elsewhere."""
        history = [("user", f"say {self.text}"), ("assistant", self.said)]
        chat = Chat(url, "newoaks", messages=[{"role": role, "content": text} for role, text in history])
        return (await chat.say("And then?")).how


class Crowd:
    """Visits of one proxy, which stay open as long as the stack does."""

    def __init__(self, stack: AsyncExitStack, url: str, simulator: Simulator) -> None:
        self._stack = stack
        self._url = url
        self._simulator = simulator
        self._count = 0

    async def enters(self, model: str, number: int, *, stream: bool) -> tuple[list[Visit], Fault]:
        """So many visits whose replies have begun, and what they wait for. Streams have had their first piece."""
        fault = self._simulator.vendors[model].fail("stall" if stream else "slow", times=number)
        visits = list(await asyncio.gather(*(self._visit(model, stream=stream) for _ in range(number))))
        await soon(lambda: fault.left == 0, 15)
        return visits, fault

    async def _visit(self, model: str, *, stream: bool) -> Visit:
        self._count += 1
        text = f"visit{self._count} {WORDS}"
        request = question(model, f"say {text}", stream=stream)
        visit = Visit(text, await self._stack.enter_async_context(calling(self._url, request)))
        if stream:
            visit.answer = await visit.line.begin()
            visit.answer.pieces.append(await anext(visit.line.pieces(visit.answer)))
        return visit


async def shut_at_once(running: Running) -> float:
    """At SIGTERM nothing new is let in, by no worker, and everybody is told how to go on; when that began."""
    url, began = running.url, time.monotonic()
    running.signal(signal.SIGTERM)
    while (await call(url, path="/readyz", method="GET")).status == 200:
        assert time.monotonic() - began < 1.5, "ready for too long"
    await asyncio.sleep(0.1)  # until the signal has gone round
    for number in range(8):
        assert (await call(url, path="/readyz", method="GET")).status == 503
        refused = await call(url, question("newoaks", "Hello", stream=number % 2 == 0))
        assert is_shutting_down(refused, retry=True)
        assert refused.headers["connection"] == "close"
    return began


def is_shutting_down(answer: Answer, *, retry: bool) -> bool:
    assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")
    assert answer.headers["x-should-retry"] == str(retry).lower()
    return int(answer.headers["retry-after"]) >= 1


@contextmanager
def proxy(at: Path, backstage: tuple[Simulator, str], store: str, workers: int) -> Iterator[Running]:
    """`serve` with room for the crowd at every bot."""
    simulator, url = backstage
    models = {name: {**entry, **ROOM} for name, entry in demo_models(url, simulator).items()}
    config = config_at(at, backstage, store=store, models=models, server={"shutdown_grace": GRACE})
    with started("serve", "--config", config, "--port", "0", "--workers", str(workers), at=at) as running:
        yield running


def store_was_late(running: Running) -> bool:
    """Whether a call of the store's took longer than it may, which on a busy machine is no fault of the drain's."""
    return any("store" in line["event"] and line["level"] != "info" for line in running.log)


@contextmanager
def store_of(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield "sqlite:///parley.db"
    else:
        with redis_server() as server:
            yield server.url


async def ended_well(visits: Sequence[Visit]) -> None:
    for answer, visit in zip(await asyncio.gather(*(visit.whole() for visit in visits)), visits, strict=True):
        assert answer.data[-1] == "[DONE]"
        assert visit.said == visit.text


def plain_text(answer: Answer) -> str:
    return str(answer.json["choices"][0]["message"]["content"])


async def cut_off(visits: Sequence[Visit]) -> None:
    """Each has one event more, which tells why, and an end without `[DONE]`."""
    for answer, visit in zip(await asyncio.gather(*(visit.whole() for visit in visits)), visits, strict=True):
        assert answer.whole
        assert "[DONE]" not in answer.data
        assert [event["error"]["code"] for event in answer.data if "error" in event] == ["shutting_down"]
        assert "error" in answer.data[-1]
        assert visit.text.startswith(visit.said)


async def go_on(url: str, visits: Sequence[Visit]) -> Counter[str]:
    """How the next turns are continued; five clients at a time, so that a busy machine's store keeps its time."""
    few = asyncio.Semaphore(5)

    async def next_turn(visit: Visit) -> str:
        async with few:
            return await visit.goes_on(url)

    return Counter(await asyncio.gather(*map(next_turn, visits)))


@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 1), ("sqlite", 2), ("redis", 1)])
async def test_drain_of_a_crowd(tmp_path: Path, backstage: tuple[Simulator, str], kind: str, workers: int) -> None:
    """Of 200 streams those that end within the grace are whole and go on after a restart; the others are told."""
    simulator, _ = backstage
    with store_of(kind) as store:
        with proxy(tmp_path, backstage, store, workers) as running:
            async with asyncio.timeout(50), AsyncExitStack() as stack:
                crowd = Crowd(stack, running.url, simulator)
                parts = [await crowd.enters("newoaks", IN_TIME // PARTS, stream=True) for _ in range(PARTS)]
                in_time = [visit for part, _ in parts for visit in part]
                too_late, _ = await crowd.enters("newoaks", TOO_LATE, stream=True)
                soon_done, calls = await crowd.enters("quickchat", PLAIN, stream=False)
                never_done, _ = await crowd.enters("quickchat", PLAIN, stream=False)
                began = await shut_at_once(running)
                calls.release()
                for part, streams in parts:
                    streams.release()
                    await ended_well(part)
                assert [plain_text(await visit.whole()) for visit in soon_done] == [visit.text for visit in soon_done]
                await cut_off(too_late)
                assert time.monotonic() - began >= GRACE
                assert all([is_shutting_down(await visit.whole(), retry=False) for visit in never_done])
                assert await running.ended(10) == 0
                assert time.monotonic() - began < GRACE + SOON
        assert not [line for line in running.log if line["level"] == "error"]
        late = store_was_late(running)
        assert (simulator.newoaks.hung_up, simulator.quickchat.hung_up) == (TOO_LATE, PLAIN)
        with proxy(tmp_path, backstage, store, workers) as running:
            found = (await go_on(running.url, in_time))["continued exact"]
            assert (await go_on(running.url, too_late))["continued exact"] == 0
        assert found >= IN_TIME * (0.75 if late or store_was_late(running) else 1)
    turns = Counter(map(len, heard_by(simulator.newoaks)))
    assert turns == {1: 2 * TOO_LATE + 2 * (IN_TIME - found), 2: found}
