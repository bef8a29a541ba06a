"""Mister Turing ("Alan"): https://docs.misterturing.com/assistant/quick-start-sample-it-assistant

A conversation is created, then messages are sent into it; the answer is always a stream of raw text, under the content
type of server-sent events. The documents leave much open: what is inferred is marked.
"""

import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from pydantic import field_validator

from proxy.config import HeaderSecret, Url
from proxy.errors import NoAnswer, VendorRefused
from proxy.framing import EventStream, RawText
from proxy.messages import Delta, Event, Finish, Handle, Turn
from proxy.transcript import compose
from proxy.vendors.base import Answer, HttpBot, VendorOptions, Words

ID_NAMES = ("conversation_id", "external_id", "id", "uuid")  # the documents name none
ID_PLACES = ("data", "conversation", "result")
_NO_STREAM = re.compile(r"json|html", re.IGNORECASE)
LONGEST_HEAD = 2048  # bytes that are looked at to tell SSE from text that begins like it


class MisterTuringOptions(VendorOptions):
    """Which assistant, and the development token. `deploy: start` publishes its latest state when the proxy starts."""

    bot_key = "assistant_id"
    vendor: Literal["misterturing"]
    api_key: HeaderSecret
    assistant_id: str
    auth_template: str = "Bearer {key}"
    framing: Literal["auto", "raw", "sse"] = "auto"
    deploy: Literal["never", "start"] = "never"
    base_url: Url = "https://backend.az.misterturing.com/v4.0"

    @field_validator("auth_template")
    @classmethod
    def _has_a_place_for_the_key(cls, template: str) -> str:
        if template.count("{key}") != 1 or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", template):
            raise ValueError("must hold {key} once, in visible ASCII characters")
        return template


