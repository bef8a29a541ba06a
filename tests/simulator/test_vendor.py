"""The door of every vendor: paths, sizes, timing, hang-ups, bounds."""

import asyncio
import json
from time import monotonic

import httpx2
import pytest

from proxy.simulator import Simulator, vendor

from .callers import ASK, KEY, Soon, ask, current, session


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", ASK, 404),
        ("POST", ASK + "/", 404),
        ("POST", "/newoaks/chat/chat/clientask", 404),
        ("POST", "/newoaks/", 404),
    ],
)
async def test_paths(client: httpx2.AsyncClient, simulator: Simulator, method: str, path: str, status: int) -> None:
    """Only the documented methods and paths exist, to the letter."""
    reply = await client.request(method, path, headers=KEY)
    assert reply.status_code == status
    assert len(simulator.newoaks.violations) == 1


async def test_calls(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Calls are recorded in order, with operation, status and headers."""
    await ask(client, "hello")
    assert [(call.method, call.path, call.operation, call.status) for call in simulator.newoaks.calls] == [
        ("POST", "/chat/Chatbot/GetSession", "open", 200),
        ("POST", "/chat/Chat/ClientAsk", "ask", 200),
    ]
    assert simulator.newoaks.calls[1].headers["content-type"] == "application/json"


async def test_bounds(client: httpx2.AsyncClient, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations, calls and violations are bounded, the oldest go."""
    monkeypatch.setattr(vendor, "KEPT", 3)
    handles = [(await current(client)).json()["conv_id"] for _ in range(5)]
    for _ in range(5):
        await current(client, other=1)
    state = simulator.quickchat
    assert list(state.conversations) == handles[2:]
    assert [len(state.calls), len(state.violations)] == [3, 3]


async def test_transcript(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """The transcript holds what was said as JSON values."""
    await ask(client, "say hi")
    (conversation,) = json.loads(json.dumps(simulator.newoaks.transcript()))
    assert (conversation["handle"], [entry["text"] for entry in conversation["entries"]]) == (123456, ["say hi", "hi"])


async def test_reset(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """After a reset nothing is left, scheduled faults included."""
    await current(client)
    await current(client, other=1)
    simulator.quickchat.fail("failed", times=5)
    simulator.quickchat.reset()
    state = simulator.quickchat
    assert (state.transcript(), state.calls, state.violations, state.hung_up) == ([], [], [], 0)
    assert (await current(client)).status_code == 200


async def test_pace(wire: httpx2.AsyncClient, simulator: Simulator) -> None:
    """`latency` passes before the first byte, `gap` between pieces; opening is not held up."""
    simulator.newoaks.latency, simulator.newoaks.gap = 0.1, 0.02
    start = monotonic()
    body = {"sessionID": await session(wire), "content": "say one two three", "stream": True}
    assert monotonic() - start < 0.1
    start, times = monotonic(), []
    async with wire.stream("POST", ASK, json=body, headers=KEY) as reply:
        async for _ in reply.aiter_bytes():
            times.append(monotonic() - start)
    assert times[0] >= 0.1
    assert len(times) == 4
    assert times[-1] - times[0] >= 0.05


async def test_hang_up_while_waiting(wire: httpx2.AsyncClient, simulator: Simulator, soon: Soon) -> None:
    """A caller who leaves during the latency is noticed promptly; the turn had been taken in."""
    simulator.quickchat.latency = 30
    call = asyncio.create_task(current(wire))
    await soon(lambda: simulator.quickchat.conversations)
    call.cancel()
    await soon(lambda: simulator.quickchat.hung_up == 1)
    (conversation,) = simulator.quickchat.conversations.values()
    assert len(conversation.heard) == 1
    assert simulator.quickchat.calls[0].hung_up


async def test_no_hang_up(wire: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A caller who heard everything has not hung up."""
    for _ in range(20):
        await current(wire)
    assert simulator.quickchat.hung_up == 0
