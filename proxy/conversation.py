"""Which parked handle continues a history, and what is new to it. Pure: it names labels, the relay asks the store.

A *partition* is what must never be mixed; inside one, a vendor conversation is found by the digest of the history it
stands for (its *head*). Matching goes in stages, best first; each names the labels to look under and says which of
the entries found there fit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby, islice
from operator import attrgetter
from secrets import token_hex
from typing import NamedTuple

from proxy.messages import Handle, Message, Parked
from proxy.ports import PER_HEAD
from proxy.transcript import Canonical, Chain, Chat, canonical, canonical_text, fields_digest, pack

LONGEST_REPLY = 4096  # bytes of a reply that are kept to recognise its beginning
LONGEST_SENT = 32 * 1024  # bytes of a user's message that are kept to recognise what was wrapped around it
SHORTEST_CONTAINED = 8  # characters: less is contained in too much
WINDOW = 200  # messages that a client which forgets the oldest is known by
GRACE = 60.0  # seconds before the end of its time (5 % of it if that is less) in which a handle is left alone


@dataclass(frozen=True, slots=True)
class Partition:
    """Whose conversation this is: nothing that differs in one of these fields ever meets in a vendor conversation.

    `forwarded` is what is put into the conversation besides messages. Inside a scope it may change: the chat stays
    the same one, and is told so.
    """

    tenant: str
    model: str
    bot: str
    end_user: str = ""
    scope: str = ""
    forwarded: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> bytes:
        """Equal for equal partitions only."""
        told = "" if self.scope else fields_digest(self.forwarded).hex()
        return pack((self.tenant, self.model, self.bot, self.end_user, self.scope, told))


class Continuation(NamedTuple):
    """How a request is answered: `how` and `reason` as the client is told them, the entry to take if there is one,
    the messages that the vendor conversation has not seen and must be told of by a recap, and whether it was told
    another system prompt."""

    how: str
    reason: str = ""
    parked: Parked | None = None
    untold: Sequence[Message] = ()
    priming_changed: bool = False

    @property
    def entry(self) -> Parked:
        """The entry to take, where there is one: every match has it."""
        assert self.parked is not None
        return self.parked

    @property
    def renamed(self) -> bool:
        """Whether the vendor once changed this conversation's handle by itself."""
        return self.parked is not None and "renamed" in self.parked.marks


class Stage(NamedTuple):
    """One tier of matching: where to look, how many messages each of these heads covers where it is not all, and
    which of the entries found there fit where not all do."""

    reason: str
    labels: Sequence[str]
    covers: Sequence[int] = ()
    fits: Callable[[Parked], bool] = lambda parked: True


@dataclass(frozen=True, slots=True)
class Terms:
    """How conversations are matched. `idle_ttl` is how long a vendor keeps a silent one (seconds).

    Without `marks` no text is parked, and only histories are recognised that are whole, or have a whole beginning;
    without `recap` nothing may be told that was not seen; `scoped` chats name themselves, so that more of them may
    differ from what was parked.
    """

    idle_ttl: float
    marks: bool = True
    recap: bool = True
    scoped: bool = False


