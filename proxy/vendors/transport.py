"""aiohttp's connections under httpx2's transport interface: the same requests, answers and errors, for a fifth of the
time. What else was tried stands in the README's decisions.
"""

import asyncio
import select
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any

import aiohttp
import httpx2
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

MAX_HEAD = 65536  # bytes of a line of an answer's head: aiohttp's own 8190 are fewer than some sites' policies take
MOST_FIELDS = 1000
PIECE = 65536  # bytes of a body that are handed on at once, however much has come

_NOBODY = SSLContext(PROTOCOL_TLS_CLIENT)  # has no certificates to trust

_OURS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (  # the first that fits counts
    (aiohttp.ClientProxyConnectionError, httpx2.ProxyError),  # a ClientConnectorError
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),  # a ClientResponseError
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ServerDisconnectedError, httpx2.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx2.ReadError),
    (aiohttp.ClientOSError, httpx2.ReadError),
    (aiohttp.ClientError, httpx2.TransportError),
)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """At most `max_connections` requests at a time, on connections that are kept for `keepalive` seconds.

    Raises httpx2's errors: PoolTimeout or ConnectTimeout after `connect_timeout` seconds. No redirect is followed, no
    cookie kept, no body decoded. `tls` says who is trusted; without it nobody is. With `trust_env` the environment's
    proxies are used for what it does not except.
    """

    def __init__(
        self, *, max_connections: int, keepalive: float, connect_timeout: float, tls: SSLContext | None, trust_env: bool
    ) -> None:
        self._free = asyncio.Semaphore(max_connections)
        self._keepalive = keepalive
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._trust_env = trust_env
        self._proxies: dict[bytes, str | None] = {}  # by host: the environment is read once, not at every request
        self._session: aiohttp.ClientSession | None = None  # belongs to the event loop that runs at the first request

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer's head; its body is still to come, and its connection in use until the stream is closed."""
        await self._acquire()
        try:
            response = await self._send(request)
        except BaseException:
            self._free.release()
            raise
        return httpx2.Response(
            response.status, headers=response.raw_headers, stream=_Body(response, self._free.release), request=request
        )

    async def aclose(self) -> None:
        """Give up all connections."""
        if self._session is not None:
            await self._session.close()

    async def _acquire(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._free.acquire()
        except TimeoutError:
            raise httpx2.PoolTimeout("all connections are in use") from None

    async def _send(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        session = self._session or self._open()
        host = request.url.netloc
        if host not in self._proxies:
            self._proxies[host] = _proxy(request.url) if self._trust_env else None
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        try:
            return await session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=headers,
                data=_Sent(request.stream) if request.headers.get("content-length", "0") != "0" else None,
                allow_redirects=False,
                proxy=self._proxies[host],
            )
        except aiohttp.ClientError as fault:
            raise _translated(fault) from fault

    def _open(self) -> aiohttp.ClientSession:
        connector = _Lines(limit=0, use_dns_cache=False, keepalive_timeout=self._keepalive, ssl=self._tls or _NOBODY)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=MOST_FIELDS,
        )
        return self._session


class _Lines(aiohttp.TCPConnector):
    """Lines are used again only if nothing came on them unasked, and hung up on at once.

    What aiohttp has no setting for: its own methods, so its minor version is pinned in pyproject.toml.
    """

    async def _get(self, *asked: Any) -> Any:
        while (line := await super()._get(*asked)) is not None and _stirred(line):
            line.close()
        return line

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        should_close = should_close or protocol.should_close
        if should_close:
            protocol.abort()  # TLS would wait for half a minute for the other side's farewell
        super()._release(key, protocol, should_close=should_close)


def _stirred(line: Any) -> bool:
    """Whether the vendor has hung up on an idle line, or said what would be taken for the answer to somebody else.

    It may be read already, or wait to be.
    """
    if line.protocol.should_close:
        return True
    socket = line.transport.get_extra_info("socket")
    if sys.platform == "win32":
        return bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


class _Sent(aiohttp.Payload):
    """A request's body, taken piece by piece when its head has been made."""

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._consumed = True  # so that it is not sent again
        async for piece in self._value:
            await writer.write(piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("it is read once, when it is sent")


class _Body(httpx2.AsyncByteStream):
    """An answer's body, in the pieces that the network brings. Closed before its end it hangs up."""

    def __init__(self, response: aiohttp.ClientResponse, release: Callable[[], None]) -> None:
        self._response = response
        self._release: Callable[[], None] | None = release
        self._line_lost = None
        if response.connection is not None and response.connection.protocol is not None:  # more is to come
            self._line_lost = response.connection.protocol.closed
        if self._line_lost is not None:
            self._line_lost.add_done_callback(self._lost)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._response.content.read(PIECE)
        except aiohttp.ClientError as fault:
            raise _translated(fault) from fault
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        if self._release is None:
            return
        if self._line_lost is not None:
            self._line_lost.remove_done_callback(self._lost)
            self._line_lost.remove_done_callback(_seen)  # of an earlier answer on the same line
            self._line_lost.add_done_callback(_seen)
        self._response.close()
        self._release()
        self._release = None

    def _lost(self, line: asyncio.Future[None]) -> None:
        """Wake whoever waits for more: aiohttp (3.14) does not where it gave up on chunks that are garbled."""
        _seen(line)
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the body is not complete"))


def _seen(line: asyncio.Future[None]) -> None:
    """Nobody needs to be told how a line was lost on which nothing was awaited."""
    if not line.cancelled():
        line.exception()


def _translated(fault: aiohttp.ClientError) -> httpx2.TransportError:
    return next(ours for theirs, ours in _OURS if isinstance(fault, theirs))(type(fault).__name__)


def _proxy(url: httpx2.URL) -> str | None:
    """The environment's proxy for an address, read as the standard library reads it."""
    if any(urllib.request.proxy_bypass(host) for host in (url.netloc.decode("ascii"), url.host)):
        return None
    known = urllib.request.getproxies()
    proxy = known.get(url.scheme) or known.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
