"""Clients that hang up over a real socket: what is stopped, what runs on unheard, what is parked for later."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from proxy.app import create_app
from proxy.config import Config
from proxy.simulator import Vendor
from proxy.telemetry import Receive, Scope, Send
from tests.conftest import Stage, stage
from tests.end_to_end.callers import (
    MODELS,
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
from tests.end_to_end.test_faults import descriptors
from tests.vendors.test_base import events, serving, silent, text, whole

LINES = "one two three four five six seven eight nine ten"
KINDS = [("newoaks", True), ("newoaks", False), ("quickchat", True), ("quickchat-legacy", False)]
GRACE: dict[str, Any] = {"shutdown_grace": 0.2}
CROWD = 200
AT_ONCE = 3.0  # seconds that "within a second" may take on a busy machine
SECONDS = float(os.environ.get("PARLEY_TEST_SECONDS", "2"))  # of cancelling; ten is a fair trial


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


@dataclass(frozen=True)
class Watched:
    """A stage where a whole crowd may be at a vendor at once. `tasks`: how many there are in the proxy."""

    stage: Stage
    tasks: Callable[[], int]


@contextmanager
def watched(**conversation: Any) -> Iterator[Watched]:
    loops: set[asyncio.AbstractEventLoop] = set()

    def noting(config: Config) -> Any:
        inner = create_app(config)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            loops.add(asyncio.get_running_loop())
            await inner(scope, receive, send)

        return app

    room = {"max_connections": CROWD, "max_concurrency": CROWD, "queue": 1}
    models = dict.fromkeys(MODELS, room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.conftest.create_app", noting)
        patch.setattr("proxy.vendors.base.KEEPALIVE", 60)  # what is closed in a test was hung up
        with stage(models=models, conversation=conversation, server=GRACE) as built:
            yield Watched(built, lambda: len({task for loop in loops for task in asyncio.all_tasks(loop)}))


@pytest.fixture
def strict_crowd() -> Iterator[Watched]:
    """Nobody lingers here. The stage is a test's own, as its pools of connections are."""
    with watched(linger=0) as built:
        yield from checked(built)


@pytest.fixture
def patient_crowd() -> Iterator[Watched]:
    """An unheard reply may run on for long."""
    with watched(linger=60) as built:
        yield from checked(built)


def checked(crowd: Watched) -> Iterator[Watched]:
    for _ in fresh(crowd.stage):
        yield crowd


@dataclass(frozen=True)
class Window:
    """When a crowd leaves: what keeps its replies from their end, and what a client has heard until then."""

    model: str
    fault: str
    stream: bool = False
    hears: bool = False


HUNG_UP: Mapping[str, Window] = {
    "newoaks-before-the-first-piece": Window("newoaks", "slow", stream=True),
    "misterturing-mid-stream": Window("misterturing", "stall", stream=True, hears=True),
    "askhandle-plain": Window("askhandle", "slow"),
}
PARKED: Mapping[str, Window] = {
    "quickchat-legacy-before-the-first-piece": Window("quickchat-legacy", "slow", stream=True),
    "newoaks-mid-stream": Window("newoaks", "stall", stream=True, hears=True),
    "quickchat-plain": Window("quickchat", "slow"),
}


@asynccontextmanager
async def house_full(built: Stage, window: Window) -> AsyncIterator[list[dict[str, Any]]]:
    """A crowd whose replies have all begun, or are waited for; at the end all of it leaves at one moment."""
    fault = built.simulator.vendors[window.model].fail(window.fault, times=CROWD)
    requests = [body(window.model, f"say {number} {LINES}", stream=window.stream) for number in range(CROWD)]
    inside, leave = asyncio.Semaphore(0), asyncio.Event()

    async def visit(request: dict[str, Any]) -> None:
        async with calling(built.url, request) as line:
            if window.hears:
                assert b"data:" in await line.first_piece()
            inside.release()
            await leave.wait()
            line.leave()

    visits = [asyncio.create_task(visit(request)) for request in requests]
    try:
        async with asyncio.timeout(20):
            for _ in visits:
                await inside.acquire()
            await soon(lambda: fault.left == 0, 15)
        yield requests
    finally:
        leave.set()
        await asyncio.gather(*visits)


async def served_at_once(built: Stage, model: str) -> None:
    """The next client waits for nobody."""
    began = time.monotonic()
    assert (await call(built.url, body(model, "Hello", stream=False))).status == 200
    assert time.monotonic() - began < AT_ONCE