class Conversation:
    """One request's chat as the store knows it.

    `chain` is keyed and started with the partition, so labels of two partitions never meet. `priming` is the system
    prompt as it is compared: outside a scope it is part of the partition already. `asked` is the head of the history
    with the turn, where the reply belongs.
    """

    def __init__(self, chat: Chat, chain: Chain, terms: Terms, *, priming: str = "") -> None:
        self.chat = chat
        self._chain = chain
        self._terms = terms
        self._priming = chain.fingerprint(priming) if terms.scoped else ""
        self._expired = False
        self.ambiguous = False  # more than one conversation may be the one that is meant
        self._entries = canonical(chat.history)
        self._last = self._entries[-1] if self._entries else None
        self.before = chain.head_of(self._entries[:-1])
        self._head = chain.head_of(self._entries[-1:], self.before)
        self._turn = canonical(chat.turn)
        self.asked = chain.head_of(self._turn, self._head)

    def stages(self) -> Iterator[Stage]:
        """The tiers to be tried, best first; what a later one needs is computed only when it is reached."""
        if self._last:
            yield Stage("exact", [self._head.hex()])
            if self._terms.marks:
                yield from self._tolerant(self._last)
        if self._terms.recap and (earlier := self._earlier()).labels:
            yield earlier

    def _tolerant(self, last: Canonical) -> Iterator[Stage]:
        if not last.calls and not last.attachments and last.text.count(" "):
            label = _open_ended(self.before, last.text)
            yield Stage("interrupted", [label], fits=lambda parked: parked.marks.get("reply", "").startswith(last.text))
        if not self._terms.scoped:
            return
        question = _question(self._entries)
        if question is not None and len(asked := self._entries[question].text) >= SHORTEST_CONTAINED:
            label = self._around(question, self._entries)
            yield Stage("contained", [label], fits=lambda parked: asked in parked.marks.get("sent", ""))
        if len(self._entries) <= WINDOW:
            kept = self._chain.digests(self._entries)
            step = len(kept) // len(self._entries)
            label = self._exchange(self._entries)
            yield Stage("window", [label], fits=lambda parked: _is_only_end(parked.marks.get("window", ""), kept, step))

    def matches(self, stage: Stage, found: Sequence[Parked], now: float) -> Iterator[Continuation]:
        """The entries that may be taken, best first, each with what it makes of the request."""
        fresh = [parked for parked in found if self._is_fresh(parked, now)]
        if stage.reason == "exact":
            self._expired = len(fresh) < len(found)
            yield from (self._continued(stage, parked) for parked in fresh)
            return
        fresh = [parked for parked in fresh if "renamed" not in parked.marks]  # it may have lost what it stood for
        if stage.reason == "caught-up":
            yield from self._catching_up(stage, fresh)
            return
        if len(found) > PER_HEAD:  # not all of those that might be meant were found
            self.ambiguous = True
            return
        fresh = [parked for parked in fresh if stage.fits(parked)]
        if len({parked.labels[0] for parked in fresh}) > 1:  # it may have been any of several
            self.ambiguous = True
            return
        yield from (self._continued(stage, parked) for parked in fresh)

    def begins(self, reply: str) -> bool:
        """Whether the client's last assistant message is the beginning of this reply."""
        return self._last is not None and canonical_text(Message("assistant", reply)).startswith(self._last.text)

    def _earlier(self) -> Stage:
        """The heads at earlier replies that cover half of the history or more, the latest first."""
        total = len(self._entries)
        counts = [n for n in range(total - 1, 0, -1) if 2 * n >= total and self._entries[n - 1].role == "assistant"]
        heads = list(self._chain.heads(self._entries)) if counts else []
        return Stage("caught-up", [heads[n - 1].hex() for n in counts], counts)

    def _catching_up(self, stage: Stage, fresh: Sequence[Parked]) -> Iterator[Continuation]:
        covers = dict(zip(stage.labels, stage.covers, strict=True))
        known = [parked for parked in fresh if parked.labels[0] in covers]
        for parked in sorted(known, key=lambda parked: -covers[parked.labels[0]]):
            untold = self._after(covers[parked.labels[0]])
            yield Continuation("caught-up", "", parked, untold, self._is_primed_otherwise(parked))

    def _after(self, count: int) -> Sequence[Message]:
        """What the history holds behind so many canonical messages, as the client sent it."""
        parts = groupby(self.chat.history, key=attrgetter("role"))
        return tuple(message for _, part in islice(parts, count, None) for message in part)

    def _continued(self, stage: Stage, parked: Parked) -> Continuation:
        return Continuation("continued", stage.reason, parked, priming_changed=self._is_primed_otherwise(parked))

    def unmatched(self, *, in_use: bool) -> Continuation:
        """The answer when nothing could be taken: a new vendor conversation, which gets the history as a recap."""
        if in_use:
            return self.rebuilt("in-use")
        if self.ambiguous:
            return self.rebuilt("ambiguous")
        return self.rebuilt("expired" if self._expired else "unknown-history")

    def rebuilt(self, reason: str) -> Continuation:
        """A new vendor conversation that is told the whole history."""
        if not self.chat.history:
            return Continuation("opened")
        return Continuation("rebuilt", reason, untold=self.chat.history)

    def parked(self, handle: Handle, reply: str, now: float, *, renamed: bool = False) -> Parked:
        """The entry for a handle that has answered this turn, at the head of history, turn and reply as given.

        `renamed`: the vendor changed the handle by itself, so it is found by the whole history and not otherwise.
        """
        said = canonical([Message("assistant", reply)])
        marks = {"renamed": "yes"} if renamed else {}
        if self._terms.scoped:
            marks["priming"] = self._priming
        labels = [self._chain.head_of(said, self.asked).hex()]
        if self._terms.marks and not renamed:
            labels.append(_open_ended(self.asked, said[0].text))
            marks["reply"] = _beginning(said[0].text, LONGEST_REPLY)
            if self._terms.scoped:
                self._describe((*self._entries, *self._turn, *said), labels, marks)
        ttl = 2 * self._terms.idle_ttl  # beyond its time it is still known to have been there
        return Parked(token_hex(16), handle, labels, marks, spoken_at=now, ttl=ttl)

    def _describe(self, entries: Sequence[Canonical], labels: list[str], marks: dict[str, str]) -> None:
        """What the tiers of a scope look for: `entries` are the whole conversation."""
        question = _question(entries)
        if question is not None:
            labels.append(self._around(question, entries))
            marks["sent"] = _ends(entries[question].text, LONGEST_SENT)
        labels.append(self._exchange(entries))
        marks["window"] = self._chain.digests(entries[-WINDOW:])

    def _around(self, question: int, entries: Sequence[Canonical]) -> str:
        """The label of all but the text of the last user message."""
        asked = entries[question]._replace(text="")
        return f"{self._chain.head_of([*entries[:question], asked, *entries[question + 1 :]]).hex()}~"

    def _exchange(self, entries: Sequence[Canonical]) -> str:
        """The label of the last full exchange: the last reply, and all since the one before it."""
        start = max((i + 1 for i, entry in enumerate(entries[:-1]) if entry.role == "assistant"), default=0)
        return f"{self._chain.head_of(entries[start:]).hex()}|"

    def _is_fresh(self, parked: Parked, now: float) -> bool:
        idle_ttl = self._terms.idle_ttl
        return now - parked.spoken_at < idle_ttl - min(GRACE, 0.05 * idle_ttl)

    def _is_primed_otherwise(self, parked: Parked) -> bool:
        return self._terms.scoped and parked.marks.get("priming") != self._priming


