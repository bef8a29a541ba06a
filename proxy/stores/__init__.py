"""Where handles are parked: a store for each scheme of a store URL."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.ports import ConversationStore
from proxy.stores.memory import MemoryStore
from proxy.stores.punctual import Punctual

if TYPE_CHECKING:
    from proxy.stores.rates import Rates


def open_store(url: str, *, max_parked: int, clock: Callable[[], float] = time.time) -> ConversationStore:
    """The store a URL names, holding at most `max_parked` entries; `clock` gives seconds since the epoch.

    Raises ValueError, with what to do about it, for a URL that is not understood and a file that cannot be used.
    Nobody need be there at the other end of a Redis URL yet. Drivers are imported only for those who ask for them.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if url == "memory://":
        return MemoryStore(max_parked=max_parked, clock=clock)
    if scheme == "sqlite":
        from proxy.stores.sqlite import SqliteStore  # noqa: PLC0415 - some Pythons are built without it

        return Punctual(SqliteStore(url, max_parked=max_parked, clock=clock))
    if scheme in ("redis", "rediss"):
        try:
            from proxy.stores.redis import RedisStore  # noqa: PLC0415 - it is an extra
        except ModuleNotFoundError:
            raise ValueError(f"{scheme}:// needs a package more: pip install 'parley-proxy[redis]'") from None
        return Punctual(RedisStore(url, max_parked=max_parked, clock=clock))
    raise ValueError(
        f"no store is known for {scheme or 'this'}://; there are memory://, sqlite:///file.db and redis://host:port/db"
    )


def open_rates(url: str, *, share: int) -> "Rates":
    """The counters of requests a minute that go with a store: shared by all who share Redis, else by `share`."""
    from proxy.stores.rates import Rates  # noqa: PLC0415 - takes its time, and few limit their keys

    if url.partition("://")[0] not in ("redis", "rediss"):
        return Rates(share=share)
    from proxy.stores.redis import connect  # noqa: PLC0415 - it is an extra

    client, prefix = connect(url)
    return Rates(client, prefix=prefix, share=share)
