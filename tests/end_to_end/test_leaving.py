"""Clients that hang up over a real socket: what is stopped, what runs on unheard, what is parked for later."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from proxy.simulator import Simulator, Vendor
from tests.conftest import Stage, stage
from tests.end_to_end.callers import (
    Chat,
    async_plain,
    call,
    calling,
    fresh,
    heard_by,
    question,
    request_bytes,
    soon,
    sync_client,
    sync_stream,
)

LINES = "one two three four five six seven eight nine ten"
KINDS = [("newoaks", True), ("newoaks", False), ("quickchat", True), ("quickchat-legacy", False)]
GRACE: dict[str, Any] = {"shutdown_grace": 0.2}


@pytest.fixture(scope="module")
def strict_stage() -> Iterator[Stage]:
    """Nobody lingers here."""
    with stage(conversation={"linger": 0}, server=GRACE) as built:
        yield built


@pytest.fixture(scope="module")
def patient_stage() -> Iterator[Stage]:
    """An unheard reply may run on for long."""
    with stage(conversation={"linger": 20}, server=GRACE) as built:
        yield built


@pytest.fixture(scope="module")
def hasty_stage() -> Iterator[Stage]:
    """An unheard reply may run on, but not for long."""
    with stage(conversation={"linger": 0.3}, server=GRACE) as built:
        yield built


@pytest.fixture
def strict(strict_stage: Stage) -> Iterator[Stage]:
    yield from fresh(strict_stage)


@pytest.fixture
def patient(patient_stage: Stage) -> Iterator[Stage]:
    yield from fresh(patient_stage)


@pytest.fixture
def hasty(hasty_stage: Stage) -> Iterator[Stage]:
    yield from fresh(hasty_stage)


def asked(vendor: Vendor) -> int:
    """How many questions have reached a vendor."""
    return sum(call.operation == "ask" for call in vendor.calls)


def healed(simulator: Simulator) -> None:
    for vendor in simulator.vendors.values():
        vendor.latency = vendor.gap = 0


def body(model: str, *texts: str, stream: bool = True) -> dict[str, Any]:
    """A request of somebody who has never asked before."""
    return question(model, *texts, stream=stream, user=f"person-{uuid4().hex}")


# --- linger: 0


@pytest.mark.parametrize(("model", "stream"), KINDS)
async def test_vendor_is_hung_up_on_before_the_first_token(strict: Stage, model: str, stream: bool) -> None:
    """Without linger, a client that leaves before the first token takes the vendor's call with it, within a second."""
    vendor = strict.simulator.vendors[model]
    vendor.fail("slow")
    async with calling(strict.url, body(model, "Hello", stream=stream)) as line:
        await soon(lambda: asked(vendor) == 1)
        line.leave()
    await soon(lambda: vendor.hung_up == 1, 1)


async def test_vendor_is_hung_up_on_mid_stream(strict: Stage) -> None:
    """Without linger, a client that leaves mid-stream takes the vendor's call with it, within a second."""
    vendor = strict.simulator.newoaks
    vendor.gap = 0.05
    async with calling(strict.url, body("newoaks", "say " + "word " * 400)) as line:
        assert b"data:" in await line.first_piece()
        line.leave()
    await soon(lambda: vendor.hung_up == 1, 1)


async def test_vendor_is_hung_up_on_while_opening(strict: Stage) -> None:
    """Without linger, a client that leaves while a session is being opened: no question is ever sent."""
    vendor = strict.simulator.newoaks
    vendor.fail("slow", on="open")
    async with calling(strict.url, body("newoaks", "Hello")) as line:
        await soon(lambda: len(vendor.calls) == 1)
        line.leave()
    await soon(lambda: vendor.hung_up == 1, 1)
    await asyncio.sleep(0.1)
    assert asked(vendor) == 0


async def test_dropped_conversation_is_not_continued(strict: Stage) -> None:
    """What was cut off at the vendor is not continued: the next turn is rebuilt, and no turn is said twice."""
    vendor = strict.simulator.newoaks
    request = body("newoaks", "Hello")
    first = (await call(strict.url, {**request, "stream": False})).json["choices"][0]["message"]["content"]
    turn = question("newoaks", "Hello", first, "say " + "word " * 400, stream=True, user=request["user"])
    vendor.gap = 0.05
    async with calling(strict.url, turn) as line:
        await line.first_piece()
        line.leave()
    await soon(lambda: vendor.hung_up == 1, 1)
    vendor.gap = 0
    again = await call(strict.url, {**turn, "stream": False})
    assert again.headers["x-parley-conversation"] == "rebuilt"
    assert [len(texts) for texts in heard_by(vendor)] == [2, 1]


