"""Delivery: pauses, pieces, broken connections, and callers who leave."""

import asyncio
from itertools import repeat
from typing import Any

import pytest

from proxy.simulator.answer import Answer, Wait, deliver, json, streamed

JSON_KIND = "application/json"


class Line:
    """An ASGI server's two callables; `leave` hangs up."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]


async def test_delivers_whole() -> None:
    """A JSON answer goes out with its length and an end."""
    line = Line()
    assert await deliver(json({"a": 1}, 201), 0, line.receive, line.send)
    assert line.sent[0]["status"] == 201
    assert (b"content-length", b"7") in line.sent[0]["headers"]
    assert line.body == [b'{"a":1}', b""]
    assert not line.sent[-1]["more_body"]


def test_cuts() -> None:
    """Units go one to a write, or are cut and joined to a number of bytes."""
    units = [b"abc", b"d", b"ef"]
    assert streamed(units, JSON_KIND).steps == units
    assert streamed(units, JSON_KIND, 1).steps == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert streamed(units, JSON_KIND, 4).steps == [b"abcd", b"ef"]


async def test_breaks_off() -> None:
    """A broken answer leaves the body without its end."""
    line = Line()
    assert await deliver(Answer([b"a"], broken=True), 0, line.receive, line.send)
    assert line.body == [b"a"]
    assert line.sent[-1]["more_body"]


@pytest.mark.parametrize(
    "answer",
    [
        Answer([b"a"], before=[Wait()]),
        Answer([b"a", Wait(), b"b"]),
        Answer(repeat(b"a")),
    ],
    ids=["before", "amidst", "endless"],
)
async def test_notices_a_hang_up(answer: Answer) -> None:
    """A caller who leaves ends the delivery at once, whatever it was waiting for."""
    line = Line()
    delivery = asyncio.create_task(deliver(answer, 0, line.receive, line.send))
    await asyncio.sleep(0.01)
    line.leave.set()
    assert not await asyncio.wait_for(delivery, 1)


async def test_waits() -> None:
    """A wait ends by its seconds or by its release."""
    await asyncio.wait_for(Wait(0).over(), 1)
    await asyncio.wait_for(Wait(0.01).over(), 1)
    wait = Wait()
    wait.release()
    await asyncio.wait_for(wait.over(), 1)
