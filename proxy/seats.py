"""Who gets which parked handle: a conversation's tiers put to the store, and the wait for an interrupted reply."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.conversation import Continuation, Conversation, Stage
from proxy.errors import StoreUnavailable
from proxy.messages import Parked
from proxy.ports import ConversationStore
from proxy.reply import Replies, Reply
from proxy.telemetry import log

HANG_UP_NOTICED = 0.25  # seconds until it shows that a client has hung up, when its next request has come already
LONGEST_WAIT = 3.0  # seconds that a request waits for the end of the reply that its client cut short


class Seats:
    """The parked handles as this process takes them, and which of them its running turns have taken."""

    def __init__(self, store: ConversationStore, replies: Replies, clock: Callable[[], float]) -> None:
        self._store = store
        self._replies = replies
        self._clock = clock
        self._in_use: Counter[str] = Counter()

    async def take(self, conversation: Conversation) -> Continuation:
        """The best that there is; of many callers that want the same handle, one gets it."""
        in_use = False
        try:
            for stage in conversation.stages():
                if stage.reason == "interrupted":
                    in_use = await self._await_interrupted(conversation, stage) or in_use
                    if conversation.ambiguous:
                        continue
                if stage.reason == "exact":  # the one way that most go: found and taken in one step
                    newest = await self._store.take_newest(stage.labels[0])
                    for continuation in conversation.matches(stage, [newest] if newest else [], self._clock()):
                        return continuation
                    in_use = self._in_use[stage.labels[0]] > 0
                    continue
                found = await self._store.find(stage.labels)
                for continuation in conversation.matches(stage, found, self._clock()):
                    if taken := await self._store.take(continuation.entry.id):
                        return continuation._replace(parked=taken)
                    in_use = True
        except StoreUnavailable:
            return conversation.rebuilt("store-unavailable")
        return conversation.unmatched(in_use=in_use)

    async def park(self, parked: Parked) -> bool:
        """Park a handle; False if the store could not be reached, and the handle is lost."""
        try:
            await self._store.put(parked)
        except StoreUnavailable as fault:
            log.warning("not parked: %s", fault.message)
            return False
        return True

    async def has(self, parked: Parked) -> bool:
        """Whether an entry still stands where it was parked."""
        try:
            return any(found.id == parked.id for found in await self._store.find(parked.labels[:1]))
        except StoreUnavailable:
            return False

    @contextmanager
    def held(self, parked: Parked | None) -> Iterator[None]:
        """Remember which head a running turn has taken its handle from, to tell others why they got none."""
        head = parked.labels[0] if parked is not None else ""
        self._in_use[head] += 1
        try:
            yield
        finally:
            self._in_use[head] -= 1
            if not self._in_use[head]:
                del self._in_use[head]

    async def _await_interrupted(self, conversation: Conversation, stage: Stage) -> bool:
        """Wait for the end of a reply that was cut short; True if one is still being spoken.

        Only a reply that nobody listens to any more is waited for, and only if it is the one that can be meant.
        """
        speaking = [reply for reply in self._replies.speaking(conversation.before) if conversation.begins(reply.text)]
        speaking = [reply for reply in speaking if reply.record.how != "utility"]
        if not speaking:
            return False
        found = await self._store.find(stage.labels)
        heads: set[object] = {reply.parked.labels[0] if reply.parked else reply for reply in speaking}
        heads |= {match.entry.labels[0] for match in conversation.matches(stage, found, self._clock())}
        if len(heads) > 1:
            conversation.ambiguous = True
            return False
        return not await _outlasted(speaking[0])


async def _outlasted(reply: Reply) -> bool:
    """Wait for the end of a reply that nobody listens to; False if somebody does, or it takes too long."""
    alone = asyncio.create_task(reply.alone.wait())
    try:
        await asyncio.wait([alone, reply.ended], timeout=HANG_UP_NOTICED, return_when=asyncio.FIRST_COMPLETED)
        if reply.alone.is_set():
            await asyncio.wait([reply.ended], timeout=LONGEST_WAIT - HANG_UP_NOTICED)
    finally:
        alone.cancel()
    return reply.ended.done()