def _question(entries: Sequence[Canonical]) -> int | None:
    """The place of the last user message."""
    return max((i for i, entry in enumerate(entries) if entry.role == "user"), default=None)


def _is_only_end(whole: str, kept: str, step: int) -> bool:
    """Whether the kept digests, of `step` characters each, are the end of the whole ones and no earlier part as well.

    Else it may be the history of a reply that is wanted anew, or edited, further up.
    """
    return whole.endswith(kept) and not any(whole.startswith(kept, at) for at in range(0, len(whole) - len(kept), step))


def _beginning(text: str, size: int) -> str:
    """As much of a text as so many bytes hold."""
    return text.encode()[:size].decode(errors="ignore")


def _ends(text: str, size: int) -> str:
    """A text, or its beginning and its end: a question stands before or behind what was found for it.

    Nothing canonical reaches over the line break between them.
    """
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    half = (size - 1) // 2
    return "\n".join(part.decode(errors="ignore") for part in (encoded[:half], encoded[-half:]))


def _open_ended(head: bytes, reply: str) -> str:
    """The label of what replies follow: where one is looked for of which the client knows two words or more.

    Its first word is whole, then, and keeps apart what many chats that begin alike are answered.
    """
    first = reply.partition(" ")[0]
    return f"{head.hex()}+{blake2b(first.encode(), digest_size=4, key=head).hexdigest()}"