# --- a long linger


@pytest.mark.parametrize(("model", "stream"), KINDS)
async def test_unheard_reply_is_parked(patient: Stage, model: str, stream: bool) -> None:
    """A client that left early and comes back with the whole reply continues the conversation that ran on for it."""
    vendor = patient.simulator.vendors[model]
    fault = vendor.fail("slow")
    request = body(model, f"say {LINES}", stream=stream)
    async with calling(patient.url, request) as line:
        await soon(lambda: asked(vendor) == 1)
        line.leave()
    await asyncio.sleep(0.05)
    assert vendor.hung_up == 0
    fault.release()
    await asyncio.sleep(0.25)
    back = question(model, f"say {LINES}", LINES, "Thanks", user=request["user"])
    assert (await call(patient.url, back)).headers["x-parley-conversation"] == "continued"
    assert heard_by(vendor) == [[f"say {LINES}", "Thanks"]]
    assert vendor.hung_up == 0


async def test_half_heard_stream_is_parked(patient: Stage) -> None:
    """A stream that its client left in the midst runs to its end and is parked under the whole reply."""
    vendor = patient.simulator.newoaks
    vendor.gap = 0.02
    request = body("newoaks", f"say {LINES}")
    async with calling(patient.url, request) as line:
        await line.first_piece()
        line.leave()
    await asyncio.sleep(0.6)
    back = question("newoaks", f"say {LINES}", LINES, "Thanks", user=request["user"])
    assert (await call(patient.url, back)).headers["x-parley-conversation"] == "continued"
    assert vendor.hung_up == 0
    assert heard_by(vendor) == [[f"say {LINES}", "Thanks"]]


async def test_turn_on_a_running_reply_gets_its_own_conversation(patient: Stage) -> None:
    """Whoever comes back before the unheard reply has ended is rebuilt; the running conversation is not touched."""
    vendor = patient.simulator.newoaks
    fault = vendor.fail("slow")
    request = body("newoaks", "Hello")
    async with calling(patient.url, request) as line:
        await soon(lambda: asked(vendor) == 1)
        line.leave()
    back = question("newoaks", "Hello", "Hello & welcome", "Are you there?", user=request["user"])
    answer = await call(patient.url, back)
    assert answer.headers["x-parley-conversation"] == "rebuilt"
    fault.release()
    first, second = heard_by(vendor)
    assert first == ["Hello"]
    assert len(second) == 1


# --- a short linger


async def test_linger_that_is_too_short_drops(hasty: Stage) -> None:
    """A reply that does not end within `linger` is stopped at the vendor, not before, and its handle is dropped."""
    vendor = hasty.simulator.newoaks
    vendor.fail("slow")
    request = body("newoaks", f"say {LINES}")
    async with calling(hasty.url, request) as line:
        await soon(lambda: asked(vendor) == 1)
        line.leave()
    await asyncio.sleep(0.15)
    assert vendor.hung_up == 0
    await soon(lambda: vendor.hung_up == 1, 1)
    back = question("newoaks", f"say {LINES}", LINES, "Thanks", user=request["user"])
    assert (await call(hasty.url, back)).headers["x-parley-conversation"] == "rebuilt"
    assert [len(texts) for texts in heard_by(vendor)] == [1, 1]


async def test_linger_runs_from_the_leaving(hasty: Stage) -> None:
    """A client that stays is not subject to `linger`, however long the reply takes."""
    vendor = hasty.simulator.newoaks
    vendor.latency = 0.6
    answer = await call(hasty.url, body("newoaks", "Hello"))
    assert answer.data[-1] == "[DONE]"
    assert vendor.hung_up == 0


# --- leaving at the end


@pytest.mark.parametrize("times", [15])
async def test_leaving_right_after_done_continues(strict: Stage, times: int) -> None:
    """A client that hangs up the moment it has read `[DONE]` is continued in its next turn, every time."""
    vendor = strict.simulator.newoaks
    request = body("newoaks", "Turn 0")
    messages = request["messages"]
    for number in range(1, times):
        async with asyncio.timeout(5), calling(strict.url, request) as line:
            answer = await line.begin()
            async for piece in line.pieces(answer):
                answer.pieces.append(piece)
                if b"[DONE]" in piece:
                    line.leave()
                    break
        assert answer.headers["x-parley-conversation"] == ("opened" if number == 1 else "continued")
        deltas = [chunk["choices"][0]["delta"] for chunk in answer.data[:-1]]
        reply = "".join(delta.get("content", "") for delta in deltas)
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": f"Turn {number}"}]
    assert heard_by(vendor) == [[f"Turn {number}" for number in range(times - 1)]]
    assert vendor.hung_up == 0


