"""The desk: faults and transcripts from outside."""

from typing import Any

import httpx2
import pytest

from proxy.simulator import Simulator

from .callers import ask, current


async def test_faults(client: httpx2.AsyncClient) -> None:
    """A fault can be ordered over HTTP."""
    order = {"vendor": "quickchat", "fault": "limited", "times": 2, "on": "ask", "seconds": 9}
    assert (await client.post("/_sim/faults", json=order)).status_code == 200
    assert [(await current(client)).status_code for _ in range(3)] == [429, 429, 200]


@pytest.mark.parametrize(
    "order",
    [{}, [], {"vendor": "x", "fault": "failed"}, {"vendor": "newoaks", "fault": "x"}, {"vendor": "newoaks", "fool": 1}],
)
async def test_nonsense(client: httpx2.AsyncClient, order: Any) -> None:
    """An order that makes no sense is refused with a reason."""
    reply = await client.post("/_sim/faults", json=order)
    assert reply.status_code == 400
    assert reply.json()["error"]


async def test_transcript(client: httpx2.AsyncClient) -> None:
    """The transcript of one vendor or of all can be read as JSON."""
    await ask(client, "say hi")
    one = (await client.get("/_sim/transcript", params={"vendor": "newoaks"})).json()
    (conversation,) = one["conversations"]
    assert (conversation["handle"], [entry["text"] for entry in conversation["entries"]]) == (123456, ["say hi", "hi"])
    assert [call["status"] for call in one["calls"]] == [200, 200]
    assert one["violations"] == []
    everybody = (await client.get("/_sim/transcript")).json()
    assert everybody["newoaks"] == one
    assert (await client.get("/_sim/transcript", params={"vendor": "x"})).status_code == 400


async def test_forget_and_reset(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Conversations can be dropped, waits released and everything reset from outside."""
    await ask(client, "hello")
    await client.post("/_sim/forget", json={"vendor": "newoaks"})
    assert simulator.newoaks.conversations[123456].forgotten
    fault = simulator.newoaks.fail("slow")
    await client.post("/_sim/release", json={"vendor": "newoaks"})
    assert fault.wait.released
    await client.post("/_sim/reset", json={"vendor": "newoaks"})
    assert simulator.newoaks.conversations == {}
