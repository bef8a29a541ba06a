"""What every store promises; a new one joins by a line in `STORES`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest

from proxy.messages import Handle, Parked
from proxy.ports import ConversationStore
from proxy.stores.memory import MemoryStore


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


STORES: dict[str, Callable[[Clock, int], ConversationStore]] = {
    "memory": lambda clock, max_parked: MemoryStore(max_parked=max_parked, clock=clock)
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[ConversationStore]:
    made = STORES[request.param](clock, 50)
    yield made
    await made.aclose()


def entry(id: str, *labels: str, spoken_at: float = 1000, ttl: float = 100) -> Parked:
    return Parked(id, Handle({"id": id, "n": 7}), labels or ("label",), {"sent": id}, spoken_at, ttl)


async def ids(store: ConversationStore, *labels: str) -> list[str]:
    return [parked.id for parked in await store.find(labels or ["label"])]


async def test_what_is_put_is_found_and_taken_as_it_was(store: ConversationStore) -> None:
    """An entry comes back with everything in it, and only once."""
    await store.put(entry("a"))

    assert list(await store.find(["label"])) == [entry("a")]
    assert await store.take("a") == entry("a")
    assert await store.take("a") is None
    assert await ids(store) == []


async def test_of_many_takers_one_wins(store: ConversationStore) -> None:
    """An entry wanted by many at once is given to one."""
    await store.put(entry("a"))

    taken = await asyncio.gather(*(store.take("a") for _ in range(50)))

    assert [parked for parked in taken if parked] == [entry("a")]


async def test_newest_first(store: ConversationStore) -> None:
    """Entries under one label are found newest first."""
    for at, id in enumerate("abc"):
        await store.put(entry(id, spoken_at=1000 + at))

    assert await ids(store) == ["c", "b", "a"]


async def test_any_label_will_do(store: ConversationStore) -> None:
    """An entry is found once under any of its labels, and gone from all when taken."""
    await store.put(entry("a", "one", "two"))

    assert await ids(store, "two") == await ids(store, "one", "two", "three") == ["a"]

    await store.take("a")

    assert await ids(store, "one", "two") == []


async def test_time_runs_out(store: ConversationStore, clock: Clock) -> None:
    """An entry is gone once its time is over, counted from when the vendor spoke."""
    await store.put(entry("a", spoken_at=950))
    clock.now = 1049.9
    assert await ids(store) == ["a"]

    clock.now = 1050.1

    assert await ids(store) == []
    assert await store.take("a") is None


async def test_an_entry_already_over_is_not_parked(store: ConversationStore) -> None:
    """An entry whose time is over before it is put leaves no trace."""
    await store.put(entry("a", spoken_at=1))

    assert await ids(store) == []


async def test_a_head_holds_at_most_32(store: ConversationStore) -> None:
    """Of many entries under one label the oldest go first."""
    for i in range(40):
        await store.put(entry(str(i), spoken_at=1000 + i))

    assert await ids(store) == [str(i) for i in range(39, 7, -1)]
    assert await store.take("0") is None


async def test_it_is_bounded_in_all(store: ConversationStore) -> None:
    """Over `max_parked` the least recently used entries go first."""
    for i in range(60):
        await store.put(entry(str(i), f"label {i}"))
        await store.find(["label 0"])

    kept = [i for i in range(60) if await store.take(str(i))]

    assert kept == [0, *range(11, 60)]


async def test_time_may_pass_within_a_look_up() -> None:
    """An entry whose time is over in the midst of a look-up is found or not, and nothing breaks."""
    ticks = count(1000)
    store = MemoryStore(max_parked=50, clock=lambda: float(next(ticks)))
    for i in range(10):
        await store.put(entry(str(i), spoken_at=1000, ttl=50 + i))
    for _ in range(60):
        await store.find(["label"])

    assert await ids(store) == []


async def test_putting_back_keeps_the_clock(store: ConversationStore, clock: Clock) -> None:
    """An entry taken and put again ends when it would have ended."""
    await store.put(entry("a"))
    taken = await store.take("a")
    assert taken is not None
    clock.now = 1090
    await store.put(taken)
    clock.now = 1101

    assert await ids(store) == []
