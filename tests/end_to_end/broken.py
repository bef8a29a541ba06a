"""A vendor on a raw socket, healthy until it is told how to misbehave, in all five dialects."""

import asyncio
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

REPLY = "This reply has quite a few words, and an umlaut: ü."
LAST_RESORT = 15.0  # seconds until a stalled connection that nobody hangs up on is given up, which is a failure
BOMB = 100 * 1024 * 1024
T = TypeVar("T")


@dataclass(frozen=True)
class Good:
    """What a healthy vendor answers; `endless`: how an answer of the same form begins, and what goes on for ever."""

    body: bytes
    endless: tuple[bytes, bytes]
    kind: str = "application/json"
    status: int = 200


@dataclass
class Exchange:
    """One call: what was asked, what would be the answer, and the line to do other things on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    operation: str
    good: Good
    canary: str
    sent: int = 0

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            self.sent += len(part)

    async def head(self, *lines: str, status: int = 0, kind: str = "") -> None:
        """Status and headers; no more than what is given says how long the body is."""
        first = f"HTTP/1.1 {status or self.good.status} Whatever"
        told = [first, f"content-type: {kind or self.good.kind}", "connection: close", *lines]
        await self.send("\r\n".join([*told, "", ""]).encode())

    async def whole(self, body: bytes, *lines: str, status: int = 0, kind: str = "") -> None:
        await self.head(f"content-length: {len(body)}", *lines, status=status, kind=kind)
        await self.send(body)

    async def half(self) -> None:
        """The headers and half of the answer."""
        await self.head(f"content-length: {len(self.good.body)}")
        await self.send(self.good.body[: len(self.good.body) // 2])

    async def without_end(self, *, most: int = 1 << 30, pause: float = 0) -> None:
        """The answer goes on and on, at once or drop by drop."""
        first, more = self.good.endless
        step = 4 if pause else 0
        more = more if pause else more * (32_768 // len(more))
        await self.send(first)
        while self.sent < most:
            for piece in [more[i : i + step] for i in range(0, len(more), step)] if step else [more]:
                await self.send(piece)
                await asyncio.sleep(pause)

    async def hung_up(self) -> None:
        """Say nothing more until the other side leaves."""
        async with asyncio.timeout(LAST_RESORT):
            while await self.reader.read(65_536):
                pass

    def reset(self) -> None:
        """RST instead of a farewell."""
        line = self.writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Fault = Callable[[Exchange], Awaitable[None]]


class Vendor:
    """What the healthy one knows, and which faults are to come. `heard`: by conversation, what it may have taken in."""

    def __init__(self) -> None:
        self.heard: dict[str, list[str]] = defaultdict(list)
        self.operations: list[str] = []
        self.faults: dict[str, list[tuple[Fault, bool]]] = defaultdict(list)
        self.sent: list[int] = []  # bytes that got out during each fault
        self.stuck: list[str] = []  # faults that nobody hung up on
        self.late = False  # AskHandle: the answer has to be polled for
        self.keeps_alive = False
        self._numbers = count(1)

    def reset(self) -> None:
        """Healthy again, and nothing is known of earlier tests."""
        for known in (self.heard, self.operations, self.faults, self.sent, self.stuck):
            known.clear()
        self.late = self.keeps_alive = False

    def fail(self, fault: Fault, on: str = "ask", *, taken: bool = True) -> None:
        """Let the next call of this kind meet a fault; `taken`: the vendor may have taken the turn in."""
        self.faults[on].append((fault, taken))

    def answer(self, dialect: str, path: str, body: Mapping[str, Any]) -> tuple[str, str, str, Good]:
        """Operation, conversation, text and answer to a call."""
        text = str(body.get("content") or body.get("text") or body.get("body") or body.get("message") or "")
        number = next(self._numbers)
        if dialect == "newoaks":
            return self._newoaks(path, body, text, number)
        if dialect.startswith("quickchat"):
            handle = str(body.get("conv_id", f"c{number}"))
            good = Good(dump({"conv_id": handle, "reply": REPLY}), (b'{"reply": "', b"word "))
            return ("ask" if "conv_id" in body else "open"), handle, text, good
        if dialect == "askhandle":
            return self._askhandle(path, body, text, number)
        if path.endswith("/conversation/"):
            return "open", "", "", Good(dump({"conversation_id": f"m{number}"}), (b'{"id": "', b"x"))
        good = Good(REPLY.encode(), (b"", b"word "), "text/event-stream; charset=utf-8")
        return "ask", str(body["conversation_id"]), text, good

    def _newoaks(self, path: str, body: Mapping[str, Any], text: str, number: int) -> tuple[str, str, str, Good]:
        if path.endswith("GetSession"):
            return "open", "", "", Good(dump({"Success": True, "Data": {"SessionID": number}}), (b'{"Data": "', b"x"))
        if body["stream"]:
            pieces = [dump({"content": f"{word} "}) for word in REPLY.split()]
            lines = b"\n".join([*pieces, dump({"Answer": REPLY, "TotalToken": 9})]) + b"\n"
            return "ask", f"n{body['sessionID']}", text, Good(lines, (b"", dump({"content": "word "}) + b"\n"))
        good = Good(dump({"Success": True, "Data": {"content": REPLY}}), (b'{"Data": {"content": "', b"word "))
        return "ask", f"n{body['sessionID']}", text, good

    def _askhandle(self, path: str, body: Mapping[str, Any], text: str, number: int) -> tuple[str, str, str, Good]:
        if path.endswith("/rooms/"):
            return "open", "", "", Good(dump({"uuid": f"a{number}"}), (b'{"uuid": "', b"x"), status=201)
        polled = not body
        said = {"uuid": f"q{number}", "support_answer": REPLY if polled or not self.late else ""}
        good = Good(dump(said), (b'{"support_answer": "', b"word "), status=200 if polled else 201)
        return ("poll", "", "", good) if polled else ("ask", str(body["room"]["uuid"]), text, good)

    def heard_twice(self) -> list[str]:
        """Questions that one conversation may hold more than once."""
        counts = [Counter(text.rpartition("\n\n")[2] for text in texts) for texts in self.heard.values()]
        return [text for each in counts for text, number in each.items() if number > 1]


def dump(found: object) -> bytes:
    return json.dumps(found).encode()


class Wire:
    """A port of the vendor's, which may be silent, speak plainly or by TLS, and change between them."""

    def __init__(self, vendor: Vendor, canary: str = "") -> None:
        self.vendor = vendor
        self.live = 0
        self.seen = 0
        self.canary = canary
        self.manners: Fault | None = None  # instead of reading a request
        self._server: asyncio.Server | None = None
        self._place = socket.socket()  # holds the port while nobody listens
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Run something where the wire runs."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    def listen(self, context: ssl.SSLContext | None = None) -> None:
        """Accept connections, by TLS if there is a context."""
        self.do(self._listen(context))

    def down(self) -> None:
        """Refuse connections."""
        self.do(self._down())

    def close(self) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._place.close()

    async def _listen(self, context: ssl.SSLContext | None) -> None:
        await self._down()
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._serve, sock=door, ssl=context)

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        await self._down()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.live += 1
        self.seen += 1
        try:
            if self.manners is not None:
                await self.manners(Exchange(reader, writer, "", Good(b"", (b"", b"")), ""))
                return
            async for head, body in requests(reader):
                if not await self._respond(reader, writer, head, body):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except TimeoutError:
            self.vendor.stuck.append("nobody hung up")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self.live -= 1

    async def _respond(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes
    ) -> bool:
        """Answer, or do what was ordered; False: that was the last on this line."""
        _, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        vendor = self.vendor
        operation, handle, text, good = vendor.answer(path.split("/")[1], path, json.loads(body) if body else {})
        vendor.operations.append(operation)
        exchange = Exchange(reader, writer, operation, good, self.canary)
        fault, taken = vendor.faults[operation].pop(0) if vendor.faults[operation] else (None, True)
        if taken and text:
            vendor.heard[handle].append(text)
        if fault is None and vendor.keeps_alive:
            lines = f"content-type: {good.kind}\r\ncontent-length: {len(good.body)}\r\n\r\n"
            await exchange.send(f"HTTP/1.1 {good.status} OK\r\n{lines}".encode() + good.body)
            return True
        try:
            await (fault or healthy)(exchange)
        finally:
            vendor.sent.append(exchange.sent)
        return False


