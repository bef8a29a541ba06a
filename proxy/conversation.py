"""Which parked handle continues a history, and what is new to it. Pure: it names labels, the relay asks the store.

A *partition* is what must never be mixed; inside one, a vendor conversation is found by the digest of the history it
stands for (its *head*). Matching goes in stages, best first; each names the labels to look under and says which of
the entries found there fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from uuid import uuid4

from proxy.messages import Handle, Message, Parked
from proxy.transcript import Chain, Chat, canonical, canonical_text, fields_digest, pack

LONGEST_MARK = 4096  # characters of a reply that are kept to recognise its beginning
GRACE = 60.0  # seconds before the end of its time (5 % of it if that is less) in which a handle is left alone


@dataclass(frozen=True, slots=True)
class Partition:
    """Whose conversation this is: nothing that differs in one of these fields ever meets in a vendor conversation.

    `forwarded` is what is put into the conversation besides messages.
    """

    tenant: str
    model: str
    bot: str
    end_user: str = ""
    scope: str = ""
    forwarded: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> bytes:
        """Equal for equal partitions only."""
        told = fields_digest(self.forwarded).hex()
        return pack((self.tenant, self.model, self.bot, self.end_user, self.scope, told))


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a request is answered: `how` and `reason` as the client is told them, the entry to take if there is one,
    and the messages that the vendor conversation has not seen and must be told of by a recap."""

    how: str
    reason: str = ""
    parked: Parked | None = None
    untold: Sequence[Message] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One tier of matching: where to look, and how many messages each of these heads covers where it is not all."""

    reason: str
    labels: Sequence[str]
    covers: Sequence[int] = ()


class Conversation:
    """One request's chat as the store knows it. `idle_ttl` is how long a vendor keeps a silent conversation (seconds).

    `chain` is keyed and started with the partition, so labels of two partitions never meet. Without `marks` no text is
    parked, and no reply is recognised by its beginning; without `recap` nothing may be told that was not seen.
    """

    def __init__(self, chat: Chat, chain: Chain, *, idle_ttl: float, marks: bool = True, recap: bool = True) -> None:
        self.chat = chat
        self._chain = chain
        self._idle_ttl = idle_ttl
        self._marks = marks
        self._recap = recap
        self._expired = self._ambiguous = False
        entries = list(canonical(chat.history))
        self._last = entries.pop() if entries else None
        self._before = chain.head_of(entries)
        self._head = chain.head_of([self._last], self._before) if self._last else self._before

    def stages(self) -> Iterator[Stage]:
        """The tiers to be tried, best first; what a later one needs is computed only when it is reached."""
        if self._last:
            yield Stage("exact", [self._head.hex()])
        if self._last and self._marks and not self._last.calls and self._last.text.count(" "):
            yield Stage("interrupted", [_before(self._before)])
        if self._recap and (earlier := self._earlier()).labels:
            yield earlier

    def matches(self, stage: Stage, found: Sequence[Parked], now: float) -> Iterator[Continuation]:
        """The entries that may be taken, best first, each with what it makes of the request."""
        fresh = [parked for parked in found if self._is_fresh(parked, now)]
        if stage.reason == "exact":
            self._expired = len(fresh) < len(found)
        elif stage.reason == "caught-up":
            yield from self._catching_up(stage, fresh)
            return
        else:
            fresh = [parked for parked in fresh if self._is_cut_short(parked)]
            if len({parked.labels[0] for parked in fresh}) > 1:  # it may have been any of several replies
                self._ambiguous = True
                return
        for parked in fresh:
            yield Continuation("continued", stage.reason, parked)

    def _earlier(self) -> Stage:
        """The heads at earlier replies that cover half of the history or more, the latest first."""
        heads = list(self._chain.heads(self.chat.history))
        roles = [role for role, _ in groupby(self.chat.history, key=attrgetter("role"))]
        counts = [n for n in range(len(heads) - 1, 0, -1) if 2 * n >= len(heads) and roles[n - 1] == "assistant"]
        return Stage("caught-up", [heads[n - 1].hex() for n in counts], counts)

    def _catching_up(self, stage: Stage, fresh: Sequence[Parked]) -> Iterator[Continuation]:
        covers = dict(zip(stage.labels, stage.covers, strict=True))
        known = [parked for parked in fresh if parked.labels[0] in covers]
        for parked in sorted(known, key=lambda parked: -covers[parked.labels[0]]):
            yield Continuation("caught-up", "", parked, self._after(covers[parked.labels[0]]))

    def _after(self, count: int) -> Sequence[Message]:
        """What the history holds behind so many canonical messages, as the client sent it."""
        parts = groupby(self.chat.history, key=attrgetter("role"))
        return tuple(message for _, part in islice(parts, count, None) for message in part)

    def unmatched(self, *, in_use: bool) -> Continuation:
        """The answer when nothing could be taken: a new vendor conversation, which gets the history as a recap."""
        reasons = {"in-use": in_use, "ambiguous": self._ambiguous, "expired": self._expired, "unknown-history": True}
        return self.rebuilt(next(reason for reason, holds in reasons.items() if holds))

    def rebuilt(self, reason: str) -> Continuation:
        """A new vendor conversation that is told the whole history."""
        if not self.chat.history:
            return Continuation("opened")
        return Continuation("rebuilt", reason, untold=self.chat.history)

    def parked(self, handle: Handle, reply: str, now: float) -> Parked:
        """The entry for a handle that has answered this turn, at the head of history, turn and reply as given."""
        said = Message("assistant", reply)
        before = self._chain.head(self.chat.turn, self._head)
        labels, marks = [self._chain.head([said], before).hex()], {}
        if self._marks:
            labels.append(_before(before))
            marks["reply"] = canonical_text(said)[:LONGEST_MARK]
        return Parked(id=uuid4().hex, handle=handle, labels=labels, marks=marks, spoken_at=now, ttl=2 * self._idle_ttl)

    def _is_fresh(self, parked: Parked, now: float) -> bool:
        return now - parked.spoken_at < self._idle_ttl - min(GRACE, 0.05 * self._idle_ttl)

    def _is_cut_short(self, parked: Parked) -> bool:
        """Whether the client's last assistant message is the beginning of the reply that this entry ends in."""
        return self._last is not None and parked.marks.get("reply", "").startswith(self._last.text)


def _before(head: bytes) -> str:
    """The label of a reply's predecessor: where replies are looked for that the client knows only in part."""
    return f"{head.hex()}+"
