"""Deadlines that are put off: when they strike, and what they leave to others."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from math import inf
from typing import ParamSpec
from weakref import ReferenceType, ref

import pytest

from proxy.patience import Alarm, Patience
from tests.continuity.timeless import TimelessLoop

SOON, LATER, LONG = 1.0, 4.0, 50.0

P = ParamSpec("P")


def in_no_time(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """On a loop whose clock goes from timer to timer."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        loop = TimelessLoop()
        task = loop.create_task(test(*args, **kwargs))
        loop.settle(1000)
        loop.finish()
        task.result()

    return run


def after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def struck() -> tuple[Alarm, list[float]]:
    times: list[float] = []
    loop = asyncio.get_running_loop()
    return Alarm(lambda: times.append(loop.time())), times


@in_no_time
async def test_an_alarm_strikes_once_when_it_was_last_set_to() -> None:
    """Put off, it strikes at the later moment only; put forward, at the earlier one."""
    for first, last in ((SOON, LATER), (LONG, LATER)):
        alarm, times = struck()
        alarm.set(after(first))
        alarm.set(due := after(last))
        await asyncio.sleep(LATER + SOON)
        assert times == pytest.approx([due])


@in_no_time
async def test_an_alarm_that_is_unset_is_silent_until_it_is_set_again() -> None:
    """What it was set to before counts no more."""
    alarm, times = struck()
    alarm.set(after(SOON))
    alarm.set(inf)
    await asyncio.sleep(2 * SOON)
    assert not times

    alarm.set(after(SOON))
    await asyncio.sleep(2 * SOON)
    assert len(times) == 1


@pytest.mark.parametrize("end", [Alarm.end, lambda alarm: (alarm.set(inf), alarm.end())])
@in_no_time
async def test_an_alarm_that_has_ended_never_strikes(end: Callable[[Alarm], object]) -> None:
    """Its timer is gone, whatever it was set to."""
    alarm, times = struck()
    alarm.set(after(SOON))
    end(alarm)
    await asyncio.sleep(2 * SOON)
    assert not times


@in_no_time
async def test_each_wait_has_its_own_deadline() -> None:
    """Waits that end in time end well, the one that does not times out, and another may follow."""
    patience = Patience()
    for _ in range(5):
        with patience.until(after(LATER)):
            await asyncio.sleep(SOON)
    with pytest.raises(TimeoutError), patience.until(after(SOON)):
        await asyncio.sleep(LONG)
    with patience.until(after(LATER)):
        await asyncio.sleep(SOON)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@in_no_time
async def test_a_deadline_that_is_over_strikes_at_once() -> None:
    """A wait that may not last at all times out, unless it need not wait."""
    patience = Patience()
    with patience.until(after(-LONG)):
        pass
    with pytest.raises(TimeoutError), patience.until(after(-LONG)):
        await asyncio.sleep(LONG)


@in_no_time
async def test_nothing_strikes_between_waits() -> None:
    """What is done between two waits may take as long as it likes."""
    patience = Patience()
    with patience.until(after(SOON)):
        pass
    await asyncio.sleep(2 * SOON)
    with patience.until(after(SOON)):
        pass


@pytest.mark.parametrize("struck_too", [False, True])
@in_no_time
async def test_a_cancellation_stays_one(struck_too: bool) -> None:
    """A wait that another cancels is cancelled, not timed out, though its deadline strikes at the same time."""

    async def wait() -> None:
        with Patience().until(due):
            await asyncio.sleep(LONG)

    due = after(SOON if struck_too else LONG)
    task = asyncio.create_task(wait())
    asyncio.get_running_loop().call_at(due if struck_too else after(SOON), task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@in_no_time
async def test_the_wait_that_is_struck_is_that_of_the_task_that_waits() -> None:
    """Made in one task and used in another, it times out in the other and leaves the first alone."""
    patience = Patience()

    async def wait() -> str:
        with pytest.raises(TimeoutError), patience.until(after(SOON)):
            await asyncio.sleep(LONG)
        return "timed out"

    assert await asyncio.create_task(wait()) == "timed out"


def test_what_has_ended_is_gone_without_the_collector() -> None:
    """An alarm lets go of its owner, who would otherwise be found by the collector only, with all it holds."""

    class Owner:
        def __init__(self) -> None:
            self.alarm = Alarm(self.strike)

        def strike(self) -> None:
            raise AssertionError

    async def use() -> Sequence[ReferenceType[object]]:
        owner, patience = Owner(), Patience()
        owner.alarm.set(after(LONG))
        with patience.until(after(LONG)):
            pass
        owner.alarm.end()
        patience.end()
        return ref(owner), ref(patience)

    gc.disable()
    try:
        assert [gone() for gone in asyncio.run(use())] == [None, None]
    finally:
        gc.enable()


@in_no_time
async def test_it_nests_with_asyncios_own() -> None:
    """Of two deadlines, one around the other, each tells its own."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON) as outer:
            with Patience().until(after(LONG)):
                await asyncio.sleep(LONG)
    assert outer.expired()

    async with asyncio.timeout(LONG) as outer:
        with pytest.raises(TimeoutError), Patience().until(after(SOON)):
            await asyncio.sleep(LONG)
    assert not outer.expired()
