"""What is peculiar to the store in memory."""

from itertools import count

import pytest

from proxy.messages import Handle, Parked
from proxy.stores import open_store
from proxy.stores.memory import MemoryStore
from tests.stores.entries import entry, ids


async def test_labels_do_not_outlive_their_entries() -> None:
    """Nothing of an entry is left when it was taken, pushed out, put again or has expired."""
    now = 0.0
    store = MemoryStore(max_parked=10, clock=lambda: now)
    for i in range(100):
        await store.put(Parked(str(i), Handle({}), (f"a{i % 3}", f"b{i}"), {}, now, 5))
    await store.take("99")
    await store.put(Parked("98", Handle({}), ("a1",), {}, now, 5))
    assert len(store) == 9

    now = 6.0
    assert await store.find(["b98"]) == []

    assert store._ids == {}
    assert len(store) == 0


async def test_what_was_looked_at_stays() -> None:
    """Over `max_parked` the least recently used entries go first, and to be found is to be used."""
    store = MemoryStore(max_parked=50, clock=lambda: 1000)
    for i in range(60):
        await store.put(entry(str(i), f"label {i}"))
        await store.find(["label 0"])

    assert [i for i in range(60) if await store.take(str(i))] == [0, *range(11, 60)]


async def test_time_may_pass_within_a_look_up() -> None:
    """An entry whose time is over in the midst of a look-up is found or not, and nothing breaks."""
    ticks = count(1000)
    store = MemoryStore(max_parked=50, clock=lambda: float(next(ticks)))
    for i in range(10):
        await store.put(entry(str(i), spoken_at=1000, ttl=50 + i))
    for _ in range(60):
        await store.find(["label"])

    assert await ids(store) == []


def test_a_store_is_opened_by_its_url() -> None:
    """`memory://` opens a store in memory."""
    assert isinstance(open_store("memory://", max_parked=1), MemoryStore)


@pytest.mark.parametrize("url", ["postgres://user:hunter2@host/db", "hunter2", "", "memory://x", "sqlite3:///a.db"])
def test_an_unknown_url_is_refused(url: str) -> None:
    """A URL of another kind is refused with the three that there are, and without its password."""
    with pytest.raises(ValueError, match=r"memory://, sqlite:///file\.db and redis://host:port/db") as fault:
        open_store(url, max_parked=1)

    assert "hunter2" not in str(fault.value)
