"""Faults: scheduled, used up one per call, and what each does to an answer."""

from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic

import httpx2
import orjson
import pytest

from proxy.simulator import Simulator
from proxy.simulator.faults import KINDS

from .callers import ASK, EVERYBODY, KEY, OPEN, SERIAL, Soon, ask, current, session

STREAM = {"sessionID": 123456, "content": "say one two three four", "stream": True}


@pytest.mark.parametrize(
    ("fault", "status", "heard"),
    [
        ("limited", 429, 0),
        ("unauthorized", 401, 0),
        ("refused", 400, 0),
        ("unavailable", 503, 0),
        ("request-timeout", 408, 0),
        ("forgotten", 400, 0),
        ("failed", 500, 1),
        ("gateway-timeout", 504, 1),
    ],
)
async def test_refusals(client: httpx2.AsyncClient, simulator: Simulator, fault: str, status: int, heard: int) -> None:
    """A refusal comes once, with its status, is no violation, and only some are after the message was taken in."""
    handle = (await current(client)).json()["conv_id"]
    simulator.quickchat.fail(fault)
    assert (await current(client, conv_id=handle)).status_code == status
    assert len(simulator.quickchat.conversations[handle].heard) == 1 + heard
    assert (await current(client)).status_code == 200
    assert simulator.quickchat.violations == []


async def test_retry_after(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A limit tells when to come again, in seconds or as a date."""
    simulator.quickchat.fail("limited", seconds=3)
    assert (await current(client)).headers["retry-after"] == "3"
    simulator.quickchat.fail("limited-date", seconds=60)
    date = parsedate_to_datetime((await current(client)).headers["retry-after"])
    assert date - datetime.now(date.tzinfo) < timedelta(seconds=61)


@pytest.mark.parametrize(
    ("fault", "reply"), [("empty", ""), ("null", None), ("blank", " \n "), ("wrong-type", ["one two three four"])]
)
async def test_replies(client: httpx2.AsyncClient, simulator: Simulator, fault: str, reply: object) -> None:
    """The reply may be empty, missing, white space or of another type."""
    simulator.quickchat.fail(fault)
    assert (await current(client, "say one two three four")).json()["reply"] == reply


@pytest.mark.parametrize("fault", ["garbled", "html", "truncated", "invalid-utf8"])
@pytest.mark.parametrize("stream", [False, True])
async def test_spoilt(client: httpx2.AsyncClient, simulator: Simulator, fault: str, stream: bool) -> None:
    """A spoilt body is HTTP 200 and cannot be read."""
    simulator.newoaks.fail(fault)
    reply = await ask(client, "say one two three four", stream=stream)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html") is (fault == "html")
    with pytest.raises(ValueError, match=r".+"):
        [orjson.loads(line) for line in reply.content.splitlines()]


async def test_huge(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A huge reply has as many megabytes as were asked for."""
    simulator.quickchat.fail("huge", megabytes=1.5)
    assert len((await current(client)).content) == pytest.approx(1_500_000, rel=0.01)


async def test_redirect(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Following a redirect is a violation."""
    simulator.newoaks.fail("redirect", on="open")
    reply = await client.post(OPEN, json=SERIAL, headers=KEY)
    assert (reply.status_code, simulator.newoaks.violations) == (307, [])
    await client.post(OPEN.replace("GetSession", reply.headers["location"]), headers=KEY)
    assert len(simulator.newoaks.violations) == 1


async def test_schedule(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Faults strike the operation they are meant for, as often as said, in order."""
    simulator.newoaks.fail("failed")
    simulator.newoaks.fail("failed", on="open")
    simulator.newoaks.fail("unavailable", times=2, on="open")
    replies = [await client.post(OPEN, json=SERIAL, headers=KEY) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [500, 503, 503, 200]


async def test_spares_what_is_not_in_order(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A call that is refused for itself does not use a fault up."""
    simulator.quickchat.fail("failed")
    assert (await current(client, other=1)).status_code == 422
    assert (await current(client)).status_code == 500


@pytest.mark.parametrize(("fault", "on"), [("flood", "ask"), ("failed", "sing"), ("summary-missing", "ask")])
def test_unknown(simulator: Simulator, fault: str, on: str) -> None:
    """A fault or an operation that the vendor does not know is an error."""
    with pytest.raises(ValueError, match="faults"):
        simulator.quickchat.fail(fault, on=on)


@pytest.mark.parametrize("fault", sorted(KINDS - {"endless", "huge", "slow", "stall", "cut-off"}))
async def test_every_vendor(client: httpx2.AsyncClient, simulator: Simulator, fault: str) -> None:
    """Every vendor takes every common fault, once, and it is nobody's violation."""
    for vendor in simulator.vendors.values():
        vendor.fail(fault)
    for speak in EVERYBODY:
        struck, well = await speak(client, "say Fine"), await speak(client, "say Fine")
        assert struck.content != well.content
        assert "Fine" in well.text
    assert all(vendor.violations == [] for vendor in simulator.vendors.values())


async def test_slow(wire: httpx2.AsyncClient, simulator: Simulator) -> None:
    """`slow` holds the first byte back for so many seconds, after the message was taken in."""
    simulator.quickchat.fail("slow", seconds=0.1)
    start = monotonic()
    assert (await current(wire)).status_code == 200
    assert monotonic() - start >= 0.1


@pytest.mark.parametrize("fault", ["stall", "endless"])
async def test_leaving(wire: httpx2.AsyncClient, simulator: Simulator, fault: str, soon: Soon) -> None:
    """A stalled or endless stream has begun, and its caller's leaving is noticed."""
    await session(wire)
    simulator.newoaks.fail(fault)
    async with wire.stream("POST", ASK, json=STREAM, headers=KEY) as reply:
        async for chunk in reply.aiter_bytes():
            assert chunk.startswith(b'{"content":"one"}\n')
            break
    await soon(lambda: simulator.newoaks.hung_up == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_cut_off(wire: httpx2.AsyncClient, simulator: Simulator, stream: bool) -> None:
    """A cut-off reply is a broken connection, plain and streamed."""
    await session(wire)
    simulator.newoaks.fail("cut-off")
    with pytest.raises(httpx2.RemoteProtocolError):
        await wire.post(ASK, json={**STREAM, "stream": stream}, headers=KEY)
    assert (await wire.post(ASK, json=STREAM, headers=KEY)).status_code == 200


async def test_stall_released(wire: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A stalled stream goes on when released, whole."""
    await session(wire)
    fault = simulator.newoaks.fail("stall")
    async with wire.stream("POST", ASK, json=STREAM, headers=KEY) as reply:
        chunks = reply.aiter_bytes()
        first = await anext(chunks)
        fault.release()
        rest = [chunk async for chunk in chunks]
    assert b'"Answer":"one two three four"' in first + b"".join(rest)
    assert simulator.newoaks.hung_up == 0


@pytest.mark.parametrize(
    ("said", "status"), [("fault limited", 429), ("context\n\nfault failed\n", 500), ("a fault failed", 200)]
)
async def test_a_message_may_ask_for_a_fault(client: httpx2.AsyncClient, said: str, status: int) -> None:
    """A message whose last line names a fault meets it; one that only speaks of it does not."""
    assert (await current(client, text=said)).status_code == status
