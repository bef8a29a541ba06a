"""What a crowd did, held against what the vendors saw: every question is known by its blanks.

The texts of all clients are alike: what counts for the product are words, and the same words are asked and answered
everywhere. The run of blanks and tabs between two of the words is a number, though: canonically it is one blank, but
it reaches the vendor as it is, in the question, in its echo and in every recap. So it is never in doubt who said what.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from starlette.types import Receive, Scope, Send

from proxy.simulator import Simulator, Vendor
from proxy.simulator.bot import Conversation
from proxy.simulator.call import Call

VENDORS = {"newoaks-two": "newoaks"}  # another name for the same bot
HARMLESS = ("", "new-id", "forgotten")  # to a turn that was taken in
BITS = 18
MARK = re.compile(rf"(?<=\w)[ \t]{{{BITS}}}(?=\w)")
OUR_ERROR = re.compile(r"\(parley: \w+\)$")
RECAP, RECAP_END = "[What was said earlier in this conversation]", "[End of what was said earlier]"
SPEAKERS = re.compile(r"^(User|Assistant): ", re.MULTILINE)

Said = tuple[str, str]  # role and text
Rows = tuple[Said, ...]  # canonical


def blanks(number: int) -> str:
    """A number that all take for one blank."""
    return "".join(" \t"[number >> bit & 1] for bit in range(BITS))


def numbers(text: str) -> list[int]:
    """The numbers hidden in a text."""
    return [sum((char == "\t") << bit for bit, char in enumerate(found)) for found in MARK.findall(text)]


def plain(text: str) -> str:
    return " ".join(text.split())


def kept(messages: Iterable[Said]) -> list[Said]:
    """Those that count: an empty message was never said, nor one of the proxy's own error texts."""
    return [said for said in messages if said[1].strip() and not (said[0] == "assistant" and OUR_ERROR.search(said[1]))]


def rows(messages: Iterable[Said]) -> Rows:
    """Neighbours of one role merged, white space made one."""
    parts = groupby(kept(messages), key=lambda said: said[0])
    return tuple((role, plain(" ".join(text for _, text in same))) for role, same in parts)


def fits(stands: Rows, past: Rows, *, scoped: bool) -> set[str]:
    """The tiers by which a conversation that stands for `stands` may go on with a client whose history is `past`."""
    if not (stands and past):
        return set()
    if stands == past:  # looked for in vain as this, it may be found as that a moment later
        return {"exact", "interrupted"} | ({"contained", "window"} if scoped else set())
    found = set()
    (role, last), said = past[-1], stands[-1][1]
    if stands[:-1] == past[:-1] and role == "assistant" and " " in last and said.startswith(last):
        found.add("interrupted")
    if not scoped:
        return found
    at = max(i for i, row in enumerate(past) if row[0] == "user")
    if len(stands) == len(past) and stands[at][0] == "user":
        rest = stands[:at] + stands[at + 1 :] == past[:at] + past[at + 1 :]
        if rest and len(past[at][1]) >= 8 and past[at][1] in stands[at][1]:
            found.add("contained")
    if 2 <= len(past) < len(stands) and stands[-len(past) :] == past and stands[-2][0] == "user":
        found.add("window")
    return found


@dataclass(frozen=True)
class Owner:
    """Whose chat it is: a key, an end user, a conversation id of the client's own."""

    tenant: str
    user: str
    scope: str = ""


@dataclass(eq=False)
class Ask:
    """A request, and what its client was given. `number`: its question's; a request made once more has the same.

    `seat` is the ask whose reply this one's history ends in, and `expected` how it is to be continued if nothing
    came between. `era`: what was parked in an earlier one is lost.
    """

    order: int
    number: int
    owner: Owner
    model: str
    priming: str
    messages: tuple[Said, ...]
    era: int = 0
    seat: "Ask | None" = None
    expected: str = ""
    utility: bool = False
    how: str = ""
    status: int = 0
    error: str = ""
    pieces: list[str] = field(default_factory=list)
    whole: bool = False

    def __post_init__(self) -> None:
        said = kept(self.messages)
        end = max((i + 1 for i, (role, _) in enumerate(said) if role == "assistant"), default=0)
        self.history, self.turn = rows(said[:end]), rows(said[end:])

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def partition(self) -> tuple[str, ...]:
        owner = self.owner
        return (owner.tenant, owner.user, owner.scope, self.model, "" if owner.scope else self.priming)

    @property
    def vendor(self) -> str:
        return VENDORS.get(self.model, self.model)

    def __repr__(self) -> str:
        lines = [f"#{self.number} {self.partition} -> {self.status} {self.how!r} whole={self.whole} {self.text!r}"]
        lines += [f"    {role}: {text}" for role, text in (*self.history, *self.turn)]
        return "\n".join(lines)


