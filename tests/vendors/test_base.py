"""The ground the adapters stand on: faults, deadlines, bounds, and hanging up, the last over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from email.utils import formatdate
from typing import Any, Literal

import httpx2
import pytest
from pydantic import SecretStr

from proxy import __version__
from proxy.config import HeaderSecret
from proxy.errors import (
    ConversationExpired,
    InvalidRequest,
    ProxyError,
    RateLimited,
    VendorAuthFailed,
    VendorError,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.framing import RawText
from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.vendors import UnknownVendor, load, names
from proxy.vendors.base import Answer, HttpBot, VendorOptions, names_lost


class PlainOptions(VendorOptions):
    vendor: Literal["plain"] = "plain"
    key: HeaderSecret = SecretStr("s3cret-key")

    @property
    def bot_id(self) -> str:
        return "bot"

    @property
    def credential(self) -> Mapping[str, SecretStr]:
        return {"key": self.key}


class Plain(HttpBot[PlainOptions]):
    """The smallest adapter: posts the newest text and reads raw text as it comes."""

    title = "Plain Vendor"
    Options = PlainOptions

    async def reply(self, turn: Turn) -> Any:
        async with self.stream("/chat", {"text": turn.new[-1].text}, until=self.deadline()) as arriving:
            if arriving.status != 200:
                self.accept(await arriving.read(), handle=turn.handle)
            decoder = RawText()
            async for piece in arriving:
                yield Delta(decoder.feed(piece))
            decoder.close()
        yield Finish()


TURN = Turn(new=[Message("user", "what the user wrote")])


def mocked(answer: Callable[[httpx2.Request], Any], **options: Any) -> Plain:
    given = PlainOptions.model_validate({"base_url": "http://vendor.test", **options})
    return Plain(given, transport=httpx2.MockTransport(answer))


def raising(fault: Exception, *, begun: bool = True) -> httpx2.AsyncBaseTransport:
    """A transport that fails before or after it took the request's body."""

    class Failing(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            if begun:
                await request.aread()
            raise fault

    return Failing()


FAULTS: list[tuple[Exception, bool, type[ProxyError], bool]] = [
    (httpx2.ConnectError("x"), False, VendorUnavailable, False),
    (httpx2.ConnectTimeout("x"), False, VendorUnavailable, False),
    (httpx2.ProxyError("x"), False, VendorUnavailable, False),
    (httpx2.LocalProtocolError("x"), False, VendorUnavailable, False),
    (httpx2.WriteError("x"), False, VendorUnavailable, False),
    (httpx2.PoolTimeout("x"), False, RateLimited, False),
    (httpx2.ReadTimeout("x"), True, VendorTimeout, True),
    (httpx2.WriteTimeout("x"), True, VendorTimeout, True),
    (httpx2.ReadError("x"), True, VendorFailed, True),
    (httpx2.WriteError("x"), True, VendorFailed, True),
    (httpx2.RemoteProtocolError("x"), True, VendorFailed, True),
    (httpx2.DecodingError("x"), True, VendorFailed, True),
    (OSError("x"), True, VendorFailed, True),
]


@pytest.mark.parametrize(("fault", "begun", "error", "delivered"), FAULTS)
async def test_foreign_faults_become_ours(
    fault: Exception, begun: bool, error: type[ProxyError], delivered: bool
) -> None:
    """Every fault of the HTTP client becomes one of ours; nothing counts as delivered before the body has begun."""
    bot = Plain(PlainOptions(base_url="http://vendor.test"), transport=raising(fault, begun=begun))
    with pytest.raises(ProxyError) as caught:
        await bot.post("/chat", {}, until=bot.deadline())
    assert type(caught.value) is error
    assert caught.value.delivered is delivered
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("fault", "error"), [(fault, error) for fault, _, error, _ in FAULTS[:3] + FAULTS[6:]])
async def test_calls_without_a_body(fault: Exception, error: type[ProxyError]) -> None:
    """What has no body has no moment in which it begins: it was made unless no connection was."""
    bot = Plain(PlainOptions(base_url="http://vendor.test"), transport=raising(fault, begun=False))
    for call in (bot.get("/poll", until=bot.deadline()), bot.post("/rooms", None, until=bot.deadline())):
        with pytest.raises(error):
            await call