async def has_room(crowd: Watched, model: str) -> None:
    """No place at the bot is lost: a whole crowd is at the vendor at one moment, and then nobody is."""
    fault = crowd.stage.simulator.vendors[model].fail("slow", times=CROWD)
    visits = [asyncio.create_task(call(crowd.stage.url, body(model, "Hello", stream=False))) for _ in range(CROWD)]
    await soon(lambda: fault.left == 0, 15)
    fault.release()
    assert {answer.status for answer in await asyncio.gather(*visits)} == {200}


@pytest.mark.parametrize("name", HUNG_UP)
async def test_crowd_that_leaves_is_hung_up_for(strict_crowd: Watched, name: str) -> None:
    """Two hundred clients leave at one moment: every vendor call is hung up on at once, and nothing is left of them."""
    window, built = HUNG_UP[name], strict_crowd.stage
    vendor = built.simulator.vendors[window.model]
    await served_at_once(built, window.model)
    tasks, files = strict_crowd.tasks(), descriptors()
    async with house_full(built, window):
        assert vendor.hung_up == 0
        assert strict_crowd.tasks() >= tasks + CROWD
    await soon(lambda: vendor.hung_up == CROWD, AT_ONCE)
    await served_at_once(built, window.model)
    assert (await call(built.url, path="/readyz", method="GET")).status == 200
    await soon(lambda: strict_crowd.tasks() <= tasks, 5)
    await soon(lambda: descriptors() <= files, 5)
    await has_room(strict_crowd, window.model)


@pytest.mark.parametrize("name", PARKED)
async def test_crowd_that_leaves_is_parked(patient_crowd: Watched, name: str) -> None:
    """Two hundred clients leave at one moment: their replies run on, and each finds its own conversation again."""
    window, built = PARKED[name], patient_crowd.stage
    vendor = built.simulator.vendors[window.model]

    async def come_back(number: int, request: dict[str, Any]) -> str:
        back = question(window.model, f"say {number} {LINES}", f"{number} {LINES}", "Thanks", user=request["user"])
        return (await call(built.url, back)).headers["x-parley-conversation"]

    assert (await call(built.url, path="/readyz", method="GET")).status == 200
    tasks = patient_crowd.tasks()
    async with house_full(built, window) as requests:
        pass
    await soon(lambda: patient_crowd.tasks() <= tasks + CROWD, 10)  # the replies alone
    assert vendor.hung_up == 0
    vendor.release()
    await soon(lambda: patient_crowd.tasks() <= tasks, 10)
    hows = await asyncio.gather(*(come_back(number, request) for number, request in enumerate(requests)))
    assert hows == ["continued"] * CROWD
    assert vendor.hung_up == 0
    assert sorted(heard_by(vendor)) == sorted([[f"say {number} {LINES}", "Thanks"] for number in range(CROWD)])
    await soon(lambda: patient_crowd.tasks() <= tasks, 5)


# --- the adapters' own ground, by itself


async def test_cancelled_without_end_no_slot_is_lost() -> None:
    """Calls cancelled for a while at any moment before an answer begins: each hangs up, and the pool is whole after."""
    arrived, answering = asyncio.Semaphore(0), asyncio.Event()
    patient = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if patient:
            arrived.release()
            await answering.wait()
        await (whole if patient else silent)(reader, writer)

    async def fickle(chance: random.Random) -> int:
        times = 0
        while time.monotonic() < ends:
            task = asyncio.create_task(events(bot))
            await asyncio.sleep(chance.choice((0, 0, 0.001, chance.uniform(0, 0.03))))
            for _ in range(chance.choice((1, 1, 2))):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            times += 1
        return times

    async with serving(serve, max_connections=10, connect_timeout=5) as (bot, vendor):
        ends = time.monotonic() + SECONDS
        times = await asyncio.gather(*(fickle(random.Random(seed)) for seed in range(20)))
        assert min(times) > 10
        await soon(lambda: all(task is None or task.done() for task in vendor.handlers), 5)
        patient = True
        calls = [asyncio.create_task(events(bot)) for _ in range(10)]
        for _ in calls:
            await asyncio.wait_for(arrived.acquire(), 3)
        answering.set()
        assert {text(reply) for reply in await asyncio.gather(*calls)} == {"onetwo"}


async def test_cancelled_while_old_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is cancelled while it closes connections that were kept too long leaves none of them open."""
    monkeypatch.setattr("proxy.vendors.base.KEEPALIVE", 0.05)
    async with serving(whole) as (bot, vendor):
        await asyncio.gather(*(events(bot) for _ in range(20)))
        await asyncio.sleep(0.1)
        task = asyncio.create_task(events(bot))
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            await soon(lambda: all(handler is None or handler.done() for handler in vendor.handlers), 1)
        finally:
            for handler in filter(None, vendor.handlers):
                handler.cancel()