# --- what the vendors see


@dataclass(eq=False)
class Visit:
    """One call at a vendor. `at`: where in the conversation its turn stands; None if it was not taken in."""

    conversation: Conversation | None = None
    at: int | None = None
    call: Call | None = None

    @property
    def fault(self) -> str:
        return self.call.fault.kind if self.call is not None else ""

    @property
    def hung_up(self) -> bool:
        return self.call is not None and self.call.hung_up


VISIT: ContextVar[Visit] = ContextVar("VISIT")


class Witness:
    """The simulator as an ASGI application, with somebody at its door. `visits` are those that are over."""

    def __init__(self, simulator: Simulator) -> None:
        self._app = simulator.app
        self.inside = 0
        self.visits: list[Visit] = []
        for vendor in simulator.vendors.values():
            vars(vendor).update(
                turn=partial(self._turn, vendor.turn), _answer=partial(self._answer, vendor, vendor._answer)
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        VISIT.set(visit := Visit())
        self.inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.visits.append(visit)
            self.inside -= 1

    def _turn(self, turn: Callable[..., Any], conversation: Conversation, text: str, call: Call, **more: Any) -> Any:
        visit = VISIT.get()
        visit.conversation, visit.at = conversation, len(conversation.entries)
        return turn(conversation, text, call, **more)

    async def _answer(self, vendor: Vendor, answer: Callable[..., Any], call: Call, request: Any) -> Any:
        visit = VISIT.get()
        visit.call = call
        answered = await answer(call, request)
        if call.operation == "ask" and visit.conversation is None:  # refused before the bot heard of it
            names = ("sessionID", "conv_id", "conversation_id")
            handles = [call.fields.get(name) for name in names] + [call.fields.get("room", {}).get("uuid")]
            visit.conversation = next(
                (vendor.conversations[one] for one in handles if one in vendor.conversations), None
            )
        return answered


# --- what must hold


@dataclass(eq=False)
class Landing:
    """A turn in a vendor conversation, as who it was allowed to come, and what was replied."""

    room: "Room"
    number: int
    allowed: set[str]
    complete: bool
    reply: str
    fault: str


@dataclass(eq=False)
class Room:
    """A vendor conversation. `stands_for` is () where nobody may go on."""

    vendor: str
    conversation: Conversation
    visits: dict[int, Visit] = field(default_factory=dict)
    seen: int = 0
    partitions: set[tuple[str, ...]] = field(default_factory=set)
    stands_for: Rows = ()
    priming: str = ""
    refused: bool = False
    renamed: bool = False
    direct: Counter[str] = field(default_factory=Counter)
    landings: list[Landing] = field(default_factory=list)


class Ledger:
    """All asks and all visits. `wrong` is what is against the rules."""

    def __init__(self, simulator: Simulator, witness: Witness) -> None:
        self._simulator = simulator
        self._witness = witness
        self._visited = 0
        self._judged = 0
        self._orders = 0
        self.asks: list[Ask] = []
        self.by_number: defaultdict[int, list[Ask]] = defaultdict(list)
        self.owners: defaultdict[int, set[Owner]] = defaultdict(set)  # of a question
        self.rooms: dict[int, Room] = {}
        self.landings: defaultdict[int, list[Landing]] = defaultdict(list)
        self.wrong: list[str] = []
        self.tally: Counter[str] = Counter()

    def number(self, owner: Owner) -> int:
        """A number for a new question."""
        self._orders += 1
        self.owners[self._orders].add(owner)
        return self._orders

    def add(self, **told: Any) -> Ask:
        """Write down that something is about to be asked."""
        ask = Ask(order=len(self.asks), **told)
        self.asks.append(ask)
        self.by_number[ask.number].append(ask)
        return ask

    def check(self) -> None:
        """Look at all that came about since the last time. What is still under way is looked at later."""
        visits = self._witness.visits
        names = {id(vendor): name for name, vendor in self._simulator.vendors.items()}
        vendors = {id(c): names[id(v)] for v in self._simulator.vendors.values() for c in v.conversations.values()}
        touched: dict[int, Room] = {}
        until = len(visits)
        for visit in visits[self._visited : until]:
            if (conversation := visit.conversation) is not None:
                key = id(conversation)
                room = self.rooms.setdefault(key, Room(vendors.get(key, ""), conversation))
                touched[key] = room
                if visit.at is None:
                    room.refused = True
                else:
                    room.visits[visit.at] = visit
        self._visited = until
        for room in touched.values():
            while room.seen in room.visits:
                self._landed(room, room.visits.pop(room.seen))
        for ask in self.asks[self._judged :]:
            self._judge(ask)
        self._judged = len(self.asks)
        self.wrong += [f"documents: {text}" for v in self._simulator.vendors.values() for text in v.violations]

    def _complain(self, rule: str, what: str, *more: object) -> None:
        self.wrong.append("\n  ".join([f"{rule}: {what}", *map(str, more)]))

    # --- a turn in a conversation

    def _landed(self, room: Room, visit: Visit) -> None:
        entries = room.conversation.entries
        text, fields = entries[room.seen].text, entries[room.seen].fields
        answered = room.seen + 1 < len(entries) and entries[room.seen + 1].role == "bot"
        reply = entries[room.seen + 1].text if answered else ""
        room.seen += 1 + answered
        ask = self._who(room, text)
        if ask is None:
            room.stands_for = ()
            return
        allowed = self._check_told(room, ask, text, str(fields.get("message_context", "")))
        question = plain(" ".join(words for _, words in ask.turn))
        room.direct[question] += 1
        # A client that forgets the oldest may ask again what it does not know to have asked.
        known = room.stands_for if "continued window" in allowed else ask.history
        if any(landing.number == ask.number for landing in room.landings) or (
            room.direct[question] > (known + ask.turn).count(("user", question))
            and not any("continued window" in landing.allowed for landing in room.landings)
        ):
            self._complain("I3", f"{question!r} is asked twice", self._story(room), ask)
        complete = bool(plain(reply)) and visit.fault in HARMLESS and not visit.hung_up
        room.renamed = room.renamed or (visit.fault == "new-id" and bool(room.landings))
        room.stands_for = ask.history + ask.turn + rows([("assistant", reply)]) if complete and not ask.utility else ()
        room.priming = ask.priming
        landing = Landing(room, ask.number, allowed, complete, reply, visit.fault)
        room.landings.append(landing)
        self.landings[ask.number].append(landing)

    def _who(self, room: Room, text: str) -> Ask | None:
        """Whose turn this is: of one partition with all else in this conversation."""
        found = numbers(text)
        asks = [ask for ask in self.by_number.get(found[-1] if found else 0, ()) if ask.vendor == room.vendor]
        if not asks:
            self._complain("I2", f"nobody has asked {text!r} of {room.vendor}")
            return None
        partitions = {ask.partition for ask in asks}
        both = partitions & room.partitions if room.partitions else partitions
        if not both:
            self._complain("I2", f"{partitions} in a conversation of {room.partitions}", self._story(room), asks[0])
            return None
        room.partitions = both
        strangers = [one for one in found if not {p[:3] for p in both} & {whose(owner) for owner in self.owners[one]}]
        if strangers:
            told = [sorted(map(whose, self.owners[one])) for one in strangers]
            self._complain("I2", f"a conversation of {both} is told what {told} said", asks[0])
        return next(ask for ask in asks if ask.partition in both)

    def _check_told(self, room: Room, ask: Ask, text: str, context: str) -> set[str]:
        """How a turn may have come into this conversation, which must have been told all that is new, and no more."""
        before, end, rest = text.rpartition(RECAP_END)
        lead, _, block = before.rpartition(RECAP)
        _, *lines = SPEAKERS.split(block)
        told = rows((who.lower(), what) for who, what in zip(lines[::2], lines[1::2], strict=True))
        first = not room.landings
        primes = (first or room.priming != ask.priming) and ask.vendor != "quickchat-legacy"
        new = [ask.priming if primes else "", *(words for _, words in ask.turn)]
        if plain(f"{lead} {rest}") != plain(" ".join(new)):
            self._complain("the rule, 2", f"sent {text!r}", self._story(room), ask)
        if ask.vendor == "quickchat-legacy" and context != ask.priming:
            self._complain("priming", f"the context is {context!r}", ask)
        stands, past = room.stands_for, ask.history
        if first:
            if told != past:
                self._complain("I1", f"a new conversation is told {told}", ask)
            return {"utility"} if ask.utility else {"rebuilt" if past else "opened"}
        if end:
            caught_up = bool(stands) and stands + told == past and 2 * len(stands) >= len(past) and not room.renamed
            allowed = {"caught-up"} if caught_up else set()
        else:
            tiers = fits(stands, past, scoped=bool(ask.owner.scope))
            allowed = {f"continued {tier}" for tier in tiers if not room.renamed or stands == past}
        if not allowed or ask.utility:
            self._complain("I1", f"a conversation that stands for {stands} goes on", self._story(room), ask)
        return allowed

    def _story(self, room: Room) -> str:
        lines = [f"{room.vendor} {room.conversation.handle}, renamed {room.renamed}, refused {room.refused}"]
        lines += [f"    {entry.role}: {entry.text!r}" for entry in room.conversation.entries]
        return "\n".join([*lines, *(f"    #{one.number} {one.allowed} {one.fault}" for one in room.landings)])

    # --- what clients were told

    def _judge(self, ask: Ask) -> None:
        self.tally["requests"] += 1
        landings = self.landings.get(ask.number, [])
        mine = [landing for landing in landings if ask.partition in landing.room.partitions]
        asked = self.by_number[ask.number]
        if len(mine) > len(asked):
            self._complain("I3", f"asked {len(asked)} times, and sent {len(mine)} times", ask)
        if not ask.status:
            self.tally["left before the first byte"] += 1
            return
        self.tally[ask.how if ask.status == 200 else f"status {ask.status}"] += 1
        if ask.status == 200:
            self._check_answered(ask, mine)
        self._check_expected(ask, mine)

    def _check_answered(self, ask: Ask, mine: Sequence[Landing]) -> None:
        if not any(is_one_of(ask.how, landing.allowed) for landing in mine):
            allowed = [landing.allowed for landing in mine]
            self._complain("I1", f"it is called {ask.how!r}, but was {allowed}", ask)
        said = [landing.reply.strip() for landing in mine]
        text = ask.text.strip()
        if not any(text == reply if ask.whole else reply.startswith(text) for reply in said):
            self._complain("replies", f"a client was told {ask.text!r}, and the bot said {said}", ask)
        asked = [other for other in self.by_number[ask.number] if other.partition == ask.partition]
        once_more = [other for other in asked if other.status == 200 and other.text]
        if len(once_more) > len(mine) == 1 and ask is once_more[-1]:
            self.tally["joined"] += 1

    def _check_expected(self, ask: Ask, mine: Sequence[Landing]) -> None:
        if not ask.expected or (came_between := self._came_between(ask, mine)):
            self.tally[f"not judged: {came_between}" if ask.expected else "not expected"] += 1
            return
        self.tally[f"as expected: {ask.expected}"] += 1
        if ask.how != ask.expected:
            seat = self.landings[ask.seat.number][0].room if ask.seat else None
            story = self._story(seat) if seat else ""
            self._complain("liveness", f"{ask.how!r} instead of {ask.expected!r}", ask, f"seat {ask.seat}", story)

    def _came_between(self, ask: Ask, mine: Sequence[Landing]) -> str:
        """What else than the product may be why an ask is not continued as expected."""
        seat = ask.seat
        assert seat is not None
        seats = [one for one in self.landings.get(seat.number, []) if seat.partition in one.room.partitions]
        twins = [one for one in self.by_number[ask.number] if one.partition == ask.partition]
        forgot = ask.how == "rebuilt vendor-forgot" and self._is_any_forgotten(ask.partition)
        reasons = {
            "store": ask.how.endswith("store-unavailable"),
            "restart": ask.era != seat.era,
            "fault": ask.status != 200 or any(landing.fault for landing in mine),
            "repeated": len(seats) != 1 or len(twins) > 1,
            "vendor": forgot or not all(self._is_well(landing) for landing in seats),
            "another": any(self._was_taken(landing, ask) for landing in seats),
            "one that never arrived": any(
                one.partition == ask.partition and not self.landings.get(one.number)
                for one in self.asks[seat.order + 1 :]
            ),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _is_well(self, landing: Landing) -> bool:
        """Whether the vendor still has this conversation, and gave its proxy no reason to doubt that."""
        room = landing.room
        return landing.complete and not (room.refused or room.renamed or room.conversation.forgotten)

    def _was_taken(self, landing: Landing, ask: Ask) -> bool:
        """Whether somebody else went on in this conversation."""
        after = landing.room.landings[landing.room.landings.index(landing) + 1 :]
        return bool(after) and after[0].number != ask.number

    def _is_any_forgotten(self, partition: tuple[str, ...]) -> bool:
        return any(room.conversation.forgotten for room in self.rooms.values() if partition in room.partitions)


def whose(owner: Owner) -> tuple[str, ...]:
    return (owner.tenant, owner.user, owner.scope)


def is_one_of(how: str, allowed: Iterable[str]) -> bool:
    """Whether a client was told the truth; why something had to be rebuilt is not looked at."""
    return any(how == one or (one == "rebuilt" and how.startswith("rebuilt ")) for one in allowed)


def marked(text: str, number: int) -> str:
    """A text with a number for its first blank, the verb apart."""
    verb, _, words = text.partition(" ")
    return f"{verb} {words.replace(' ', blanks(number), 1)}"


def renumbered(messages: Iterable[Said], number: Callable[[], int]) -> Iterator[Said]:
    """The same words with other numbers."""
    new: defaultdict[str, str] = defaultdict(lambda: blanks(number()))
    for role, text in messages:
        yield role, MARK.sub(lambda found: new[found[0]], text)
