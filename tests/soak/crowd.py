"""The soak's clients: chats that grow, some of whose owners leave, ask again, or think better of what they asked.

Each knows how its next turn has to be continued; what it did not bring about itself is an unexpected failure.
"""

import asyncio
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from random import Random
from typing import Any
from urllib.parse import urlsplit

from tests.end_to_end.callers import Answer, Line, request_bytes
from tests.soak.vendors import FAULTS, GAP, LATENCY, MODELS, NOT_TAKEN, ONE_PIECE, PIECE

KEY = "sk-soak"
ANSWER = re.compile(r"(\d+\.\d+) is turn (\d+):((?: \d+)+) took (\d+\.\d)")
FILLING = "please count aloud for me once more and do not mind the wind that rattles at the window all night long"
THINKING = 1.0  # seconds between two turns, on average
MOST_TOLD = 50
ANSWERED_WITHIN = 20.0  # seconds

LEFT_WORDS = 80  # that the answer would have had whose client leaves,
LEFT_IN = LATENCY[0] + LEFT_WORDS // PIECE * GAP  # and the seconds before which it cannot have ended

FAULTY, LEAVING, EDITING = 0.02, 0.05, 0.02  # shares of the turns


@dataclass
class Row:
    """What came of the turns of one phase. `added`: milliseconds, what a turn took beyond the vendor's own time."""

    turns: int = 0
    streams: int = 0
    left: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    added: list[float] = field(default_factory=list)
    stalled: int = 0


LOST_BY_STALL = (
    "rebuilt store-unavailable",
    "rebuilt unknown-history",
)  # a look-up, or the parking before it, too late
STALLS = 200  # of the last stalls are looked at


@dataclass
class Ledger:
    """What all clients saw. `outages`: when the store was away, by the monotonic clock; the last may be open.

    `stalls`: when the machine stood still, which another process saw.
    """

    rows: defaultdict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    phase: str = "start"
    outages: list[list[float]] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    garbled: list[str] = field(default_factory=list)
    checked: int = 0
    wrong: int = 0
    retried: dict[str, str] = field(default_factory=dict)  # turns asked again after leaving, and how that was answered
    faults: "cycle[str]" = field(default_factory=lambda: cycle(FAULTS))  # in turn, so that each has its share

    GRACE = 2.0  # seconds until the store is surely used again

    @property
    def row(self) -> Row:
        """Of the phase that is on."""
        return self.rows["outage" if self.is_out(time.monotonic()) else self.phase]

    def is_out(self, since: float, until: float = float("inf")) -> bool:
        """Whether the store was away at some time between these."""
        return any(start <= until and since <= end + self.GRACE for start, end in self.outages)

    def stood_still(self, since: float, until: float) -> bool:
        """Whether the machine did at some time between these: then times say nothing, and a store may seem lost."""
        return any(start <= until and since <= end for start, end in self.stalls[-STALLS:])

    def complain(self, where: list[str], what: str) -> None:
        """Count what must not be, and write the first of it down."""
        self.wrong += 1
        if len(where) < MOST_TOLD:
            where.append(f"{self.phase}: {what}"[:500])


@dataclass(frozen=True)
class Turn:
    """A question, how it is asked, and how it has to be continued: the beginnings that `x-parley-…` may have."""

    name: str
    text: str
    words: int
    stream: bool
    ways: Sequence[str]
    fault: str = "none"
    key: str = ""


@dataclass(frozen=True)
class Exchange:
    """A turn that a chat holds."""

    name: str
    question: str
    answer: str


class Unexpected(Exception):
    """Something that nobody brought about."""