async def test_a_full_pool_is_busy() -> None:
    """No free connection is our own `bot_busy`, with a time to come back."""
    bot = Plain(PlainOptions(base_url="http://vendor.test"), transport=raising(httpx2.PoolTimeout("x"), begun=False))
    with pytest.raises(RateLimited) as caught:
        await bot.post("/chat", {}, until=bot.deadline())
    assert (caught.value.code, caught.value.retry_after) == ("bot_busy", 1)


STATUSES: list[tuple[int, type[VendorError], bool]] = [
    (301, VendorFailed, True),
    (307, VendorFailed, True),
    (400, VendorRefused, False),
    (401, VendorAuthFailed, False),
    (402, VendorRefused, False),
    (403, VendorAuthFailed, False),
    (404, VendorRefused, False),
    (408, VendorTimeout, True),
    (413, VendorRefused, False),
    (425, VendorFailed, True),
    (429, VendorRateLimited, False),
    (451, VendorRefused, False),
    (500, VendorFailed, True),
    (503, VendorFailed, True),
    (504, VendorTimeout, True),
    (599, VendorFailed, True),
    (700, VendorFailed, True),
]


@pytest.mark.parametrize(("status", "error", "delivered"), STATUSES)
async def test_statuses(status: int, error: type[VendorError], delivered: bool) -> None:
    """Every status that is no success has its meaning, and says the vendor's name and the status."""
    headers = {"location": "http://elsewhere.test/"}
    bot = mocked(lambda _: httpx2.Response(status, headers=headers, text="what the user wrote"))
    with pytest.raises(VendorError) as caught:
        _ = [event async for event in bot.reply(TURN)]
    assert type(caught.value) is error
    assert caught.value.delivered is delivered
    assert caught.value.message.startswith("Plain Vendor ")
    assert str(status) in caught.value.message
    assert "wrote" not in caught.value.message
    assert "s3cret" not in caught.value.message


def test_refused_credential_names_its_key() -> None:
    """A refused credential says which configuration key to look at; a vendor's short error code may be shown."""
    bot = mocked(lambda _: httpx2.Response(200))
    with pytest.raises(VendorAuthFailed, match=r"refused this proxy's credential \(HTTP 401\): check `key`"):
        bot.refuse(401)
    with pytest.raises(VendorRefused, match=r"\(HTTP 409, CONFLICT\)"):
        bot.refuse(409, told="CONFLICT")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("99999999999999999999", 86400),
        (100, 100),
        (-100, 0),
        ("-3", None),
        ("soon", None),
        ("", None),
        ("Sun, 99 Nov 9999 99:99:99 GMT", None),
    ],
)
def test_retry_after(value: str | int, seconds: float | None) -> None:
    """`Retry-After` is read as seconds or as a date (here: a number), never negative, else ignored."""
    bot = mocked(lambda _: httpx2.Response(200))
    header = value if isinstance(value, str) else formatdate(time.time() + value, usegmt=True)
    with pytest.raises(VendorRateLimited) as caught:
        bot.accept(Answer(429, httpx2.Headers({"Retry-After": header}), b""))
    assert caught.value.retry_after == (None if seconds is None else pytest.approx(seconds, abs=3))


@pytest.mark.parametrize(
    "told",
    [
        "Session not found",
        "conv_id abcd1234 does not exist",
        "invalid sessionID",
        "Conversation expired",
        "room: Object with uuid=x does not exist.",
        "unknown conversation_id",
        "the session doesn't exist",
        "SessionID not exist",
        "CONVERSATION_NOT_FOUND",
    ],
)
def test_lost_handles(told: str) -> None:
    """A 4xx that names the conversation as unknown is a lost handle, but only if one was sent."""
    assert names_lost(told)
    bot = mocked(lambda _: httpx2.Response(200))
    for status in (400, 404, 410, 422):
        with pytest.raises(ConversationExpired):
            bot.refuse(status, told=told, handle=Handle({"id": 1}))
        with pytest.raises(VendorRefused):
            bot.refuse(status, told=told)
    with pytest.raises(VendorFailed):
        bot.refuse(500, told=told, handle=Handle({"id": 1}))
    with pytest.raises(VendorAuthFailed):
        bot.refuse(401, told=told, handle=Handle({"id": 1}))


