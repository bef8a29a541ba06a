"""What the vendor adapters call: one HTTP client per bot, deadlines, and foreign faults turned into ours.

A library, not a framework: nothing here calls back into an adapter. With its transport, the only importer of the HTTP
client, which it calls with prepared requests: cookies, redirects and URLs to be merged are of no use here. Every error
says who, what happened and what to do; none holds a credential, the user's text, or free text of the vendor's.
"""

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache, cached_property, lru_cache
from hashlib import sha256
from ssl import SSLContext
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar
from urllib.parse import urlsplit

import httpx2
import orjson
from pydantic import SecretStr, field_validator, model_validator

from proxy import __version__
from proxy.config import ModelOptions, is_loopback
from proxy.errors import (
    ConversationExpired,
    InvalidRequest,
    RateLimited,
    VendorAuthFailed,
    VendorError,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.framing import EventStream, FramingError
from proxy.messages import Event, Handle, Turn
from proxy.patience import Patience
from proxy.vendors.transport import AiohttpTransport

KEEPALIVE = 4  # seconds an unused connection is kept: less than the 5 after which common servers close it
LONGEST_RETRY_AFTER = 86400.0
MOST_HEADS = 64  # sets of headers that are kept ready: an account has one or two, and a new one with each new token
ERROR_BYTES = 16384  # as much of an error's body is read as it takes to find its message

_BEFORE = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)  # faults before anything is sent
_LOST_WHAT = re.compile(r"(?<![a-z])(session|conversation|conv_?id|(chat)?room)", re.IGNORECASE)
_LOST_HOW = re.compile(r"not[\s_]found|(not|n.t|longer)\s+exists?|(in|not a )valid|expired|unknown", re.IGNORECASE)
_TELLING = ("errors", "detail", "error", "message")
_ERROR_CODE = re.compile(r"[A-Z_]{1,40}")


class VendorOptions(ModelOptions):
    """What every vendor's entry has: an address, and whatever says which bot and by what right."""

    bot_key: ClassVar[str]  # the name of the key that says which bot it is

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_none(cls, entry: Any) -> Any:
        """What may be left out is left out where it is set to nothing, as `${NAME:-}` does."""
        optional = {name for name, about in cls.model_fields.items() if about.default is None} | {"base_url"}
        return {k: v for k, v in entry.items() if v != "" or k not in optional} if isinstance(entry, dict) else entry

    @field_validator("base_url")
    @classmethod
    def _usable(cls, url: str) -> str:
        try:
            _ = httpx2.URL(url), urlsplit(url).port
        except (httpx2.InvalidURL, ValueError):
            raise ValueError("is no valid address") from None
        return url.rstrip("/")

    @property
    def bot_id(self) -> str:
        """Which of the account's bots this is; "" where the credential says it."""
        return str(getattr(self, self.bot_key))

    @property
    def credential(self) -> Mapping[str, SecretStr]:
        """The configured secrets under the names of their keys."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if isinstance(value, SecretStr)}


OptionsT = TypeVar("OptionsT", bound=VendorOptions)
Transport = httpx2.AsyncBaseTransport


@dataclass(frozen=True, slots=True)
class Answer:
    """A vendor's whole answer, or the beginning of a long one that says what went wrong. A repr hides the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return orjson.loads(self.body.removeprefix(b"\xef\xbb\xbf"))
        except ValueError:
            return None


def _is_far(url: str) -> bool:
    """Whether the environment's proxies have a say in how to get there: not on this machine."""
    return not is_loopback(urlsplit(url).hostname or "")


@lru_cache(maxsize=1024)
def _address(text: str) -> tuple[httpx2.URL, str]:
    """A URL and its `Host`: to take it apart takes long, and is done anew only for ids not asked for in a while."""
    url = httpx2.URL(text)
    return url, url.netloc.decode("ascii")