class Client:
    """A person who has one chat after the other, each with one of the bots."""

    def __init__(self, url: str, ledger: Ledger, chats: "count[int]", seed: int) -> None:
        parts = urlsplit(url)
        self._place = parts.hostname or "", parts.port or 0
        self._ledger = ledger
        self._chats = chats
        self._chance = Random(seed)
        self._line: Line | None = None
        self._begin()

    def _begin(self) -> None:
        """A new chat."""
        chance = self._chance
        self._chat, self._turns = next(self._chats), count(1)
        self._model = chance.choice(MODELS)
        self._limit = chance.randint(10, 30)
        self._held: list[Exchange] = []
        self._ways: Sequence[str] = ("opened",)
        self._turn_of_room = 0
        self._since = time.monotonic()
        self._system = chance.choice(("", "You are a patient bot."))
        self._headers = [f"x-conversation-id: soak-{self._chat}"] if chance.random() < 0.2 else []
        self._mark: int | None = None  # how long this chat was when the store was copied
        self._goes_back = False

    def mark(self) -> None:
        """The store is copied now."""
        self._mark = len(self._held)

    def go_back(self) -> None:
        """The store was put back: take the next turn from where this chat was then."""
        self._goes_back = self._mark is not None

    async def live(self, until: float) -> None:
        """Take turns, with faults and leaving or without, until that moment of the monotonic clock."""
        while time.monotonic() < until:
            await asyncio.sleep(min(self._chance.expovariate(1 / THINKING), 4 * THINKING))
            try:
                await self._take_turn()
            except Unexpected as fault:
                self._ledger.complain(self._ledger.unexpected, str(fault))
                self._begin()
            except (OSError, asyncio.IncompleteReadError, ValueError, KeyError, TimeoutError) as fault:
                self._ledger.complain(self._ledger.unexpected, f"chat {self._chat} with {self._model}: {fault!r}")
                self.hang_up()
                self._begin()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection, if one is open."""
        if self._line is not None:
            self._line.leave()
            self._line = None

    async def _take_turn(self) -> None:
        ledger, chance = self._ledger, self._chance
        calm = ledger.phase == "calm"
        dice = 1.0 if calm else chance.random()
        if self._goes_back:
            self._cut(self._mark or 0)
        elif dice > 1 - EDITING and not calm:
            self._cut(chance.randrange(len(self._held) + 1))
        if len(self._held) >= self._limit:
            self._begin()
        row = ledger.row
        row.turns += 1
        if dice < FAULTY:
            await self._meet_fault(row)
        elif dice < FAULTY + LEAVING:
            await self._leave(row)
        else:
            turn = self._turn()
            row.streams += turn.stream
            self._keep(turn, await self._ask(turn), row)

    def _cut(self, at: int) -> None:
        """Go on from an earlier turn."""
        self._goes_back = False
        if at < len(self._held):
            del self._held[at:]
            self._ways = ("rebuilt", "caught-up", "continued interrupted") if self._held else ("opened",)

    def _turn(self, *, fault: str = "none", words: int = 0, stream: bool | None = None) -> Turn:
        chance = self._chance
        name = f"{self._chat}.{next(self._turns)}"
        after = self._held[-1].name if self._held else "-"
        words = words or (chance.randint(150, 400) if chance.random() < 0.05 else chance.randint(10, 60))
        filling = " ".join(chance.choices(FILLING.split(), k=chance.randint(5, 40)))
        text = f"soak {name} after {after} words {words} fault {fault}; {filling}"
        key = f"{self._chat}-{name}" if chance.random() < 0.02 else ""
        return Turn(name, text, words, chance.random() < 0.5 if stream is None else stream, self._ways, fault, key)

    # --- what may happen to a turn

    async def _meet_fault(self, row: Row) -> None:
        """The vendor fails; ask once more, or something else."""
        kind = next(self._ledger.faults)
        turn = self._turn(fault=kind)
        row.streams += turn.stream
        answer = await self._ask(turn)
        code = told_code(answer)
        row.faults[f"{kind}: {answer.status} {code}"] += 1
        if code != FAULTS[kind][1] or (kind == NOT_TAKEN and answer.headers.get("retry-after") != "1"):
            raise Unexpected(f"{kind} of {self._model} is told as {answer.status} {code!r}: {answer.body[:200]!r}")
        if kind == NOT_TAKEN:
            await asyncio.sleep(1)
        elif self._held and self._ways:
            self._ways = ("rebuilt",)
        if self._chance.random() < 0.5:
            self._keep(turn, await self._ask(turn, again=True, ways=self._ways), row)

    async def _leave(self, row: Row) -> None:
        """Hang up before the answer, or in the midst of it; then ask once more, go on from there, or ask another."""
        chance = self._chance
        manner = chance.choice(("before the first event", "midway", "plain"))
        row.left[manner] += 1
        turn = self._turn(words=LEFT_WORDS, stream=manner != "plain")
        row.streams += turn.stream
        heard = ""
        sent = time.monotonic()
        line = await self._send(turn)
        if manner == "midway":
            answer = await line.begin()
            async for piece in line.pieces(answer):
                answer.pieces.append(piece)
                if heard := "".join(told_pieces(answer)):
                    break
        else:
            await asyncio.sleep(chance.uniform(0, 0.06))
        self.hang_up()
        # An answer that was told to its end may be asked for once more: the proxy cannot know that nobody read it.
        unfinished = time.monotonic() - sent < LEFT_IN and not (heard and self._model in ONE_PIECE)
        then = chance.choice(("again", "go on", "another"))
        await asyncio.sleep(chance.uniform(0, 0.5))
        if then == "again" and unfinished:
            answer = await self._ask(turn, again=True, ways=())
            self._ledger.retried[turn.name] = told_way(answer)
            self._keep(turn, answer, row)
            return
        if then == "go on" and len(heard.split()) > 1:
            self._held.append(Exchange(turn.name, turn.text, heard))
        self._ways = ()

    # --- asking

    async def _send(self, turn: Turn, *, again: bool = False) -> Line:
        said = [("user", held.question, held.answer) for held in self._held]
        messages = [
            m for _, q, a in said for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})
        ]
        system = [{"role": "system", "content": self._system}] if self._system else []
        body: Mapping[str, Any] = {
            "model": self._model,
            "messages": [*system, *messages, {"role": "user", "content": turn.text}],
            "stream": turn.stream,
        }
        headers = [f"authorization: Bearer {KEY}", *self._headers]
        headers += [f"idempotency-key: {turn.key}"] if turn.key else []
        headers += ["x-stainless-retry-count: 1"] if again else []
        if self._chance.random() < 0.1:
            self.hang_up()
        if self._line is None:
            self._line = Line(*await asyncio.open_connection(*self._place))
        self._line.writer.write(request_bytes("/v1/chat/completions", json.dumps(body).encode(), headers=headers))
        await self._line.writer.drain()
        return self._line

    async def _ask(self, turn: Turn, *, again: bool = False, ways: Sequence[str] | None = None) -> Answer:
        """The whole answer."""
        if again:
            turn = Turn(turn.name, turn.text, turn.words, turn.stream, ways or (), "none", turn.key)
        self._asked, self._wanted = time.monotonic(), turn.ways
        async with asyncio.timeout(ANSWERED_WITHIN):
            answer = await (await self._send(turn, again=again)).answer()
        if answer.headers.get("connection") == "close" or not answer.whole:
            self.hang_up()
        return answer

    def _keep(self, turn: Turn, answer: Answer, row: Row) -> None:
        """Take a good answer into the chat. Raises Unexpected if it is none, or came by another way than it had to."""
        now = time.monotonic()
        how = told_way(answer)
        if answer.status != 200 or told_code(answer):
            raise Unexpected(f"{turn.name} of {self._model}: {answer.status} {answer.body[-300:]!r}")
        text = "".join(told_pieces(answer)) if turn.stream else answer.json["choices"][0]["message"]["content"]
        self._ledger.checked += 1
        match = ANSWER.fullmatch(text)
        counted = [*map(int, match[3].split())] if match else []
        whole = not turn.stream or answer.data[-1] == "[DONE]"
        if match is None or match[1] != turn.name or counted != [*range(turn.words)] or not (whole and answer.whole):
            self._ledger.complain(self._ledger.garbled, f"{turn.name} of {self._model}, {turn.words} words: {text!r}")
            self._begin()
            return
        out = self._ledger.is_out(self._since, now)
        row.ways[how] += 1
        lost = how in LOST_BY_STALL and self._ledger.stood_still(self._since, now)
        if self._wanted and not out and not lost and not how.startswith(tuple(self._wanted)):
            raise Unexpected(f"{turn.name} of {self._model} is {how!r} instead of {self._wanted}")
        turns = self._turn_of_room + 1
        if self._wanted == ("continued exact",) and how == "continued exact" and int(match[2]) != turns:
            raise Unexpected(f"{turn.name} of {self._model} is turn {match[2]} and not {turns} of its conversation")
        if self._ledger.stood_still(self._asked, now):
            row.stalled += 1
        elif turn.fault == "none" and self._wanted:
            row = self._ledger.rows["outage"] if out else row
            row.added.append((now - self._asked) * 1000 - float(match[4]))
        self._held.append(Exchange(turn.name, turn.text, text))
        self._ways, self._turn_of_room, self._since = ("continued exact",), int(match[2]), self._asked


def told_pieces(answer: Answer) -> Iterator[str]:
    """The text of a stream, as far as it has come."""
    for line in answer.body.split(b"\n"):
        if line.startswith(b"data: {") and line.endswith(b"}"):
            for choice in json.loads(line[6:]).get("choices", ()):
                yield choice["delta"].get("content") or ""


def told_way(answer: Answer) -> str:
    """How an answer was continued, and why so."""
    return " ".join(answer.headers.get(f"x-parley-{part}", "") for part in ("conversation", "reason")).strip()


def told_code(answer: Answer) -> str:
    """The code of the error that an answer is or ends with; "" for none."""
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        last = answer.data[-1] if answer.data else {}
        return "" if last == "[DONE]" else str(last.get("error", {}).get("code", "cut off"))
    error = answer.json.get("error") or {}
    return str(error.get("code") or "")
