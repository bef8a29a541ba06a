"""The way to a bot: turns at a time, the line, and the rest of one that keeps failing."""

import asyncio
from typing import Any

import pytest

from proxy.admission import Admission
from proxy.errors import (
    BotResting,
    InvalidRequest,
    NoAnswer,
    ProxyError,
    RateLimited,
    VendorFailed,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Message
from tests.scripted import Cue, House, user


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(**more: Any) -> Admission:
    return Admission("bot", **{"concurrency": 2, "queue": 1, "failures": 3, "pause": 10, **more})


async def turn(way: Admission, fault: BaseException | None = None, hold: asyncio.Event | None = None) -> None:
    async with way.entered():
        if hold is not None:
            await hold.wait()
        if fault is not None:
            raise fault


async def failed(way: Admission, *faults: BaseException) -> None:
    for fault in faults:
        with pytest.raises(type(fault)):
            await turn(way, fault)


async def test_turns_wait_in_line() -> None:
    """Over `max_concurrency` turns wait, over `queue` they are told that the bot is busy."""
    way, hold = admission(), asyncio.Event()
    running = [asyncio.create_task(turn(way, hold=hold)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited) as refused:
        await turn(way)

    assert (refused.value.code, refused.value.retry_after) == ("bot_busy", 1)
    hold.set()
    await asyncio.gather(*running)
    await turn(way)


async def test_without_a_queue_nobody_waits() -> None:
    """With `queue: 0` a bot that is full is busy at once."""
    way, hold = admission(concurrency=1, queue=0), asyncio.Event()
    running = asyncio.create_task(turn(way, hold=hold))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await turn(way)
    hold.set()
    await running
    await turn(way)


async def test_who_leaves_the_line_makes_room() -> None:
    """A turn that is cancelled while it waits, or while it speaks, leaves its place to the next."""
    way, hold = admission(concurrency=1), asyncio.Event()
    speaking, waiting = (asyncio.create_task(turn(way, hold=hold)) for _ in range(2))
    await asyncio.sleep(0)
    for task in (waiting, speaking):
        task.cancel()
    await asyncio.wait([speaking, waiting])

    await asyncio.gather(turn(way), turn(way))


@pytest.mark.parametrize("fault", [VendorUnavailable("x"), VendorFailed("x"), VendorTimeout("x")])
async def test_a_bot_that_keeps_failing_is_left_alone(fault: ProxyError, caplog: pytest.LogCaptureFixture) -> None:
    """After so many faults in a row a bot is not asked, then one turn tries it; that is logged, and when it is back."""
    caplog.set_level("INFO", "parley")
    clock = Clock()
    way = admission(clock=clock)
    await failed(way, fault, fault, fault)
    with pytest.raises(BotResting) as refused:
        await turn(way)
    assert refused.value.retry_after == 10

    clock.now += 10
    hold = asyncio.Event()
    trying = asyncio.create_task(turn(way, hold=hold))
    await asyncio.sleep(0)
    with pytest.raises(BotResting):
        await turn(way)
    hold.set()
    await trying
    await turn(way)
    assert [record.message for record in caplog.records] == [
        "a bot keeps failing and is left alone",
        "a bot answers again",
    ]


async def test_who_waits_in_line_is_refused_when_the_bot_closes() -> None:
    """A turn that stood in line while the bot began to rest is refused, and its place is free for the next."""
    clock = Clock()
    way = admission(clock=clock, concurrency=1, failures=1)
    hold = asyncio.Event()
    failing = asyncio.create_task(turn(way, VendorFailed("x"), hold))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(turn(way))
    await asyncio.sleep(0)
    hold.set()
    ended = await asyncio.gather(failing, waiting, return_exceptions=True)
    assert [type(end) for end in ended] == [VendorFailed, BotResting]

    clock.now += 10
    await asyncio.wait_for(turn(way), 1)
    assert (way.load.running, way.load.waiting, way.load.resting) == (0, 0, False)


async def test_a_trial_that_fails_closes_again() -> None:
    """When the one turn that tries it fails too, the bot is left alone once more; one that leaves lets another try."""
    clock = Clock()
    way = admission(clock=clock)
    await failed(way, *[VendorFailed("x")] * 3)
    clock.now += 10
    await failed(way, VendorFailed("x"))
    with pytest.raises(BotResting):
        await turn(way)

    clock.now += 10
    trying = asyncio.create_task(turn(way, hold=asyncio.Event()))
    await asyncio.sleep(0)
    trying.cancel()
    await asyncio.wait([trying])
    await turn(way)


@pytest.mark.parametrize("between", [None, NoAnswer("x")])
async def test_only_faults_in_a_row_count(between: ProxyError | None) -> None:
    """A reply, and an answer that has something against one message only, begin the count anew."""
    way = admission()
    await failed(way, VendorFailed("x"), VendorFailed("x"))
    if between is None:
        await turn(way)
    else:
        await failed(way, between)
    await failed(way, VendorFailed("x"), VendorFailed("x"))
    await turn(way)


async def test_turns_of_one_request_try_a_bot_together() -> None:
    """While one turn tries a bot that was left alone, others of the same request are let in beside it."""
    clock = Clock()
    way = admission(clock=clock)
    await failed(way, *[VendorFailed("x")] * 3)
    clock.now += 10
    async with way.entered(), way.entered(sibling=True):
        with pytest.raises(BotResting):
            await turn(way)
    await turn(way)


async def test_turns_under_way_close_a_bot_once(caplog: pytest.LogCaptureFixture) -> None:
    """Faults of turns that had begun before a bot was left alone neither prolong that nor are logged again."""
    clock = Clock()
    way, hold = admission(clock=clock, concurrency=9), asyncio.Event()
    late = [asyncio.create_task(turn(way, VendorFailed("x"), hold)) for _ in range(5)]
    await asyncio.sleep(0)
    await failed(way, *[VendorFailed("x")] * 3)
    clock.now += 9
    hold.set()
    await asyncio.wait(late)
    assert all(isinstance(task.exception(), VendorFailed) for task in late)
    clock.now += 1

    await turn(way)
    assert [record.message for record in caplog.records] == ["a bot keeps failing and is left alone"]


async def test_what_never_reached_the_bot_does_not_count() -> None:
    """A request that is refused before the bot was asked says nothing of the bot."""
    way = admission()
    await failed(way, VendorFailed("x"), VendorFailed("x"), InvalidRequest("x"), VendorFailed("x"))
    with pytest.raises(BotResting):
        await turn(way)


async def test_the_breaker_may_be_off() -> None:
    """With `failures: 0` a bot is asked however often it fails."""
    await failed(admission(failures=0), *[VendorFailed("x")] * 9)


async def test_a_resting_bot_costs_no_conversation() -> None:
    """While a bot is left alone, chats keep their conversations and go on in them afterwards."""
    house, chat = House(breaker={"failures": 1, "pause": 0.05}), list[Message]()
    await house.said("a", chat)
    house.bot.cues.append(Cue(fault=VendorFailed("x")))
    with pytest.raises(VendorFailed):
        await house.told(user("other"))
    with pytest.raises(BotResting):
        await house.told(*chat, user("b"))
    await asyncio.sleep(0.06)

    assert await house.said("b", chat) == "continued exact"


async def test_a_full_bot_is_busy() -> None:
    """A bot that answers as many turns as it may takes no more, and its conversations wait."""
    house, chat = House(max_concurrency=1, queue=0), list[Message]()
    await house.said("a", chat)
    gate = asyncio.Event()
    house.bot.cues.append(Cue(pieces=("slow ", "one"), wait=gate))
    slow = asyncio.create_task(house.told(user("slow")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await house.told(*chat, user("b"))
    gate.set()
    await slow

    assert await house.said("b", chat) == "continued exact"