class MisterTuring(HttpBot[MisterTuringOptions]):
    """One assistant. A handle is `{"conversation": str | int}`."""

    title = "Mister Turing"
    Options = MisterTuringOptions

    @property
    def _auth(self) -> Mapping[str, str]:
        key = self.options.api_key.get_secret_value()
        return {"authorization": self.options.auth_template.replace("{key}", key)}

    async def start(self) -> None:
        """Deploy, where the configuration says `deploy: start`."""
        if self.options.deploy == "start":
            await self.deploy()

    async def setup(self, create: str | None = None, description: str = "") -> str:
        """Create an assistant of this name and return its id; without a name, deploy the configured one."""
        if create:
            return await self.create(create, description)
        await self.deploy()
        return f"deployed: {self.options.assistant_id}"

    async def deploy(self) -> None:
        """Make what was last changed in the assistant's flows, extractions and folders the version that answers."""
        await self._ask("/assistant/deploy/", {"assistant_id": self.options.assistant_id}, self.deadline())

    async def create(self, name: str, description: str = "") -> str:
        """Make a new assistant and return its id, the `assistant_id` of a configuration."""
        answer = await self._ask("/assistant/", {"name": name, "description": description}, self.deadline())
        return str(self._id(answer, ("external_id", *ID_NAMES)))

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak, piece by piece: this API has no other way."""
        until = self.deadline()
        handle = turn.handle
        if handle is None:
            handle = await self._open(until)
            yield handle
        message = {
            "message": compose(turn, priming=turn.primes),
            "conversation_id": handle.data["conversation"],
        }
        words = Words()
        async with self.stream("/assistant/chat/", message, until=until, headers=self._auth) as arriving:
            if not 200 <= arriving.status < 300 or _NO_STREAM.search(arriving.headers.get("content-type", "")):
                if text := words.let_out(self._told_at_once(await arriving.read(), turn.handle)):
                    yield Delta(text)
            else:
                decoder = _DECODERS[self.options.framing]()
                async for piece in arriving:
                    if text := words.let_out(decoder.feed(piece)):
                        yield Delta(text)
                if text := words.let_out(decoder.close()):
                    yield Delta(text)
        if not words:
            raise NoAnswer(
                "Mister Turing took the message and said nothing: the assistant may have no flow for it, or its latest "
                "version was never deployed (`parley setup MODEL`)"
            )
        yield Finish()

    async def _open(self, until: float) -> Handle:
        with self.opening():
            answer = await self._ask("/assistant/conversation/", {"assistant_id": self.options.assistant_id}, until)
            return Handle({"conversation": self._id(answer, ID_NAMES)})

    async def _ask(self, path: str, body: object, until: float) -> Answer:
        answer = await self.post(path, body, until=until, headers=self._auth)
        with self._hinting():
            self.accept(answer)
        return answer

    def _told_at_once(self, answer: Answer, handle: Handle | None) -> str:
        """The text of an answer that is no stream: JSON, which with HTTP 200 is the text or an error [inferred]."""
        with self._hinting():
            self.accept(answer, handle=handle)
        found = answer.json()
        if isinstance(found, str):
            return found
        raise self.garbled("answered with JSON or a web page instead of text")

    @contextmanager
    def _hinting(self) -> Iterator[None]:
        """A refusal may come from an assistant that was never deployed [inferred]: say so."""
        try:
            yield
        except VendorRefused as fault:
            hint = "an assistant must be deployed once: `parley setup MODEL`, or `deploy: start`"
            raise VendorRefused(f"{fault.message}; {hint}") from fault

    def _id(self, answer: Answer, names: Sequence[str]) -> str | int:
        """The id in an answer, wherever it is; or the body itself, if it is a JSON string."""
        found = answer.json()
        if isinstance(found, str) and found.strip():
            return found
        top = found if isinstance(found, Mapping) else {}
        for place in (top, *(top[key] for key in ID_PLACES if isinstance(top.get(key), Mapping))):
            for name in names:
                if type(found := place.get(name)) in (str, int) and str(found):
                    return found  # type: ignore[no-any-return] # its type was looked at in the line above
        keys = ", ".join(str(key) for key in list(top)[:20] if re.fullmatch(r"[\w.-]{1,40}", str(key)))
        raise self.garbled(f"told no id under {', '.join(names)} (keys seen: {keys or 'none'})")


class _Decoder(Protocol):
    def feed(self, data: bytes, /) -> str: ...
    def close(self) -> str: ...


class _EventText:
    """The text of server-sent events."""

    def __init__(self) -> None:
        self._events = EventStream()

    def feed(self, data: bytes) -> str:
        return "".join(event.data for event in self._events.feed(data) if event.data != "[DONE]")

    def close(self) -> str:
        return "".join(event.data for event in self._events.close() if event.data != "[DONE]")


class RawOrEvents:
    """Raw text, unless it begins with a whole server-sent event: fields from `data:` or `event:` to a blank line.

    "data:" alone proves nothing: it is Portuguese for "date:".
    """

    def __init__(self) -> None:
        self._head = b""
        self._decoder: _Decoder | None = None

    def feed(self, data: bytes) -> str:
        if self._decoder is not None:
            return self._decoder.feed(data)
        self._head += data
        sse = _looks_like_events(self._head)
        if sse is None and len(self._head) < LONGEST_HEAD:
            return ""
        self._decoder = _EventText() if sse else RawText()
        return self._decoder.feed(self._head)

    def close(self) -> str:
        if self._decoder is not None:
            return self._decoder.close()
        raw = RawText()
        return raw.feed(self._head) + raw.close()


_DECODERS: Mapping[str, Callable[[], _Decoder]] = {"auto": RawOrEvents, "raw": RawText, "sse": _EventText}
_FIRST = (b"data:", b"event:")
_FIELDS = (*_FIRST, b"id:", b"retry:", b":")


def _looks_like_events(head: bytes) -> bool | None:
    """Are these server-sent events? None: it cannot be told yet."""
    if b"\xef\xbb\xbf".startswith(head):
        return None
    *lines, last = re.split(rb"\r\n|\r|\n", head.removeprefix(b"\xef\xbb\xbf"))
    for number, line in enumerate(lines):
        if number and not line:
            return True
        if not line.startswith(_FIELDS if number else _FIRST):
            return False
    fields = _FIELDS if lines else _FIRST
    return None if last.startswith(fields) or any(field.startswith(last) for field in fields) else False
