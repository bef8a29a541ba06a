"""Bytes to events: SSE, JSON objects and raw text, whatever way the network cut them. Pure: no I/O, no vendor.

Three decoders of one shape: `feed(bytes)` gives what is complete by now, `close()` what the end of the bytes completes.
All raise FramingError: for bytes that are no UTF-8, for garbage, and for anything longer than `max_line` characters.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_LINE = 1 << 20
_EOL = re.compile(r"\r\n|\r|\n")
_FIELDS = ("data:", "event:", "id:", "retry:", ":", "[DONE]")
_BLANK = " \t\ufeff"
_GAP = re.compile(r"[\s\ufeff]*")
_BRACE = re.compile(r'["{}]')
_IN_STRING = re.compile(r'["\\]')
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class FramingError(ValueError):
    """What arrived is not what was announced. The message never quotes it."""


class RawText:
    """UTF-8 text, also when a character is cut in two; a BOM at the start is dropped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")

    def feed(self, data: bytes) -> str:
        return self._decode(data, final=False)

    def close(self) -> str:
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, *, final: bool) -> str:
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError:
            raise FramingError("the bytes are not UTF-8") from None
        if final and self._decoder.getstate()[0]:  # half a BOM: the decoder would let it pass
            raise FramingError("the bytes are not UTF-8")
        return text


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event; `name` is "message" where the stream gave none."""

    data: str
    name: str = "message"


class EventStream:
    """Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

    Kinder than the standard in one thing: an event whose closing blank line is missing at the end still counts.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._text = RawText()
        self._max = max_line
        self._after_cr = False
        self._open: list[str] = []
        self._open_size = 0
        self._data: list[str] = []
        self._name = ""
        self._size = 0

    def feed(self, data: bytes) -> list[ServerEvent]:
        events = [event for line in self._lines(self._text.feed(data)) if (event := self._take(line))]
        self._bound(self._size + self._open_size)
        return events

    def close(self) -> list[ServerEvent]:
        self._text.close()
        events = [event for line in ("".join(self._open), "") if (event := self._take(line))]
        self._open = []
        return events

    def _lines(self, text: str) -> list[str]:
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        self._after_cr = self._after_cr or text.endswith("\r")
        first, *rest = _EOL.split(text)
        self._open.append(first)
        self._open_size += len(first)
        if not rest:
            return []
        lines = ["".join(self._open), *rest[:-1]]
        self._open, self._open_size = [rest[-1]], len(rest[-1])
        return lines

    def _take(self, line: str) -> ServerEvent | None:
        if not line:
            event = ServerEvent("\n".join(self._data), self._name or "message") if self._data else None
            self._data, self._name, self._size = [], "", 0
            return event
        self._size += len(line)
        self._bound(self._size)
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None

    def _bound(self, size: int) -> None:
        if size > self._max:
            raise FramingError("one event is too long")


class JsonObjects:
    """JSON objects in any dress: one per line, over several lines, joined without a newline, or as SSE `data:` lines.

    Blank lines, comments, `event:`, `id:` and `retry:` lines and `[DONE]` are dropped. Objects come out as soon as
    their last brace is there; no newline is waited for. An object that is still open at the end is an error.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._text = RawText()
        self._max = max_line
        self._head: str | None = ""  # the beginning of a line not yet understood; None: inside a line
        self._dropping = False
        self._open: list[str] = []
        self._held = self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        return [found for payload in self._payload(self._text.feed(data)) for found in self._objects(payload)]

    def close(self) -> list[dict[str, Any]]:
        self._text.close()
        if self._depth or self._head not in (None, "", "data:"):
            raise FramingError("the stream ended inside an object")
        return []

    def _payload(self, text: str) -> Iterator[str]:
        """The text without its framing. Only the first characters of a line are ever held back."""
        first, *rest = _EOL.split(text)
        yield self._within(first)
        for part in rest:
            self._head, self._dropping = "", False
            yield self._within(part)

    def _within(self, part: str) -> str:
        if self._dropping:
            return ""
        if self._head is None:
            return part
        head = (self._head + part).lstrip(_BLANK)
        rest = head.removeprefix("data:").lstrip(_BLANK)
        self._head = None
        if rest.startswith(_FIELDS[1:]):
            self._dropping = True
        elif any(field.startswith(rest) for field in _FIELDS):
            self._head = "data:" + rest if head.startswith("data:") else rest
        else:
            return rest
        return ""

    def _objects(self, text: str) -> Iterator[dict[str, Any]]:
        at = 0
        while at < len(text):
            if not self._depth:
                at = self._gap(text, at)
            start, at = at, self._scan(text, at)
            self._keep(text[start:at])
            if self._open and not self._depth:
                yield self._parsed()

    def _gap(self, text: str, at: int) -> int:
        match = _GAP.match(text, at)
        at = match.end() if match else at
        if at < len(text) and text[at] != "{":
            raise FramingError("something that is not a JSON object")
        return at

    def _scan(self, text: str, at: int) -> int:
        """Where the open object ends in this text, or the end of the text."""
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_IN_STRING if self._quoted else _BRACE).search(text, at)
            if not match:
                return len(text)
            at = match.end()
            mark = match.group()
            if mark == '"':
                self._quoted = not self._quoted
            elif mark == "\\":
                self._escaped = True
            else:
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    return at
        return at

    def _keep(self, part: str) -> None:
        if part:
            self._open.append(part)
            self._held += len(part)
            if self._held > self._max:
                raise FramingError("one object is too long")

    def _parsed(self) -> dict[str, Any]:
        text = "".join(self._open)
        self._open, self._held = [], 0
        try:
            parsed: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError):
            raise FramingError("something that is not JSON") from None
        return parsed


class Pairs:
    """Joins surrogate pairs that a sender cut between two JSON strings; a half that stays alone becomes U+FFFD."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _mended(text.removesuffix(self._half) if self._half else text)

    def close(self) -> str:
        half, self._half = self._half, ""
        return _mended(half)


def _mended(text: str) -> str:
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