@pytest.mark.parametrize("told", ["", "text is required", "Invalid api key", "the bedroom is unknown", "session limit"])
def test_not_lost(told: str) -> None:
    """Other messages do not mean a lost handle."""
    assert not names_lost(told)


@pytest.mark.parametrize("fault", [VendorFailed("x"), VendorTimeout("x")])
def test_nothing_is_delivered_while_opening(fault: VendorError) -> None:
    """What would leave a sent turn in doubt only means `unavailable` while a conversation is opened."""
    bot = mocked(lambda _: httpx2.Response(200))
    with pytest.raises(VendorUnavailable) as caught, bot.opening():
        raise fault
    assert not caught.value.delivered


@pytest.mark.parametrize("fault", [VendorAuthFailed("x"), VendorRateLimited("x"), VendorRefused("x"), RateLimited("x")])
def test_opening_keeps_what_is_clear(fault: ProxyError) -> None:
    """A refusal while opening stays what it is."""
    bot = mocked(lambda _: httpx2.Response(200))
    with pytest.raises(type(fault)), bot.opening():
        raise fault


async def test_what_every_request_carries() -> None:
    """Requests carry our name, the configured headers, JSON with its length, and no cookies of an earlier turn."""
    seen: list[httpx2.Request] = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, headers={"set-cookie": "visitor=1; Path=/"}, text="hi")

    bot = mocked(vendor, headers={"x-tenant": "t1"})
    for _ in range(2):
        assert [event async for event in bot.reply(TURN)] == [Delta("hi"), Finish()]
    headers = seen[1].headers
    assert headers["user-agent"] == f"Parley/{__version__}"
    assert headers["x-tenant"] == "t1"
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(seen[1].content))
    assert "cookie" not in headers
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize("size", [2000, 5000])
async def test_replies_are_bounded(size: int) -> None:
    """A reply over its limit is cut off as a failure, plain or streaming; one under it is not."""
    bot = mocked(lambda _: httpx2.Response(200, text="x" * size), max_reply_bytes=3000)
    if size < 3000:
        assert len((await bot.post("/", {}, until=bot.deadline())).body) == size
        return
    with pytest.raises(VendorFailed, match="max_reply_bytes"):
        await bot.post("/", {}, until=bot.deadline())
    with pytest.raises(VendorFailed, match="max_reply_bytes"):
        _ = [event async for event in bot.reply(TURN)]


async def test_a_long_error_page_is_read_in_part() -> None:
    """Of an error page over the limit the status counts all the same."""
    bot = mocked(lambda _: httpx2.Response(401, stream=_Chunks(b"x" * 1000)), max_reply_bytes=3000)
    answer = await bot.post("/", {}, until=bot.deadline())
    assert answer.status == 401
    assert len(answer.body) <= 16384


class _Chunks(httpx2.AsyncByteStream):
    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(100):
            yield self.chunk


def test_nothing_shows_a_secret() -> None:
    """No repr of a bot, its options or an answer shows a credential or a body."""
    bot = mocked(lambda _: httpx2.Response(200), headers={"x-gateway": "s3cret-header"})
    shown = repr(bot) + repr(bot.options) + bot.identity + repr(Answer(200, {}, b"s3cret-body"))
    assert "s3cret" not in shown
    assert bot.identity.startswith("plain|http://vendor.test|bot|")


async def test_most_bots_need_no_setup() -> None:
    """A bot that has nothing to set up says so, and has nothing to do at start-up."""
    bot = mocked(lambda _: httpx2.Response(500))
    await bot.start()
    with pytest.raises(InvalidRequest, match="nothing to set up"):
        await bot.setup()


def test_vendor_names() -> None:
    """The table of vendors is known by name, and a mistyped name is told the nearest."""
    assert {"newoaks", "quickchat"} <= set(names())
    with pytest.raises(UnknownVendor, match="did you mean `newoaks`"):
        load("newoak")
    with pytest.raises(UnknownVendor, match="there are: askhandle"):
        load("zzz")