@cache
def _tls() -> SSLContext:
    """Who is trusted: read once and not by every bot, since that takes long."""
    context = httpx2.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpBot(ABC, Generic[OptionsT]):
    """One bot behind one HTTP API. `title` is what errors call the vendor, `Options` its part of the configuration."""

    title: ClassVar[str]
    Options: ClassVar[type[VendorOptions]]

    def __init__(self, options: OptionsT, *, transport: Transport | None = None) -> None:
        self.options = options
        self._headers = {
            "user-agent": f"Parley/{__version__}",
            "accept": "*/*",
            "accept-encoding": "identity",
            **{name.lower(): value for name, value in options.headers.items()},
        }
        self._heads: dict[tuple[object, ...], httpx2.Headers] = {}
        self._transport = transport or AiohttpTransport(
            max_connections=options.max_connections,
            keepalive=KEEPALIVE,
            connect_timeout=options.connect_timeout,
            tls=_tls() if options.base_url.startswith("https:") or _is_far(options.base_url) else None,
            trust_env=_is_far(options.base_url),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.options.base_url} {self.options.bot_id}>"

    @cached_property
    def identity(self) -> str:
        """Vendor, base URL, bot id and a digest of the configured credential."""
        secrets = "\0".join(secret.get_secret_value() for secret in self.options.credential.values())
        digest = sha256(secrets.encode()).hexdigest()
        return f"{self.options.vendor}|{self.options.base_url}|{self.options.bot_id}|{digest}"

    def check(self, turn: Turn) -> None:
        """Raise InvalidRequest for anything but text."""
        for attachment in (attachment for message in turn.new for attachment in message.attachments):
            where = attachment.path or "messages"
            raise InvalidRequest(
                f"This bot ({self.title}) takes text only: leave the {attachment.kind} at `{where}` out",
                param=where,
                code="unsupported_value",
            )

    def forwarded(self, turn: Turn) -> Mapping[str, str]:
        """What goes into the vendor's conversation besides messages."""
        return {"priming": turn.priming} if turn.priming else {}

    @abstractmethod
    def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak, as `proxy.ports.Bot` says."""

    async def start(self) -> None:
        """What is to be done once, before the first turn."""

    async def setup(self, create: str | None = None, description: str = "") -> str:
        """What is to be done once, by hand: publish the bot, or create one of this name. Returns a line to print."""
        raise InvalidRequest(f"{self.title} has nothing to set up from here: use its own dashboard")

    async def aclose(self) -> None:
        """Give up all connections."""
        await self._transport.aclose()

    def deadline(self) -> float:
        """When a vendor turn that begins now must be over, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.options.timeout

    async def post(self, path: str, body: object, *, until: float, headers: Mapping[str, str] | None = None) -> Answer:
        """Send JSON (None: no body) and take the whole answer, whatever its status."""
        async with self.stream(path, body, until=until, headers=headers) as arriving:
            return await arriving.read()

    async def get(self, path: str, *, until: float, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask for something and take the whole answer, whatever its status."""
        async with self.stream(path, until=until, headers=headers, method="GET") as arriving:
            return await arriving.read()

    def stream(
        self,
        path: str,
        body: object = None,
        *,
        until: float,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
    ) -> "Arriving":
        """Send JSON and read the answer as it comes: a context, in which the request is sent."""
        sending = _Sending(body)
        url, host = _address(self.options.base_url + path)
        head = self._head(host, headers or {}, json=body is not None).copy()
        if method == "POST" or body is not None:
            head["content-length"] = str(sending.length)
        return Arriving(self, httpx2.Request(method, url, headers=head, stream=sending), sending, until)

    def _head(self, host: str, headers: Mapping[str, str], *, json: bool) -> httpx2.Headers:
        """The headers of a call, its body's length apart. They are the same in nearly every call, so they are kept."""
        key = (host, json, *headers.items())
        if key not in self._heads:
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()
            kind = {"content-type": "application/json"} if json else {}
            self._heads[key] = httpx2.Headers({"host": host, **self._headers, **headers, **kind})
        return self._heads[key]

    def accept(self, answer: Answer, *, handle: Handle | None = None) -> None:
        """Return if the status is 2xx, else raise what it means. `handle` is an earlier turn's, if one was sent."""
        if not 200 <= answer.status < 300:
            message = told(answer.json()) or answer.body[:500].decode("utf-8", "replace")
            self.refuse(answer.status, told=message, handle=handle, headers=answer.headers)

    def refuse(
        self, status: int, *, told: str = "", handle: Handle | None = None, headers: Mapping[str, str] | None = None
    ) -> NoReturn:
        """Raise what a status that is no success means, be it HTTP's or one that an envelope carries.

        `told` is the vendor's own message, which decides whether the handle is lost and is not shown.
        """
        if handle is not None and (status == 404 or (status in (400, 410, 422) and names_lost(told))):
            raise ConversationExpired(f"{self.title} no longer knows this conversation (HTTP {status})")
        kind, what = _MEANINGS.get(status) or _MEANINGS[status // 100 if 300 <= status < 600 else 5]
        code = f", {told}" if _ERROR_CODE.fullmatch(told) else ""
        keys = " and ".join(f"`{key}`" for key in self.options.credential)
        message = f"{self.title} {what.format(status=f'HTTP {status}{code}', keys=keys)}"
        raise kind(message, retry_after=_retry_after(headers or {}))

    def text(self, found: Mapping[str, Any], key: str) -> str:
        """What stands there, "" for nothing or null. Raises VendorFailed if it is anything but text."""
        value = found.get(key)
        if value is not None and not isinstance(value, str):
            raise self.garbled(f"answered with something else than text as `{key}`")
        return value or ""

    def garbled(self, what: str) -> VendorFailed:
        """The error for an answer that is not what this vendor's documents say; `what` must quote nothing of it."""
        return VendorFailed(f"{self.title} {what}: check `base_url`, or tell us that its API has changed")

    @contextmanager
    def opening(self) -> Iterator[None]:
        """For calls that only open a conversation: whatever fails there, no turn was delivered."""
        try:
            yield
        except (VendorFailed, VendorTimeout) as fault:
            raise VendorUnavailable(f"While opening a conversation, {fault.message}", delivered=False) from fault

    def translated(self, fault: Exception, limit: str, *, sent: bool = True) -> RateLimited | VendorError:
        """A foreign exception as one of ours. Theirs must not be chained to it: they may quote what came.

        `limit` is the key of the deadline that held, `sent` says whether anything may have reached the vendor.
        """
        name = type(fault).__name__
        if isinstance(fault, httpx2.PoolTimeout):
            busy = f"All connections to {self.title} are in use: try again in a moment, or raise `max_connections`"
            return RateLimited(busy, code="bot_busy", retry_after=1)
        if not sent and isinstance(fault, httpx2.ConnectTimeout):
            slow = f"{self.title} could not be reached within `connect_timeout`: check `base_url` and the network"
            return VendorUnavailable(slow)
        if not sent:
            return VendorUnavailable(f"{self.title} could not be reached ({name}): check `base_url` and the network")
        if isinstance(fault, (TimeoutError, httpx2.TimeoutException)):
            return VendorTimeout(f"{self.title} took longer than `{limit}` allows: raise it, or ask for less")
        return VendorFailed(f"{self.title} broke off ({name}), maybe after it took the message: look before repeating")


@asynccontextmanager
async def calling(url: str, body: object, *, key: str) -> AsyncIterator[tuple[Answer, AsyncIterator[str]]]:
    """A small client of a proxy like this one, for the terminal: the answer without its body, and its events' data.

    An answer that is no success comes whole, with its body. Raises VendorUnavailable when nobody is there.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=5), trust_env=_is_far(url)) as client,
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            told = b"" if response.is_success else await response.aread()
            yield Answer(response.status_code, response.headers, told), _data(response)
    except (httpx2.HTTPError, httpx2.InvalidURL) as fault:
        raise VendorUnavailable(f"{url} did not answer as it should ({type(fault).__name__})") from None


async def _data(response: httpx2.Response) -> AsyncIterator[str]:
    events = EventStream()
    async for piece in response.aiter_bytes():
        for event in events.feed(piece):
            yield event.data


class Arriving:
    """An answer as it comes. Leaving the context hangs up on what is still to come.

    A FramingError within becomes VendorFailed.
    """

    status: int
    headers: Mapping[str, str]

    def __init__(self, bot: HttpBot[Any], request: httpx2.Request, sending: "_Sending", until: float) -> None:
        self._bot = bot
        self._request = request
        self._sending = sending
        self._until = until
        self._now = asyncio.get_running_loop().time
        self._first_byte = self._now() + bot.options.first_byte_timeout  # 0 once it has come
        self._idle = bot.options.idle_timeout
        self._left = bot.options.max_reply_bytes

    async def __aenter__(self) -> Self:
        self._patience = Patience()
        try:
            with self._patience.until(min(self._first_byte, self._until)):
                response = await self._bot._transport.handle_async_request(self._request)
        except BaseException as fault:
            self._patience.end()
            if not isinstance(fault, (httpx2.HTTPError, OSError)):
                raise
            sent = self._sending.begun if self._sending.length else not isinstance(fault, _BEFORE)
            raise self._bot.translated(fault, self._limit(self._first_byte), sent=sent) from None
        self.status, self.headers = response.status_code, response.headers
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self._stream = response.stream
        coded = response.headers.get("content-encoding", "identity") != "identity"  # though we do not ask for that
        self._pieces = response.aiter_bytes() if coded else aiter(self._stream)
        return self

    async def __aexit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        self._patience.end()
        with suppress(httpx2.HTTPError, OSError):
            if isinstance(self._pieces, AsyncGenerator):
                await self._pieces.aclose()
            await self._stream.aclose()
        if isinstance(fault, FramingError):
            raise self._bot.garbled(f"sent what cannot be read ({fault})") from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes, as the network brings them."""
        at = self._first_byte or self._now() + self._idle
        try:
            with self._patience.until(at if at < self._until else self._until):
                piece = await anext(self._pieces)
        except (httpx2.HTTPError, OSError) as fault:
            raise self._bot.translated(fault, self._limit(at)) from None
        self._first_byte = 0.0
        self._left -= len(piece)
        if self._left < 0:
            raise VendorFailed(f"{self._bot.title} sent more than `max_reply_bytes` allows: raise it, or ask for less")
        return piece

    async def read(self) -> Answer:
        """The whole answer. Of one that is no success anyway its beginning will do, should it be long or break off."""
        parts: list[bytes] = []
        try:
            async for piece in self:
                parts.append(piece)
                if self.status >= 300 and sum(map(len, parts)) > ERROR_BYTES:
                    break
        except VendorError:
            if self.status < 300:
                raise
        return Answer(self.status, self.headers, b"".join(parts))

    async def drain(self, seconds: float = 0.05) -> None:
        """Read what comes after all that matters, so that the connection can be used again; give up after `seconds`."""
        if self.headers.get("content-length") == str(self._bot.options.max_reply_bytes - self._left):
            return  # nothing more comes
        self._until = min(self._until, self._now() + seconds)
        with suppress(VendorError):
            async for _ in self:
                pass

    def _limit(self, at: float) -> str:
        """The configuration key of the deadline that held, where `at` is by when the next bytes were due."""
        return "timeout" if self._until < at else "first_byte_timeout" if self._first_byte else "idle_timeout"


class Words:
    """What of a reply is let out: white space waits for the first word, so that a blank reply can be an error still."""

    def __init__(self) -> None:
        self._blank = ""
        self._said: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._said)

    def __str__(self) -> str:
        return "".join(self._said) or self._blank

    def let_out(self, text: str) -> str:
        """The text, with the white space before it; or nothing yet."""
        if not self._said:
            text = self._blank + text
            if not text.strip():
                self._blank = text
                return ""
        if text:
            self._said.append(text)
        return text


class _Sending(httpx2.AsyncByteStream):
    """A request's body that knows whether it has begun to leave: until then the vendor has seen nothing."""

    def __init__(self, body: object) -> None:
        self._body = b"" if body is None else orjson.dumps(body)
        self.length = len(self._body)
        self.begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.begun:
            raise StopAsyncIteration
        self.begun = True
        body, self._body = self._body, b""  # not kept as long as the reply: what orjson writes holds 4 KiB or more
        return body


_MEANINGS: Mapping[int, tuple[type[VendorError], str]] = {
    401: (VendorAuthFailed, "refused this proxy's credential ({status}): check {keys}"),
    402: (VendorRefused, "wants to be paid ({status}): look at this account's plan"),
    403: (VendorAuthFailed, "refused this proxy's credential ({status}): check {keys} and what it may do"),
    404: (VendorRefused, "knows no such thing ({status}): check the bot's id and `base_url`"),
    408: (VendorTimeout, "says that it took too long ({status}): look before repeating the message"),
    413: (VendorRefused, "finds this message too long ({status}): shorten it"),
    425: (VendorFailed, "was not ready for this message ({status}): look before repeating it"),
    429: (VendorRateLimited, "limits this account's rate ({status}): ask again later, or look at its plan"),
    504: (VendorTimeout, "says that it took too long ({status}): look before repeating the message"),
    3: (VendorFailed, "sent a redirect ({status}), which is never followed: check `base_url`"),
    4: (VendorRefused, "refused this message ({status}): word it otherwise, or look at the bot at the vendor"),
    5: (VendorFailed, "failed ({status}): look at its status page, then before repeating the message"),
}


def told(found: object, where: str = "", depth: int = 6) -> str:
    """What the JSON of an error says: under its usual keys, else the first text, after the fields that lead to it."""
    entries: list[tuple[str, object]] = []
    if isinstance(found, str):
        return f"{where} {found}".strip()
    if isinstance(found, Mapping):
        named = {str(key).lower(): value for key, value in found.items()}
        entries = [(where, named[key]) for key in _TELLING if key in named]
        entries = entries or [(f"{where} {key}", value) for key, value in named.items()]
    if isinstance(found, list):
        entries = [(where, entry) for entry in found]
    return next(filter(None, (told(value, place, depth - 1) for place, value in entries if depth)), "")


def names_lost(told: str) -> bool:
    """Does a vendor's message say that it does not know the conversation any more?"""
    return bool(_LOST_WHAT.search(told) and _LOST_HOW.search(told))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now, of either form: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
