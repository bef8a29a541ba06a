"""aiohttp under httpx2's interface: what comes back is what httpx2's own transport would give. Real sockets."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from proxy.vendors.transport import AiohttpTransport
from tests.end_to_end.broken import papers

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"


@dataclass
class Vendor:
    """A server that says on each line what it is told to, and keeps what it heard."""

    url: str = ""
    lines: int = 0
    heard: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def saying(*answers: bytes, hangs_up: bool = False, unasked: bytes = b"") -> AsyncIterator[Vendor]:
    """A vendor that gives these answers on every line, and then hangs up, says something unasked, or nothing more."""
    vendor = Vendor()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        vendor.lines += 1
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):  # the other side has gone
            for answer in answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
                vendor.heard.append(head + await reader.readexactly(int(length or 0)))
                writer.write(answer)
            if unasked:
                await asyncio.sleep(0.01)
                writer.write(unasked)
            if not hangs_up:
                await reader.read()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        vendor.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield vendor


@asynccontextmanager
async def connected(
    *, max_connections: int = 2, trust_env: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(
        max_connections=max_connections,
        keepalive=4,
        connect_timeout=0.5,
        tls=tls or httpx2.create_ssl_context(),
        trust_env=trust_env,
    )
    try:
        yield transport
    finally:
        await transport.aclose()


async def call(transport: AiohttpTransport, url: str, body: bytes | None = None) -> httpx2.Response:
    """An answer, read and closed."""
    method = "GET" if body is None else "POST"
    response = await transport.handle_async_request(httpx2.Request(method, url, content=body))
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response


async def test_what_is_sent_and_what_comes_back() -> None:
    """A request goes out as it was made, with nothing added; an answer's status, headers and bytes come back."""
    answer = (
        b"HTTP/1.1 203 Fine\r\nX-A: 1\r\nX-A: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    async with saying(answer) as vendor, connected() as transport:
        headers = {"X-Key": "sk", "User-Agent": "us"}
        request = httpx2.Request("POST", f"{vendor.url}/a%2Fb?c=%20d", headers=headers, content=b"hello")
        response = await transport.handle_async_request(request)
        body = await response.aread()
        await response.aclose()

    assert (response.status_code, body, response.headers.get_list("x-a")) == (203, b"abcde", ["1", "2"])
    first, *lines = vendor.heard[0].decode().replace("\r\n", "\n").split("\n")
    assert first == "POST /a%2Fb?c=%20d HTTP/1.1"
    told = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines[:-2]}
    assert lines[-2:] == ["", "hello"]
    assert told == {
        "host": vendor.url.removeprefix("http://"),
        "x-key": "sk",
        "user-agent": "us",
        "content-length": "5",
    }


async def test_a_line_is_used_again() -> None:
    """What was read to its end leaves its connection to the next; what was not hangs up."""
    async with saying(OK + b"\r\nok", OK + b"\r\nok", OK + b"\r\no") as vendor, connected() as transport:
        assert (await call(transport, vendor.url)).content == (await call(transport, vendor.url, b"x")).content == b"ok"
        assert vendor.lines == 1
        response = await transport.handle_async_request(httpx2.Request("GET", vendor.url))
        await response.aclose()
        await call(transport, vendor.url)

    assert vendor.lines == 2


@pytest.mark.parametrize("read", [True, False], ids=["read already", "still to be read"])
async def test_a_farewell_answers_nobody(read: bool) -> None:
    """What a vendor says behind its answer before it hangs up is never taken for the answer to the next request."""
    unasked = OK + b"\r\nNO"
    for farewell in (unasked, b""):
        async with saying(OK + b"\r\nok" + farewell, hangs_up=True) as vendor, connected() as transport:
            for _ in range(5):
                assert (await call(transport, vendor.url, b"x")).content == b"ok"
                if read:
                    await asyncio.sleep(0.02)
                else:
                    time.sleep(0.02)  # noqa: ASYNC251 - it has come, but this process has not seen it
        assert vendor.lines == 5


async def test_what_was_said_unasked_answers_nobody() -> None:
    """An answer to nothing, on a line that stays open, is not the answer to the next request."""
    async with saying(OK + b"\r\nok", unasked=OK + b"\r\nNO") as vendor, connected() as transport:
        for _ in range(3):
            assert (await call(transport, vendor.url, b"x")).content == b"ok"
            await asyncio.sleep(0.03)
        assert vendor.lines == 3


async def test_long_heads_are_taken() -> None:
    """An answer may have a header of many kilobytes, and many of them."""
    fields = b"".join(b"x-%d: y\r\n" % n for n in range(300))
    answer = OK + b"x-policy: " + b"z" * 40_000 + b"\r\n" + fields + b"\r\nok"
    async with saying(answer) as vendor, connected() as transport:
        assert len((await call(transport, vendor.url)).headers["x-policy"]) == 40_000


@dataclass
class Relay:
    """Between a client and a server of TLS. Once it is `deaf` it passes nothing on, so that no farewell is answered."""

    port: int
    deaf: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set when the client's end of the line is closed

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", self.port)
        with closing(writer), closing(inner), suppress(ConnectionError):
            answering = asyncio.create_task(self._answer(inner_reader, writer))
            while piece := await reader.read(65536):
                if not self.deaf:
                    inner.write(piece)
            answering.cancel()
        self.gone.set()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)