# Over real sockets: in-process transports neither wait nor hang up.

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Vendor:
    """A server whose every connection is handled by `serve` once the request has arrived."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.requests = 0
        self.connections = 0
        self.hung_up = asyncio.Semaphore(0)  # one more for every connection that the client closed
        self.got_one = asyncio.Semaphore(0)
        self.handlers: set[asyncio.Task[None] | None] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.handlers.add(asyncio.current_task())
        try:
            while await self.request(reader):
                self.requests += 1
                self.got_one.release()
                await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.hung_up.release()
            writer.close()

    async def arrived(self, requests: int) -> None:
        for _ in range(requests):
            await asyncio.wait_for(self.got_one.acquire(), 5)

    async def request(self, reader: asyncio.StreamReader) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return True


@asynccontextmanager
async def serving(serve: Serve, **options: Any) -> AsyncIterator[tuple[Plain, Vendor]]:
    vendor = Vendor(serve)
    server = await asyncio.start_server(vendor.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bot = Plain(PlainOptions.model_validate({"base_url": f"http://127.0.0.1:{port}", **options}))
    try:
        yield bot, vendor
    finally:
        await bot.aclose()
        server.close()
        await server.wait_closed()
        await asyncio.wait_for(asyncio.gather(*filter(None, vendor.handlers)), 5)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One piece, and then nothing until the client goes."""
    writer.write(HEAD + chunk("one"))
    await reader.readexactly(1)


async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk("one") + chunk("two") + b"0\r\n\r\n")


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(1)


async def events(bot: Plain) -> list[Event]:
    return [event async for event in bot.reply(TURN)]


def text(reply: list[Event]) -> str:
    return "".join(event.text for event in reply if isinstance(event, Delta))


async def test_closing_the_generator_hangs_up() -> None:
    """Closing the reply closes the connection at once, without draining it."""
    async with serving(endless) as (bot, vendor):
        async with aclosing(bot.reply(TURN)) as reply:
            assert await anext(reply) == Delta("one")
        await asyncio.wait_for(vendor.hung_up.acquire(), 0.5)


async def test_cancelling_the_task_hangs_up() -> None:
    """Cancelling the task that hears a reply closes the connection at once."""
    async with serving(endless) as (bot, vendor):
        heard = asyncio.Event()

        async def listen() -> None:
            async with aclosing(bot.reply(TURN)) as reply:
                async for _ in reply:
                    heard.set()

        task = asyncio.create_task(listen())
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(vendor.hung_up.acquire(), 0.5)


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_before_the_headers(times: int) -> None:
    """Twenty calls cancelled before an answer begins, even twice over, hang up and leave the pool usable."""
    answering = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (whole if answering else silent)(reader, writer)

    async with serving(serve, max_connections=20, connect_timeout=1) as (bot, vendor):
        tasks = [asyncio.create_task(events(bot)) for _ in range(20)]
        await vendor.arrived(20)
        for _ in range(times):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        for _ in range(20):
            await asyncio.wait_for(vendor.hung_up.acquire(), 0.5)
        answering = True
        replies = await asyncio.gather(*(events(bot) for _ in range(20)))
        assert {text(reply) for reply in replies} == {"onetwo"}