async def requests(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    """Head and body of all that is asked over a line."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        yield head, await reader.readexactly(int(lengths[0]) if lengths else 0)


async def healthy(line: Exchange) -> None:
    await line.whole(line.good.body)


# --- faults


async def reset_at_once(line: Exchange) -> None:
    line.reset()


async def reset_in_headers(line: Exchange) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
    line.reset()


APART = 0.05  # seconds between what is good and what is not: together they may count as one wrong answer


async def reset_in_body(line: Exchange) -> None:
    await line.half()
    line.reset()


async def close_at_once(_: Exchange) -> None:
    """A farewell instead of an answer."""


async def close_in_headers(line: Exchange) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n")


async def close_in_body(line: Exchange) -> None:
    await line.half()


async def stall_at_once(line: Exchange) -> None:
    await line.hung_up()


async def stall_in_headers(line: Exchange) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
    await line.hung_up()


async def stall_in_body(line: Exchange) -> None:
    await line.half()
    await line.hung_up()


async def drip_headers(line: Exchange) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await line.send(b"x-drop: x\r\n")
        await asyncio.sleep(0.03)


async def drip_body(line: Exchange) -> None:
    await line.head()
    await line.without_end(pause=0.02)


async def endless_body(line: Exchange) -> None:
    await line.head()
    await line.without_end()


async def fifty_megabytes(line: Exchange) -> None:
    await line.head(f"content-length: {50 << 20}")
    await line.without_end(most=50 << 20)


async def endless_headers(line: Exchange) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await line.send(b"x-more: %b\r\n" % (b"x" * 1000))


async def endless_header_line(line: Exchange) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\nx-more: ")
    while True:
        await line.send(b"x" * 8192)


async def endless_continue(line: Exchange) -> None:
    while True:
        await line.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
        await asyncio.sleep(0.005)


async def truncated(line: Exchange) -> None:
    await line.whole(line.good.body[: len(line.good.body) // 2])


async def html(line: Exchange) -> None:
    await line.whole(b"<!doctype html><html><body>Back soon</body></html>", kind="text/html; charset=utf-8")


async def invalid_utf8_later(line: Exchange) -> None:
    await line.head("transfer-encoding: chunked")
    middle = len(line.good.body) // 2
    await line.send(chunk(line.good.body[:middle]))
    await asyncio.sleep(APART)
    await line.send(chunk(b"\xff\xfe\xc3" + line.good.body[middle:]), b"0\r\n\r\n")


async def invalid_utf8(line: Exchange) -> None:
    middle = len(line.good.body) // 2
    await line.whole(line.good.body[:middle] + b"\xff\xfe\xc3" + line.good.body[middle:])


async def length_too_large(line: Exchange) -> None:
    await line.head(f"content-length: {len(line.good.body) + 100}")
    await line.send(line.good.body)


async def length_too_small(line: Exchange) -> None:
    middle = len(line.good.body) // 2
    await line.head(f"content-length: {middle}")
    await line.send(line.good.body[:middle])
    await asyncio.sleep(APART)
    await line.send(line.good.body[middle:])


async def two_lengths(line: Exchange) -> None:
    await line.head("content-length: 5", "content-length: 7")
    await line.send(line.good.body)


async def chunks_garbled(line: Exchange) -> None:
    await line.head("transfer-encoding: chunked")
    await line.send(chunk(line.good.body[: len(line.good.body) // 2]))
    await asyncio.sleep(APART)
    await line.send(b"no number\r\nabc\r\n")


async def chunks_cut(line: Exchange) -> None:
    await line.head("transfer-encoding: chunked")
    await line.send(chunk(line.good.body[: len(line.good.body) // 2]))


async def gzip_bomb(line: Exchange) -> None:
    await line.whole(bomb(), "content-encoding: gzip")


async def gzip_garbled(line: Exchange) -> None:
    await line.whole(line.good.body, "content-encoding: gzip")


async def gzip_good(line: Exchange) -> None:
    packer = zlib.compressobj(wbits=31)
    await line.whole(packer.compress(line.good.body) + packer.flush(), "content-encoding: gzip")


async def not_http(line: Exchange) -> None:
    await line.send(b"SSH-2.0-OpenSSH_9.6\r\n")


async def another_type(line: Exchange) -> None:
    await line.whole(line.good.body, kind="image/png")


async def closed_later(line: Exchange) -> None:
    """A good answer, over a connection that is closed all the same."""
    first = f"HTTP/1.1 {line.good.status} OK\r\ncontent-type: {line.good.kind}\r\n"
    await line.send(f"{first}content-length: {len(line.good.body)}\r\n\r\n".encode() + line.good.body)


async def reset_later(line: Exchange) -> None:
    """A good answer, over a connection that is reset some time after it."""
    await closed_later(line)
    await asyncio.sleep(0.1)
    line.reset()


async def plain_talk(line: Exchange) -> None:
    """No TLS: whatever is said is answered by text."""
    await line.reader.read(100)
    await line.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


async def byte_by_byte(line: Exchange) -> None:
    await line.head("transfer-encoding: chunked")
    for byte in line.good.body:
        await line.send(chunk(bytes([byte])))
        await asyncio.sleep(0)
    await line.send(b"0\r\n\r\n")


async def bytes_one_by_one(line: Exchange) -> None:
    head = f"HTTP/1.1 {line.good.status} OK\r\ncontent-type: {line.good.kind}\r\nconnection: close\r\n\r\n"
    for byte in head.encode() + line.good.body:
        await line.send(bytes([byte]))
        await asyncio.sleep(0)


def status(number: int, *lines: str, body: bytes = b'{"detail": "No."}') -> Fault:
    """A status, with a body that names no conversation."""

    async def fault(line: Exchange) -> None:
        await line.whole(body, *lines, status=number, kind="application/json")

    return fault


def status_stalled(number: int, *lines: str) -> Fault:
    """A status whose body does not come."""

    async def fault(line: Exchange) -> None:
        await line.head("content-length: 100", *lines, status=number)
        await line.hung_up()

    return fault


def status_endless(number: int) -> Fault:
    """A status whose body does not end."""

    async def fault(line: Exchange) -> None:
        await line.head(status=number)
        await line.without_end()

    return fault


def redirect(number: int) -> Fault:
    """A redirect to somebody who must not be asked."""

    async def fault(line: Exchange) -> None:
        await line.whole(b"", f"location: {line.canary}/elsewhere", status=number)

    return fault


def envelope(**fields: Any) -> Fault:
    """`Success: false` under HTTP 200."""

    async def fault(line: Exchange) -> None:
        await line.whole(dump({"Success": False, "Data": None, "Message": "No.", **fields}), status=200)

    return fault


async def envelope_midway(line: Exchange) -> None:
    """A failure after the first piece."""
    await line.whole(line.good.endless[1] * 2 + dump({"Success": False, "Code": 500, "Message": "No."}))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@cache
def bomb() -> bytes:
    """A hundred megabytes of zeros, packed."""
    packer = zlib.compressobj(9, wbits=31)
    packed = [packer.compress(b"\0" * (1 << 20)) for _ in range(BOMB >> 20)]
    return b"".join([*packed, packer.flush()])


# --- certificates


@dataclass(frozen=True)
class Papers:
    """Certificates for 127.0.0.1: one that is trusted here, one that is not."""

    trusted: ssl.SSLContext
    stranger: ssl.SSLContext
    root: Path


def papers(folder: Path) -> Papers | None:
    """Made on the spot, so that none can expire; None where nothing is there to make them with."""
    if shutil.which("openssl") is None:
        return None
    contexts = []
    for name in ("trusted", "stranger"):
        key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        made += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"]
        subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=20)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        contexts.append(context)
    return Papers(contexts[0], contexts[1], folder / "trusted.pem")


# --- names


@dataclass
class Names:
    """A resolver that knows one name more than the system's, while it is `known`."""

    name: str = "bot.invalid"
    known: bool = True
    real: Callable[..., Any] = field(default=socket.getaddrinfo)

    def getaddrinfo(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        known = self.known and host in (self.name, self.name.encode())
        return self.real("127.0.0.1" if known else host, *args, **kwargs)


@contextmanager
def wires(number: int) -> Iterator[list[Wire]]:
    """Ports of one vendor that all know the same; nobody listens yet."""
    vendor = Vendor()
    made = [Wire(vendor) for _ in range(number)]
    try:
        yield made
    finally:
        for wire in made:
            wire.close()


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether something comes about in time."""
    ends = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < ends:
        time.sleep(0.002)
    return held
