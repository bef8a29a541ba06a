"""Entries to park, and a clock for them."""

from proxy.messages import Handle, Parked
from proxy.ports import ConversationStore


class Clock:
    """Seconds that pass when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def entry(id: str, *labels: str, spoken_at: float = 1000, ttl: float = 100) -> Parked:
    return Parked(id, Handle({"id": id, "n": 7}), labels or ("label",), {"sent": id}, spoken_at, ttl)


async def ids(store: ConversationStore, *labels: str) -> list[str]:
    return [parked.id for parked in await store.find(labels or ["label"])]
