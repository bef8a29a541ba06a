"""Conversations that wait: fills a store through its own `put`, since a million turns through the door take too long.

`python -m tests.bench.parked COUNT serve …` is `parley serve …` whose memory store holds COUNT from the start.
"""

import asyncio
import sys
import time
from secrets import token_hex

import proxy.app
from proxy.cli import main
from proxy.messages import Handle, Parked
from proxy.ports import ConversationStore
from proxy.stores import open_store
from proxy.stores.redis import RedisStore
from proxy.stores.sqlite import SqliteStore

ROOM = 2_000_000  # `max_parked` for all these runs: nothing is to be thrown out
AT_ONCE = 64  # puts under way: SQLite gathers as many in one transaction


async def fill(store: ConversationStore, count: int) -> None:
    """Park so many, with ids, labels and marks of the size that a turn leaves."""
    numbers = iter(range(count))

    async def park() -> None:
        for number in numbers:
            head = token_hex(16)
            labels = [head, f"{head}+{token_hex(4)}"]
            marks = {"reply": f"{number} " + "words of a reply " * 17}
            await store.put(
                Parked(token_hex(16), Handle({"session": number}), labels, marks, spoken_at=time.time(), ttl=7200)
            )

    await asyncio.gather(*(park() for _ in range(AT_ONCE)))


async def fill_at(url: str, count: int) -> None:
    """The same for the store of a URL, which others will open; it has all the time it wants."""
    kind = RedisStore if url.startswith("redis") else SqliteStore
    store = kind(url, max_parked=ROOM)
    await fill(store, count)
    await store.aclose()


if __name__ == "__main__":
    COUNT = int(sys.argv[1])

    def _filled(url: str, *, max_parked: int) -> ConversationStore:
        store = open_store(url, max_parked=max_parked)
        asyncio.run(fill(store, COUNT))
        return store

    setattr(proxy.app, "open_store", _filled)  # noqa: B010 - what the application opens its store with
    main(sys.argv[2:])
