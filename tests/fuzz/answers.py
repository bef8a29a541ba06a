"""What vendors answer: whatever comes, an adapter keeps the contract of a bot or raises one of our errors, in time.

An input is parted by RS. First stand the flags: a digit that chooses the bot's options, "h" for a turn that continues a
conversation, "s" for one that is streamed. Then the vendor's answers, in the order of the calls; the last one is
repeated. Each is `STATUS SIZE FAULT`, header lines, a blank line and the body, of which SIZE bytes come at a time
(0: all); the fault is "!" (no connection), "~" (breaks off), "?" (falls silent), "." (pauses before
each piece), or none.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import httpx2
import orjson

from proxy.errors import ConversationExpired, ProxyError
from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.openai.errors import envelope, headers
from proxy.vendors import load
from proxy.vendors.base import LONGEST_RETRY_AFTER, HttpBot, VendorOptions
from tests.continuity.timeless import TimelessLoop
from tests.fuzz.target import CANARY, Target

RS = b"\x1e"
SECRET = "wren-secret"
QUESTION = "heron asks"
PAUSE = 50  # seconds: less than a silence may last
TIMEOUT = 120  # seconds of the loop's own clock

MESSAGES = ("/messages/", "/ClientAsk", "/chat", "/chat/")  # ends of the paths that a message is sent to
HANDLES = {
    "askhandle": Handle({"room": "r-1", "nickname": "visitor-1"}),
    "newoaks": Handle({"session": 123}),
    "quickchat": Handle({"conv_id": "c-1"}),
    "misterturing": Handle({"conversation": "c-1"}),
}
_POLLS = {"poll_interval": 20, "poll_timeout": 50}
OPTIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "askhandle": [{"token": SECRET, **_POLLS}, {"username": "u", "password": SECRET, **_POLLS}],
    "newoaks": [{"secret_key": SECRET, "chatbot_id": "b"}],
    "quickchat": [
        {"api_key": SECRET, "scenario_id": "s"},
        {"token": SECRET, "scenario_id": "s", "kb_topic": "request"},
    ],
    "misterturing": [
        {"api_key": SECRET, "assistant_id": "a", **more} for more in ({}, {"framing": "raw"}, {"framing": "sse"})
    ],
}


@dataclass
class Answer(httpx2.AsyncByteStream):
    """One answer of a vendor; `taken` once it is given, `closed` once its reader is through with it."""

    status: int
    lines: Sequence[tuple[bytes, bytes]]
    body: bytes
    size: int
    fault: bytes
    closed: bool = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = self.size or max(1, len(self.body))
        for at in range(0, len(self.body), size):
            await asyncio.sleep(PAUSE if self.fault == b"." else 0)
            yield self.body[at : at + size]
        if self.fault == b"~":
            raise httpx2.ReadError(CANARY)
        if self.fault == b"?":
            await asyncio.sleep(TIMEOUT * 2)

    async def aclose(self) -> None:
        self.closed = True


def answer(record: bytes) -> Answer:
    """An answer as it is written; whatever is not, is 200 with nothing."""
    head, _, body = record.partition(b"\n\n")
    first, *rest = head.split(b"\n")
    status, size = [*map(int, re.findall(rb"[0-9]{1,4}", first)), 200, 0][:2] if b" " in first else (200, 0)
    fault = re.search(rb"[!~?.]", first)
    lines = re.findall(rb"^([\w-]+): ?([\t -~\x80-\xff]*)$", b"\n".join(rest), re.MULTILINE)
    return Answer(min(max(status, 200), 599), lines, body, size, fault[0] if fault else b"")


@dataclass
class Script(httpx2.AsyncBaseTransport):
    """A vendor that gives its answers one after the other. `taken`: the last message sent to it may have arrived."""

    answers: list[Answer] = field(default_factory=list)
    given: list[Answer] = field(default_factory=list)
    taken: bool = False

    def begin(self, answers: list[Answer]) -> None:
        self.answers, self.given, self.taken = answers, [], False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer.fault == b"!":
            raise httpx2.ConnectError(CANARY)
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        if sent := b"".join([part async for part in request.stream]):
            orjson.loads(sent)
        if request.method == "POST" and request.url.path.endswith(MESSAGES):
            self.taken = answer.status < 300
        answer.closed = False
        self.given.append(answer)
        return httpx2.Response(answer.status, headers=list(answer.lines), stream=answer)


@cache
def loop() -> TimelessLoop:
    """One for all inputs: none may leave anything behind in it."""
    return TimelessLoop()


def answers(vendor: str) -> Callable[[bytes], None]:
    """The check of one vendor's adapter."""

    def check(data: bytes) -> None:
        flags, *records = data.split(RS)
        bot, script = made(vendor, int((re.findall(rb"[0-9]", flags) or [b"0"])[0]))
        script.begin([answer(record) for record in records[:12]] or [answer(b"")])
        turn = Turn(
            [Message("user", QUESTION)],
            handle=HANDLES[vendor] if b"h" in flags else None,
            priming="Be kind.",
            metadata={"kb_topic": "billing", "plan": "gold"},
            stream=b"s" in flags,
        )
        events: list[Event] = []
        task = loop().create_task(hear(bot, turn, events))
        loop().settle(TIMEOUT + 1)
        assert task.done(), "a reply goes on for longer than `timeout`"
        assert not asyncio.all_tasks(loop()), "something still runs"
        assert all(given.closed for given in script.given), "an answer is not hung up on"
        in_order(events, turn, failed=task.exception() is not None)
        assert sum(len(event.text) for event in events if isinstance(event, Delta)) <= bot.options.max_reply_bytes
        if (fault := task.exception()) is not None:
            told(fault, events, turn, taken=script.taken and vendor != "newoaks")  # which fails with 200, too

    return check