async def test_cancelled_while_connecting() -> None:
    """Calls cancelled while they connect or wait for a connection leave the pool usable."""
    async with serving(whole, max_connections=2, connect_timeout=1) as (bot, _):
        for _ in range(10):
            tasks = [asyncio.create_task(events(bot)) for _ in range(6)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (await events(bot))[-1] == Finish()


async def test_a_finished_connection_is_used_again() -> None:
    """A reply that was heard to its end leaves its connection to the next turn."""
    async with serving(whole) as (bot, vendor):
        for _ in range(5):
            assert (await events(bot))[-1] == Finish()
        assert (vendor.requests, vendor.connections) == (5, 1)


async def sized(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")


async def late_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk("one"))
    await asyncio.sleep(0.01)
    writer.write(b"0\r\n\r\n")


@pytest.mark.parametrize(("serve", "connections"), [(sized, 1), (late_end, 1), (endless, 3)])
async def test_drained_connections_are_used_again(serve: Serve, connections: int) -> None:
    """An answer of which all that matters was heard leaves its connection to the next call, if its end comes soon."""
    async with serving(serve) as (bot, vendor):
        for _ in range(3):
            async with bot.stream("/chat", {}, until=bot.deadline()) as arriving:
                assert await anext(arriving) == b"one"
                await arriving.drain()
        assert (vendor.requests, vendor.connections) == (3, connections)


async def test_first_byte_timeout() -> None:
    """A vendor that does not begin to answer in time is a timeout that names its key, and is hung up on."""
    async with serving(silent, first_byte_timeout=0.1) as (bot, vendor):
        with pytest.raises(VendorTimeout, match="`first_byte_timeout`") as caught:
            await events(bot)
        assert caught.value.delivered
        await asyncio.wait_for(vendor.hung_up.acquire(), 0.5)


async def test_headers_are_no_first_byte() -> None:
    """A vendor that sends headers and then nothing is held to the same time."""

    async def headers_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await reader.readexactly(1)

    async with serving(headers_only, first_byte_timeout=0.1) as (bot, _):
        with pytest.raises(VendorTimeout, match="`first_byte_timeout`"):
            await events(bot)


async def test_idle_timeout() -> None:
    """A stream that falls silent is a timeout that names its key."""
    async with serving(endless, idle_timeout=0.1) as (bot, vendor):
        with pytest.raises(VendorTimeout, match="`idle_timeout`"):
            await events(bot)
        await asyncio.wait_for(vendor.hung_up.acquire(), 0.5)


async def test_timeout_of_the_whole_turn() -> None:
    """A stream that goes on and on ends with the time of the whole turn."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _ in range(100):
            writer.write(chunk("x"))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(drip, timeout=0.2) as (bot, _):
        with pytest.raises(VendorTimeout, match="`timeout`"):
            await events(bot)


async def test_broken_off_is_a_failure() -> None:
    """A body that ends before its last chunk is a failure, and not an end."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk("one"))
        writer.close()

    async with serving(cut) as (bot, _):
        with pytest.raises(VendorFailed) as caught:
            await events(bot)
        assert caught.value.delivered


async def test_no_answer_at_all_is_a_failure() -> None:
    """A connection that is closed instead of answered may have delivered the message."""

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serving(slam) as (bot, _):
        with pytest.raises(VendorFailed) as caught:
            await events(bot)
        assert caught.value.delivered


async def test_nobody_there_is_unavailable() -> None:
    """A refused connection delivered nothing."""
    async with serving(whole) as (bot, _):
        pass
    away = Plain(PlainOptions(base_url=bot.options.base_url))
    with pytest.raises(VendorUnavailable) as caught:
        await events(away)
    assert not caught.value.delivered
    await away.aclose()


async def test_close_as_an_end() -> None:
    """A body without a length ends with its connection."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none")
        writer.close()

    async with serving(close) as (bot, _):
        assert await events(bot) == [Delta("one"), Finish()]


async def test_a_pool_that_stays_full_is_busy() -> None:
    """A call that finds no free connection in time is told so, while the others go on."""
    async with serving(endless, max_connections=1, connect_timeout=0.1) as (bot, _), aclosing(bot.reply(TURN)) as reply:
        await anext(reply)
        with pytest.raises(RateLimited):
            await events(bot)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::1]:9"])
async def test_the_environments_proxy_is_not_for_this_machine(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A bot on this machine is reached directly, whatever proxy the environment names."""
    proxied: list[int] = []
    entry = {"vendor": "newoaks", "base_url": url, "secret_key": "s", "chatbot_id": "b"}
    async with asyncio.timeout(5):
        proxy = await asyncio.start_server(lambda reader, writer: proxied.append(1), "127.0.0.1", 0)
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        bot = load("newoaks")(load("newoaks").Options.model_validate(entry))
        with pytest.raises(VendorUnavailable, match="ConnectError"):
            _ = [event async for event in bot.reply(Turn([Message("user", "Hi")]))]
        await bot.aclose()
        proxy.close()

    assert proxied == []
