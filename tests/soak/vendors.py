"""The vendors' side of the soak, a process of its own: four vendors' APIs, whose bots count aloud and keep the books.

A question names itself, what it comes after, how many words are wanted, and which fault it is to meet the first time:
`soak 12.7 after 12.6 words 40 fault none; …`. The answer is `12.7 is turn 3: 0 1 2 … 39 took 231.4`, the last being
the milliseconds that the vendor itself took. So both sides can tell what went wrong by themselves, whatever lies
between them. What is remembered is bounded. `GET /report` tells it.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from tests.end_to_end.broken import (
    Exchange,
    Fault,
    Good,
    chunk,
    close_in_body,
    dump,
    html,
    requests,
    reset_at_once,
    reset_in_body,
    stall_in_body,
    status,
)

ONE_PIECE = ("askhandle", "quickchat")
MODELS = (*ONE_PIECE, "misterturing", "newoaks")
SAID = re.compile(r"soak (\d+\.\d+) after (\S+) words (\d+) fault (\S+);")
RECAP_END = "[End of what was said earlier]"
RECAP_CUT = re.compile(r"^…", re.MULTILINE)
LATENCY = (0.12, 0.2)  # seconds until a bot says its first word
GAP = 0.02  # and between two pieces
PIECE = 8  # words
LATE = 0.25  # share of AskHandle's answers that have to be polled for
MOST_ROOMS, MOST_TURNS, MOST_TOLD = 5_000, 50_000, 50


async def inside_an_object(line: Exchange) -> None:
    """All that was promised, and not all that there is. Raw text has to break its promise to be seen as cut at all."""
    if line.operation == "misterturing":
        await close_in_body(line)
        return
    body = line.good.body
    await line.whole(body[: body.index(b'"', len(body) // 2)])


FAULTS: Mapping[str, tuple[Fault, str]] = {  # and what clients are to hear of it
    "reset": (reset_at_once, "vendor_failed"),
    "reset-in-body": (reset_in_body, "vendor_failed"),
    "stall": (stall_in_body, "vendor_timeout"),
    "500": (status(500), "vendor_failed"),
    "503": (status(503), "vendor_failed"),
    "429": (status(429, "retry-after: 1"), "vendor_rate_limited"),
    "truncated": (inside_an_object, "vendor_failed"),
    "html": (html, "vendor_failed"),
}
NOT_TAKEN = "429"


@dataclass(slots=True)
class Room:
    """A vendor conversation: whose it is, its last turn, all that it was asked or told of, and how many turns."""

    chat: str = ""
    last: str = "-"
    known: set[str] = field(default_factory=set)
    turns: int = 0
    opening: float = 0.0  # seconds that it took to open


@dataclass(frozen=True, slots=True)
class Question:
    """A turn that came: its name, what it wants, which turn of its conversation it is, and since when it is served."""

    name: str
    words: int
    fault: str
    turn: int
    began: float


@dataclass
class Books:
    """What was heard, and what was wrong with it. `again`: turns heard too often, and when (the monotonic clock)."""

    rooms: OrderedDict[str, Room] = field(default_factory=OrderedDict)
    heard: OrderedDict[str, int] = field(default_factory=OrderedDict)  # how often, without the first if that failed
    tally: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    again: list[tuple[str, float]] = field(default_factory=list)

    def open(self, handle: str, took: float = 0.0) -> None:
        """A new conversation, which took some seconds to open."""
        self.rooms[handle] = Room(opening=took)
        self.tally["conversations"] += 1
        if len(self.rooms) > MOST_ROOMS:
            self.rooms.popitem(last=False)

    def ask(self, handle: str, text: str, began: float) -> Question:
        """Take a turn in, unless its fault is to be that it is not taken in."""
        self.tally["asked"] += 1
        recap, _, asked = text.rpartition(RECAP_END)
        found = SAID.findall(asked)
        if len(found) != 1 or handle not in self.rooms:
            self.complain("nobody's question, or nobody's conversation", handle, text)
            return Question("?", 1, "none", 0, began)
        name, after, words, fault = found[0]
        room = self.rooms[handle]
        self.rooms.move_to_end(handle)
        fault = "none" if name in self.heard else fault
        self._count(name, fault)
        began -= 0 if room.turns else room.opening
        if fault != NOT_TAKEN:
            self._check(room, name, after, recap)
            room.chat, room.last, room.turns = name.partition(".")[0], name, room.turns + 1
            room.known |= {name, *(told for told, *_ in SAID.findall(recap))}
        return Question(name, int(words), fault, room.turns, began)

    def complain(self, what: str, *more: object) -> None:
        """Write down what must not be."""
        self.tally["wrong"] += 1
        if len(self.wrong) < MOST_TOLD:
            self.wrong.append(f"{what}: {', '.join(map(str, more))}"[:600])

    def _count(self, name: str, fault: str) -> None:
        """A turn is heard once; once more if the first answer to it was a fault."""
        self.heard[name] = self.heard.get(name, 0) + (fault == "none")
        if self.heard[name] > 1 and len(self.again) < MOST_TOLD:
            self.again.append((name, time.monotonic()))
        if fault != "none":
            self.tally[f"fault {fault}"] += 1
        if len(self.heard) > MOST_TURNS:
            self.heard.popitem(last=False)

    def _check(self, room: Room, name: str, after: str, recap: str) -> None:
        """The conversation holds, or is told in the recap, exactly what the question comes after."""
        told = SAID.findall(recap)
        reached = told[-1][0] if told else room.last
        if room.chat not in ("", name.partition(".")[0]):
            self.complain("two chats in one conversation", room, name)
        elif name in room.known:
            self.complain("a turn twice in one conversation", room, name)
        elif room.known & {one for one, *_ in told}:
            self.complain("told again what it knows", room, name, told)
        elif reached != after:
            self.complain(f"asked what comes after {after}", room, name, told)
        elif told and room.turns and told[0][1] != room.last and not RECAP_CUT.search(recap):
            self.complain("a recap that leaves something out", room, name, told)


class Vendors:
    """All four behind one port: `/newoaks/…`, `/quickchat/…` and so on."""

    def __init__(self, seed: int) -> None:
        self.books = Books()
        self._chance = Random(seed)
        self._numbers = count(1)
        self._late: OrderedDict[str, tuple[str, float]] = OrderedDict()  # answers to be polled for, and since when
        self._thinking: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            async for head, body in requests(reader):
                began = time.monotonic()
                path = head.split(b" ", 2)[1].decode()
                line = Exchange(reader, writer, path.split("/")[1], Good(b"", (b"", b"")), "")
                if not await self._answer(line, path, json.loads(body) if body else {}, began):
                    break
        except TimeoutError:
            self.books.complain("nobody hung up on an answer that stalled")
        except (OSError, asyncio.IncompleteReadError):
            self.books.tally["hung up on"] += 1
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: Exchange, path: str, body: Mapping[str, Any], began: float) -> bool:
        """Answer a call; False: that was the last on this line."""
        vendor, books = line.operation, self.books
        if vendor == "report":
            return await _whole(line, {"tally": books.tally, "wrong": books.wrong, "again": books.again})
        if path.endswith(("/rooms/", "GetSession", "/conversation/")):
            return await self._open(line, began)
        if vendor == "askhandle" and not body:
            uuid = path.strip("/").rpartition("/")[2]
            text, since = self._late.pop(uuid, ("", 0.0))
            return await _whole(line, {"uuid": uuid, "support_answer": text and f"{text} took {_ms(since)}"})
        handle = str(body.get("sessionID") or body.get("conversation_id") or body.get("conv_id") or "")
        if vendor == "askhandle":
            handle = str(body["room"]["uuid"])
        elif not handle:  # Quickchat opens by answering
            books.open(handle := str(next(self._numbers)))
        text = str(body.get("content") or body.get("text") or body.get("body") or body.get("message"))
        question = books.ask(handle, text, began)
        if question.fault != "none":
            await self._fail(line, handle, question, at_once=body.get("stream") is False)
            return False
        if vendor in ONE_PIECE or body.get("stream") is False:
            return await self._at_once(line, handle, question)
        await _head(line, "text/event-stream; charset=utf-8", "transfer-encoding: chunked")
        async for frame in _frames(vendor, self._spoken(question)):
            await line.send(chunk(frame))
        await line.send(b"0\r\n\r\n")
        return True

    async def _open(self, line: Exchange, began: float) -> bool:
        await asyncio.sleep(LATENCY[0] / 4)
        number = next(self._numbers)
        self.books.open(str(number), time.monotonic() - began)
        forms = {
            "askhandle": {"uuid": str(number)},
            "misterturing": {"conversation_id": str(number)},
            "newoaks": {"Success": True, "Data": {"SessionID": number}},
        }
        return await _whole(line, forms[line.operation])

    async def _at_once(self, line: Exchange, handle: str, question: Question) -> bool:
        if line.operation == "askhandle" and self._chance.random() < LATE:
            uuid = f"late{next(self._numbers)}"
            task = asyncio.create_task(self._think(uuid, question))
            self._thinking.add(task)
            task.add_done_callback(self._thinking.discard)
            return await _whole(line, {"uuid": uuid, "support_answer": ""})
        return await _whole(line, _form(line.operation, handle, await _joined(self._spoken(question))))

    async def _think(self, uuid: str, question: Question) -> None:
        text, _, _ = (await _joined(self._spoken(question))).rpartition(" took ")
        self._late[uuid] = text, question.began
        if len(self._late) > MOST_ROOMS:
            self._late.popitem(last=False)

    async def _fail(self, line: Exchange, handle: str, question: Question, *, at_once: bool) -> None:
        pieces, vendor = self._spoken(question), line.operation
        if at_once or vendor in ONE_PIECE:
            line.good = Good(dump(_form(vendor, handle, await _joined(pieces))), (b"", b""))
        else:
            body = b"".join([frame async for frame in _frames(vendor, pieces)])
            line.good = Good(body, (b"", b""), "text/event-stream; charset=utf-8")
        fault, _ = FAULTS[question.fault]
        await fault(line)

    async def _spoken(self, question: Question) -> AsyncIterator[str]:
        """The answer, piece by piece, as fast as this bot thinks."""
        await asyncio.sleep(self._chance.uniform(*LATENCY))
        said = f"{question.name} is turn {question.turn}:"
        for word in range(question.words):
            said += f" {word}"
            if word % PIECE == PIECE - 1:
                yield said
                said = ""
                await asyncio.sleep(GAP)
        yield f"{said} took {_ms(question.began)}"


def _ms(since: float) -> str:
    return f"{(time.monotonic() - since) * 1000:.1f}"


async def _joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


async def _frames(vendor: str, pieces: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """A stream as this vendor writes it."""
    whole = ""
    async for piece in pieces:
        whole += piece
        yield piece.encode() if vendor == "misterturing" else dump({"content": piece}) + b"\n"
    if vendor == "newoaks":
        yield dump({"QuestionID": 1, "AnswerID": 2, "Answer": whole, "TotalToken": len(whole) // 4}) + b"\n"


def _form(vendor: str, handle: str, text: str) -> Mapping[str, object]:
    """A whole answer as this vendor writes it."""
    forms: Mapping[str, Mapping[str, object]] = {
        "askhandle": {"uuid": "asked", "support_answer": text},
        "quickchat": {"conv_id": handle, "reply": text},
        "newoaks": {"Success": True, "Code": 200, "Data": {"content": text, "totalToken": len(text) // 4}},
    }
    return forms[vendor]


async def _head(line: Exchange, kind: str, length: str) -> None:
    await line.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{length}\r\n\r\n".encode())


async def _whole(line: Exchange, found: object) -> bool:
    body = dump(found)
    await _head(line, "application/json", f"content-length: {len(body)}")
    await line.send(body)
    return True


async def main(seed: int) -> None:
    """Serve on a free port, which is printed, until the process is ended."""
    server = await asyncio.start_server(Vendors(seed).serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