def made(vendor: str, digit: int) -> tuple[HttpBot[Any], Script]:
    """A bot and its vendor: a new one where it keeps a token that it fetched, else always the same."""
    return new(vendor, digit) if vendor == "askhandle" and digit % 2 else kept(vendor, digit)


def new(vendor: str, digit: int) -> tuple[HttpBot[Any], Script]:
    script = Script()
    return load(vendor)(options(vendor, digit), transport=script), script


kept = cache(new)


@cache
def options(vendor: str, digit: int) -> VendorOptions:
    variants = OPTIONS[vendor]
    bound = {"max_reply_bytes": 200} if digit > 7 else {}
    entry = {"vendor": vendor, "base_url": "http://127.0.0.1/v", **variants[digit % len(variants)], **bound}
    return load(vendor).Options.model_validate(entry)


async def hear(bot: HttpBot[Any], turn: Turn, events: list[Event]) -> None:
    async for event in bot.reply(turn):
        events.append(event)


def in_order(events: Sequence[Event], turn: Turn, *, failed: bool) -> None:
    """Handles and Deltas as they come, one Finish, which is last; texts that can be encoded, words among them."""
    assert [isinstance(event, Finish) for event in events] == [False] * (len(events) - (not failed)) + [True] * (
        not failed
    )
    for event in events:
        if isinstance(event, Handle):
            assert orjson.loads(orjson.dumps(dict(event.data))) == event.data
            assert event != turn.handle
        elif isinstance(event, Delta):
            assert event.text
            event.text.encode()
        elif event.usage is not None:
            assert 0 < event.usage.total_tokens <= 2**53  # what JSON carries everywhere, and what can be added up
    if not failed:
        assert "".join(event.text for event in events if isinstance(event, Delta)).strip()


def told(fault: BaseException, events: Sequence[Event], turn: Turn, *, taken: bool) -> None:
    """Only our errors, that quote nobody, and never say that a message was lost which was taken in."""
    if not isinstance(fault, ProxyError):
        raise fault
    if isinstance(fault, ConversationExpired):
        assert turn.handle is not None
        assert not any(isinstance(event, Delta) for event in events)
    assert fault.delivered or not (taken or any(isinstance(event, Delta) for event in events))
    assert fault.retry_after is None or 0 <= fault.retry_after <= LONGEST_RETRY_AFTER
    told = envelope(fault).decode() + repr(headers(fault))
    cause: BaseException | None = fault
    while cause is not None:
        told += str(cause)
        cause = cause.__cause__
    for word in (CANARY, SECRET, QUESTION):
        assert word not in told


