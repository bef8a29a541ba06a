"""Where handles are parked: a store for each scheme of a store URL."""

from proxy.ports import ConversationStore
from proxy.stores.memory import MemoryStore


def open_store(url: str, *, max_parked: int) -> ConversationStore:
    """The store a URL names. Raises ValueError for a scheme that is not known."""
    if url == "memory://":
        return MemoryStore(max_parked=max_parked)
    raise ValueError(f"no store is known for {url.partition(':')[0]}://; this version has memory://")
