"""A store that keeps others waiting, and what is told about it."""

import asyncio
import gc
import logging
from collections.abc import Sequence

import pytest

from proxy.errors import StoreUnavailable
from proxy.messages import Parked
from proxy.stores.memory import MemoryStore
from proxy.stores.punctual import Punctual
from tests.stores.entries import entry, ids


class Moody(MemoryStore):
    """It waits before it answers, or fails."""

    def __init__(self) -> None:
        super().__init__(max_parked=10, clock=lambda: 1000)
        self.wait = 0.0
        self.lost = False

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        await self._mood()
        return await super().find(labels)

    async def put(self, parked: Parked) -> None:
        await self._mood()
        await super().put(parked)

    async def _mood(self) -> None:
        await asyncio.sleep(self.wait)
        if self.lost:
            raise StoreUnavailable("it is gone")


@pytest.fixture
def moody() -> Moody:
    return Moody()


@pytest.fixture
def store(moody: Moody) -> Punctual:
    return Punctual(moody, deadline=0.05)


async def test_a_slow_store_is_not_waited_for(moody: Moody, store: Punctual) -> None:
    """A call that takes too long raises at its deadline, and the next one is served."""
    moody.wait = 30
    started = asyncio.get_running_loop().time()

    with pytest.raises(StoreUnavailable, match=r"within 0\.05 s"):
        await store.find(["label"])

    assert asyncio.get_running_loop().time() - started < 5
    moody.wait = 0
    await store.put(entry("a"))
    assert await ids(store) == ["a"]


async def test_loss_and_return_are_told_once(moody: Moody, store: Punctual, caplog: pytest.LogCaptureFixture) -> None:
    """However many calls fail and succeed, the log has one warning and one line when all is well again."""
    caplog.set_level(logging.INFO, "parley")
    moody.lost = True
    await asyncio.gather(*(store.find(["label"]) for _ in range(10)), return_exceptions=True)
    with pytest.raises(StoreUnavailable, match="it is gone"):
        await store.put(entry("a"))
    moody.lost = False
    for _ in range(3):
        await store.find(["label"])

    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [
        ("WARNING", "store lost"),
        ("INFO", "store back"),
    ]
    assert caplog.records[0].__dict__["parley"] == {"why": "it is gone"}


async def test_an_old_answer_is_no_return(moody: Moody, store: Punctual, caplog: pytest.LogCaptureFixture) -> None:
    """A call that had set out before the store was lost does not count as its return."""
    caplog.set_level(logging.INFO, "parley")
    moody.wait = 0.02
    early = asyncio.create_task(store.find(["label"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    moody.wait, moody.lost = 0, True
    with pytest.raises(StoreUnavailable):
        await store.find(["label"])
    moody.lost = False
    await early

    assert [line.getMessage() for line in caplog.records] == ["store lost"]


async def test_what_a_caller_leaves_is_finished(moody: Moody, store: Punctual) -> None:
    """An entry is parked although the one who parks it is cancelled, and closing waits for that."""
    moody.wait = 0.01
    leaving = asyncio.create_task(store.put(entry("a")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled()
    await asyncio.wait(store._running)

    assert await ids(store) == ["a"]

    leaving = asyncio.create_task(store.put(entry("b")))
    await asyncio.sleep(0)
    leaving.cancel()
    await store.aclose()
    assert not store._running


async def test_a_fault_nobody_waits_for_is_no_news(moody: Moody, store: Punctual) -> None:
    """A call that fails after its caller has left does not come up as an exception that was never seen."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    moody.wait, moody.lost = 0.01, True
    leaving = asyncio.create_task(store.put(entry("a")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await store.aclose()
    del leaving  # it remembers where it was cancelled
    gc.collect()

    assert complaints == []
