"""aiohttp under httpx2's interface: what comes back is what httpx2's own transport would give. Real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

import httpx2
import pytest

from proxy.vendors.transport import AiohttpTransport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Vendor:
    """A server that says on each line what it is told to, and keeps what it heard."""

    url: str = ""
    lines: int = 0
    heard: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def saying(*answers: bytes, hangs_up: bool = False) -> AsyncIterator[Vendor]:
    """A vendor that gives these answers on every line, and then hangs up or says nothing more."""
    vendor = Vendor()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        vendor.lines += 1
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):  # the other side has gone
            for answer in answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
                vendor.heard.append(head + await reader.readexactly(int(length or 0)))
                writer.write(answer)
            if not hangs_up:
                await reader.read()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        vendor.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield vendor


@asynccontextmanager
async def connected(*, max_connections: int = 2, trust_env: bool = False) -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(
        max_connections=max_connections,
        keepalive=4,
        connect_timeout=0.5,
        tls=httpx2.create_ssl_context(),
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


async def test_a_proxy_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be reached is told apart from a vendor that cannot."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with connected(trust_env=True) as transport:
        with pytest.raises(httpx2.ProxyError):
            await call(transport, "http://vendor.test/")
