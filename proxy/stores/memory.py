"""Parked handles in this process: cachetools with an expiry per entry, bounded in all and per head."""

import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from secrets import token_bytes

from cachetools import TLRUCache

from proxy.messages import Parked
from proxy.ports import FOUND, PER_HEAD


class MemoryStore:
    """A ConversationStore that lives and dies with the process. The least recently used entries go first."""

    def __init__(self, *, max_parked: int, clock: Callable[[], float] = time.time) -> None:
        self._max_parked = max_parked
        self._entries: TLRUCache[str, Parked] = TLRUCache(max_parked + 1, _expiry, timer=clock)
        self._ids: dict[str, dict[str, None]] = {}  # label -> ids, oldest first
        self._secret = token_bytes(32)

    def __len__(self) -> int:
        return len(self._entries)

    async def secret(self) -> bytes:
        """Random, and gone with the process."""
        return self._secret

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        """Entries with any of these labels, newest first."""
        with self._entries.timer as now:  # one moment for the whole look-up
            return self._found(labels, now)

    async def take(self, id: str) -> Parked | None:
        """Remove an entry; atomic because nothing here awaits."""
        return self._taken(id)

    async def take_newest(self, label: str) -> Parked | None:
        """Remove the newest entry with a label; atomic for the same reason."""
        with self._entries.timer as now:
            self._expire(now)
            ids = self._ids.get(label, {})
            if len(ids) == 1:  # as nearly always
                return self._taken(*ids)
            return self._taken(self._found([label], now)[0].id) if ids else None

    async def put(self, parked: Parked) -> None:
        """Park an entry; whatever is too much then goes, the oldest of its head and the least used of all."""
        with self._entries.timer as now:
            self._expire(now)
            self._taken(parked.id)
            if _expiry(parked.id, parked, now) <= now:
                return  # its time was over before it was parked
            self._entries[parked.id] = parked
            for label in parked.labels:
                self._ids.setdefault(label, {})[parked.id] = None
            head = self._ids[parked.labels[0]]
            if len(head) > PER_HEAD:
                self._unlabel(self._entries.pop(next(iter(head))))
            if len(self._entries) > self._max_parked:
                self._unlabel(self._entries.popitem()[1])

    async def aclose(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._ids.clear()

    def _found(self, labels: Sequence[str], now: float) -> Sequence[Parked]:
        self._expire(now)
        newest = [islice(reversed(self._ids.get(label, {})), FOUND) for label in labels]
        ids = dict.fromkeys(chain.from_iterable(newest))
        return sorted([self._entries[id] for id in ids], key=lambda parked: -parked.spoken_at)

    def _taken(self, id: str) -> Parked | None:
        parked = self._entries.pop(id, None)
        if parked is not None:
            self._unlabel(parked)
        return parked

    def _expire(self, now: float) -> None:
        for _, parked in self._entries.expire(now):
            self._unlabel(parked)

    def _unlabel(self, parked: Parked) -> None:
        for label in set(parked.labels):
            ids = self._ids[label]
            ids.pop(parked.id)
            if not ids:
                del self._ids[label]


def _expiry(id: str, parked: Parked, now: float) -> float:
    return parked.spoken_at + parked.ttl