FIRSTS = [
    *[b"200 0", b"200 1", b"200 3", b"200 9"] * 4,
    b"201 0",
    b"200 0 ~",
    b"200 9 .",
    b"200 1 .",
    b"200 2 ?",
    b"0 !",
    b"204 0",
    b"301 0",
]
FIRSTS += [b"%d 0" % status for status in (400, 400, 401, 403, 404, 408, 410, 413, 422, 425, 429, 500, 503, 504, 599)]
TYPES = [b"application/json", b"text/event-stream; charset=utf-8", b"text/html", b"text/plain"]
HEADERS = [b"content-type: " + kind for kind in TYPES]
HEADERS += [
    b"retry-after: " + value for value in (b"5", b"-1", b"1e9", b"99999999999999999999", b"\xb2", b"nan", b"inf")
]
HEADERS += [b"retry-after: Wed, 21 Oct 2015 07:28:00 GMT", b"retry-after: Fri, 31 Dec 9999 23:59:59 -2359"]
HEADERS += [b"retry-after: 1 Jan 0001 00:00:00 +0000", b"content-encoding: gzip", b"set-cookie: a=b", b"location: /x"]
WORDS: Sequence[Any] = [
    "Hi",
    " ",
    "",
    CANARY,
    "é🙂",
    "a\nb",
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    200,
    404,
    429,
    500,
    1.5,
    2**63,
]
WORDS = [
    *WORDS,
    "Hello!",
    "c-9",
    "123456",
    "9" * 30,
    "²",
    "١٢",
    "SESSION_NOT_FOUND",
    "conversation not found",
    "expired",
]
WORDS = [
    *WORDS,
    2**64 - 1,
    "-5",
    "0",
    "null",
    [],
    {},
    "\x00",
    "<p>x</p>",
    "data: x\n\n",
    "room does not exist",
    "1e5",
    "long " * 60,
]
KEYS = {
    "askhandle": "uuid support_answer terminated token detail body message room errors code",
    "newoaks": "Data data SessionID sessionID Success Code code Message error content answer totalToken noAnswer",
    "quickchat": "reply conv_id message error code detail status",
    "misterturing": "conversation_id external_id id uuid data conversation result detail error",
}
WHOLE = {
    "askhandle": [
        {"uuid": "de1e39a5-1"},
        {"uuid": "m-1", "support_answer": None, "terminated": False},
        {"uuid": "m-1", "support_answer": "Hello!"},
        {"token": "f" * 8},
        {"uuid": "m-1", "support_answer": "", "terminated": True},
        {"uuid": "m-1", "support_answer": " Hello!\n"},
    ],
    "newoaks": [
        {"Data": {"SessionID": 123456}, "Success": True, "Code": 200, "Message": ""},
        {"Data": {"Content": "Hello!", "TotalToken": 7, "NoAnswer": True}, "Success": True},
        {"content": "Hel"},
        {"answer": "Hello!", "totalToken": 9},
        {"Success": False, "Code": 404, "Message": "Session not found"},
    ],
    "quickchat": [
        {"reply": "Hello!", "conv_id": "c-9"},
        {"reply": "Hello!"},
        {"errors": [{"conv_id": "is not valid"}]},
    ],
    "misterturing": [{"conversation_id": "c-9"}, {"data": {"id": 5}}, "c-9", {"detail": "conversation expired"}],
}
STREAM = [
    b'{"content":"Hel"}',
    b'{"content":" "}',
    b'{"content":"\\ud83d"}',
    b'{"content":"\\ude42"}',
    b"data: ",
    b"\n",
    b"\n\n",
]
STREAM += [
    b'{"answer":"Hello!","totalToken":5}',
    b"[DONE]",
    b"data: Hel\n\n",
    b"event: x\n",
    b": hm\n",
    b"lo ",
    b"\xef\xbb\xbf",
]
STREAM += [
    "ação".encode(),
    "🙂".encode(),
    b"\xff",
    b"\xc3",
    b"\r",
    b"data:",
    b'{"Success":false,"Code":400}',
    CANARY.encode(),
    b"[" * 90,
]


def value(rng: Random, keys: Sequence[str], depth: int = 3) -> Any:
    """A JSON value under the vendor's names."""
    kind = rng.random()
    if not depth or kind < 0.4:
        return rng.choice(WORDS)
    if kind < 0.9:
        return {rng.choice(keys): value(rng, keys, depth - 1) for _ in range(rng.randrange(4))}
    return [value(rng, keys, depth - 1) for _ in range(rng.randrange(3))]


def body(rng: Random, vendor: str) -> bytes:
    kind = rng.random()
    if kind < 0.45:
        whole = rng.choice(WHOLE[vendor])
        if isinstance(whole, dict) and rng.random() < 0.4:
            whole = {**whole, rng.choice(list(whole)): value(rng, KEYS[vendor].split(), 1)}
        return json.dumps(whole).encode()
    if kind < 0.7:
        return json.dumps(value(rng, KEYS[vendor].split()), ensure_ascii=kind < 0.6).encode()
    return b"".join(rng.choices(STREAM, k=rng.randrange(8)))


IDS = re.compile('123456|"(de1e39a5-1|c-9|f{8})"')


def opening(vendor: str, flags: bytes) -> Sequence[Any]:
    login = [{"token": "f" * 8}] if vendor == "askhandle" and flags[0] % 2 else []
    return login if b"h" in flags or vendor == "quickchat" else [*login, WHOLE[vendor][0]]


def identified(rng: Random, found: Any) -> bytes:
    """An opening's answer, now and then with another id."""
    told = json.dumps(found)
    return (IDS.sub(lambda _: json.dumps(rng.choice(WORDS)), told) if rng.random() < 0.1 else told).encode()


def script(vendor: str) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        records = [bytes([48 + rng.randrange(10)]) + rng.choice([b"", b"h", b"s", b"hs"])]
        if rng.random() < 0.8:  # what comes before the message goes well
            records += [b"200 0\n\n" + identified(rng, found) for found in opening(vendor, records[0])]
        for _ in range(rng.randrange(1, 4)):
            lines = rng.choices(HEADERS, k=rng.randrange(3))
            records.append(b"\n".join([rng.choice(FIRSTS), *lines]) + b"\n\n" + body(rng, vendor))
        return RS.join(records)

    return make


def tokens(vendor: str) -> list[bytes]:
    pieces = [
        *STREAM,
        *(json.dumps(word).encode() for word in WORDS),
        *(b'"%b": ' % key.encode() for key in KEYS[vendor].split()),
    ]
    return [*pieces, *FIRSTS, *(b"\n" + line for line in HEADERS), RS, b"\n\n", b"{", b"}", b'"', b",", b":"]


TARGETS = [
    Target(
        vendor, answers(vendor), script(vendor), tokens(vendor), [f"proxy/vendors/{vendor}.py", "proxy/vendors/base.py"]
    )
    for vendor in HANDLES
]