async def test_sync_sdk_closes_after_done_and_continues(strict: Stage) -> None:
    """The sync SDK, left in the midst of iterating past the finish, continues its chat in the next turn."""
    chat = Chat(strict.url, "newoaks", sync_stream, more={"user": uuid4().hex})
    hows = [(await chat.say(f"Turn {number}")).how for number in range(6)]
    assert hows == ["opened"] + ["continued exact"] * 5

    def half() -> str:
        with sync_client(strict.url) as client:
            messages: Any = [*chat.messages, {"role": "user", "content": "say the last words"}]
            stream = client.chat.completions.create(
                model="newoaks", messages=messages, stream=True, user=str(chat.more["user"])
            )
            pieces = []
            for chunk in stream:
                if chunk.choices[0].finish_reason:
                    break  # as many programs do: [DONE] is never read
                pieces.append(chunk.choices[0].delta.content or "")
            stream.close()
            return "".join(pieces)

    reply = await asyncio.to_thread(half)
    chat.messages += [{"role": "user", "content": "say the last words"}, {"role": "assistant", "content": reply}]
    chat.way = async_plain
    assert (await chat.say("And now?")).how == "continued exact"
    assert len(heard_by(strict.simulator.newoaks)) == 1


async def test_half_sent_request_harms_nobody(strict: Stage) -> None:
    """A client that leaves in the midst of its own request body reaches no vendor, and the proxy serves the next."""
    half = request_bytes("/v1/chat/completions", b"{" + b" " * 999)[:-500]
    host, port = strict.url.removeprefix("http://").split(":")
    for _ in range(5):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(half)
        await writer.drain()
        writer.transport.abort()
    assert (await call(strict.url, body("newoaks", "Hello"))).status == 200
    assert asked(strict.simulator.newoaks) == 1


# --- crowds


@pytest.mark.parametrize("when", ["before", "midst"])
async def test_hundred_clients_leaving_at_once(strict: Stage, when: str) -> None:
    """A hundred clients leave at one moment: every vendor call is hung up on, and the next client is served at once."""
    vendor = strict.simulator.newoaks
    if when == "before":
        vendor.latency = 30
    else:
        vendor.gap = 0.2

    async def visit(left: asyncio.Event) -> None:
        async with calling(strict.url, body("newoaks", "say " + "word " * 200)) as line:
            if when == "midst":
                await line.first_piece()
            ready.release()
            await left.wait()
            line.leave()

    left, ready = asyncio.Event(), asyncio.Semaphore(0)
    visits = [asyncio.create_task(visit(left)) for _ in range(100)]
    async with asyncio.timeout(15):
        for _ in visits:
            await ready.acquire()
        await soon(lambda: asked(vendor) == 100, 10)
        left.set()
        await asyncio.gather(*visits)
    await soon(lambda: vendor.hung_up == 100, 3)
    healed(strict.simulator)
    async with asyncio.timeout(2):
        assert (await call(strict.url, body("newoaks", "Hello"))).status == 200
    assert (await call(strict.url, path="/readyz", method="GET")).status == 200


async def test_hundred_unheard_replies_are_parked(patient: Stage) -> None:
    """A hundred clients leave at one moment: their replies run on, and each client finds its own conversation again."""
    vendor = patient.simulator.newoaks
    fault = vendor.fail("slow", times=100)
    requests = [body("newoaks", f"say {number} {LINES}") for number in range(100)]
    left = asyncio.Event()

    async def visit(request: dict[str, Any]) -> None:
        async with calling(patient.url, request) as line:
            await left.wait()
            line.leave()

    visits = [asyncio.create_task(visit(request)) for request in requests]
    await soon(lambda: asked(vendor) == 100, 10)
    left.set()
    await asyncio.gather(*visits)
    assert vendor.hung_up == 0
    fault.release()
    await asyncio.sleep(1)

    async def come_back(number: int, request: dict[str, Any]) -> str:
        back = question("newoaks", f"say {number} {LINES}", f"{number} {LINES}", "Thanks", user=request["user"])
        return (await call(patient.url, back)).headers["x-parley-conversation"]

    hows = await asyncio.gather(*(come_back(number, request) for number, request in enumerate(requests)))
    assert hows == ["continued"] * 100
    assert sorted(heard_by(vendor)) == sorted([[f"say {number} {LINES}", "Thanks"] for number in range(100)])
