"""Who gets which parked handle: a conversation's tiers put to the store, and the wait for an interrupted reply."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from proxy.conversation import Continuation, Conversation, Stage
from proxy.errors import StoreUnavailable
from proxy.messages import Parked
from proxy.ports import ConversationStore
from proxy.reply import Replies, Reply
from proxy.telemetry import log

NOTICED = 0.25  # seconds until it shows that a client has hung up, when its next request has come already
OUTLASTED = 3.0  # seconds that a request waits for the end of the reply that its client cut short


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
                found = await self._store.find(stage.labels)
                if stage.reason == "interrupted":
                    found, spoken = await self._hushed(conversation, stage, found)
                    in_use = in_use or spoken
                for continuation in conversation.matches(stage, found, self._clock()):
                    if taken := await self._store.take(continuation.entry.id):
                        return replace(continuation, parked=taken)
                    in_use = True
                in_use = in_use or any(self._in_use[label] for label in stage.labels)
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
        """Remember which labels a running turn has taken its handle from, to tell others why they got none."""
        labels = parked.labels if parked is not None else ()
        self._in_use.update(labels)
        try:
            yield
        finally:
            self._in_use.subtract(labels)
            for label in labels:
                if not self._in_use[label]:
                    del self._in_use[label]

    async def _hushed(
        self, conversation: Conversation, stage: Stage, found: Sequence[Parked]
    ) -> tuple[Sequence[Parked], bool]:
        """What is found when a reply that was cut short has come to its end; and whether one is still being spoken.

        Only a reply that nobody listens to any more is waited for, and only if it is the one that can be meant.
        """
        speaking = [reply for reply in self._replies.speaking(conversation.before) if conversation.begins(reply.text)]
        speaking = [reply for reply in speaking if reply.record.how != "utility"]
        if not speaking:
            return found, False
        heads: set[object] = {reply.parked.labels[0] if reply.parked else reply for reply in speaking}
        heads |= {match.entry.labels[0] for match in conversation.matches(stage, found, self._clock())}
        if len(heads) > 1:
            conversation.is_ambiguous()
            return (), False
        over = await _outlasted(speaking[0])
        return await self._store.find(stage.labels), not over


async def _outlasted(reply: Reply) -> bool:
    """Wait for the end of a reply that nobody listens to; False if somebody does, or it takes too long."""
    with suppress(TimeoutError):
        await asyncio.wait_for(reply.alone.wait(), NOTICED)
        await asyncio.wait([reply.ended], timeout=OUTLASTED)
    return reply.ended.done()