async def test_a_line_is_hung_up_on_at_once(tmp_path: Path) -> None:
    """Over TLS, too, where a polite farewell may wait long for its answer: who takes no more, hears no more."""
    certificates = papers(tmp_path)
    if certificates is None:
        pytest.skip("there is no openssl to make certificates with")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"\r\no")
            await reader.read()

    trusting = ssl.create_default_context(cafile=str(certificates.root))
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificates.trusted) as server:
        relay = Relay(server.sockets[0].getsockname()[1])
        async with (
            await asyncio.start_server(relay.talk, "127.0.0.1", 0) as front,
            connected(tls=trusting) as transport,
        ):
            url = f"https://127.0.0.1:{front.sockets[0].getsockname()[1]}"
            response = await transport.handle_async_request(httpx2.Request("GET", url))
            relay.deaf = True
            await response.aclose()
            await asyncio.wait_for(relay.gone.wait(), 3)


async def test_nothing_is_remembered_or_followed() -> None:
    """Cookies stay with nobody, a redirect is an answer, a coded body stays as it is."""
    redirect = b"HTTP/1.1 307 Go\r\nlocation: /elsewhere\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
    coded = OK + b"content-encoding: br\r\n\r\nok"
    async with saying(redirect, coded) as vendor, connected() as transport:
        assert (await call(transport, vendor.url)).status_code == 307
        response = await transport.handle_async_request(httpx2.Request("GET", vendor.url))
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        assert [piece async for piece in response.stream] == [b"ok"]
        await response.aclose()

    assert len(vendor.heard) == 2
    assert not any(b"ookie" in heard for heard in vendor.heard)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", httpx2.RemoteProtocolError),
        (b"nonsense\r\n\r\n", httpx2.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", httpx2.ReadError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", httpx2.ReadError),
    ],
    ids=["nothing", "no HTTP", "too short", "no last chunk"],
)
async def test_what_the_vendor_does_wrong(answer: bytes, fault: type[Exception]) -> None:
    """Faults have httpx2's names, and leave their place to the next request."""
    async with saying(answer, hangs_up=True) as vendor, connected(max_connections=1) as transport:
        for _ in range(2):
            with pytest.raises(fault):
                await call(transport, vendor.url, b"x")


async def test_garbled_chunks_wake_the_reader() -> None:
    """A body that stops being one is a fault at once, also while it is waited for."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"no number\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server, connected() as transport:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(httpx2.ReadError):
            async with asyncio.timeout(5):
                await call(transport, url)


async def test_so_many_at_a_time() -> None:
    """Over `max_connections` a request waits, `connect_timeout` at most; one that was let go makes room."""
    async with saying(OK + b"\r\no") as vendor, connected(max_connections=1) as transport:
        first = await transport.handle_async_request(httpx2.Request("GET", vendor.url))
        with pytest.raises(httpx2.PoolTimeout):
            await transport.handle_async_request(httpx2.Request("GET", vendor.url))
        waiting = asyncio.create_task(transport.handle_async_request(httpx2.Request("GET", vendor.url)))
        await asyncio.sleep(0.01)
        await first.aclose()
        await first.aclose()
        second = await waiting
        with pytest.raises(httpx2.PoolTimeout):
            await transport.handle_async_request(httpx2.Request("GET", vendor.url))
        await second.aclose()


async def test_an_address_where_nobody_is() -> None:
    """No listener, no such name, no TLS: the connection could not be made."""
    async with saying(OK) as vendor, connected() as transport:
        port = int(vendor.url.rpartition(":")[2])
        for url in (f"https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://no-such-name.invalid"):
            with pytest.raises((httpx2.ConnectError, httpx2.ConnectTimeout)):
                await call(transport, url)


async def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy is asked for what it does not except, and only where it has a say."""
    answers = [OK + b"\r\nok"] * 3
    async with saying(*answers) as proxy, saying(*answers) as vendor:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with connected(trust_env=True) as trusting, connected() as own:
            await call(trusting, "http://vendor.test/a")
            await call(own, vendor.url)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            await call(trusting, vendor.url)

    assert [heard.split(b"\r\n")[0] for heard in proxy.heard] == [b"GET http://vendor.test/a HTTP/1.1"]
    assert len(vendor.heard) == 2


@pytest.mark.parametrize(
    ("environment", "url", "asked"),
    [
        ({"http_proxy": "{proxy}"}, "http://vendor.test/", True),
        ({"http_proxy": "{bare}"}, "http://vendor.test/", True),
        ({"ALL_PROXY": "{proxy}"}, "http://vendor.test/", True),
        ({"ALL_PROXY": "{proxy}", "NO_PROXY": "vendor.test"}, "http://vendor.test/", False),
        ({"http_proxy": "{proxy}", "NO_PROXY": "2001:db8::1"}, "http://[2001:db8::1]/", False),
        ({"http_proxy": "{proxy}", "NO_PROXY": "*"}, "http://vendor.test/", False),
    ],
)
async def test_ways_of_naming_a_proxy(
    environment: dict[str, str], url: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a scheme, for all schemes, with hosts that are excepted: as curl and others read it."""
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with saying(OK + b"\r\nok") as proxy, connected(trust_env=True) as transport:
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(proxy=proxy.url, bare=proxy.url.removeprefix("http://")))
        with suppress(httpx2.TransportError):
            await call(transport, url)
    assert bool(proxy.heard) == asked


async def test_a_proxy_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be reached is told apart from a vendor that cannot."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with connected(trust_env=True) as transport:
        with pytest.raises(httpx2.ProxyError):
            await call(transport, "http://vendor.test/")
