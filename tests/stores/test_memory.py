"""What is peculiar to the store in memory."""

from proxy.messages import Handle, Parked
from proxy.stores import open_store
from proxy.stores.memory import MemoryStore


async def test_labels_do_not_outlive_their_entries() -> None:
    """Nothing of an entry is left when it was taken, pushed out or has expired."""
    now = 0.0
    store = MemoryStore(max_parked=10, clock=lambda: now)
    for i in range(100):
        await store.put(Parked(str(i), Handle({}), (f"a{i % 3}", f"b{i}"), {}, now, 5))
    await store.take("99")
    assert len(store) == 9

    now = 6.0
    assert await store.find(["b98"]) == []

    assert store._ids == {}
    assert len(store) == 0


def test_a_store_is_opened_by_its_url() -> None:
    """`memory://` opens a store in memory."""
    assert isinstance(open_store("memory://", max_parked=1), MemoryStore)
