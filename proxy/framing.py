"""Bytes to events: SSE, JSON objects and raw text, whatever way the network cut them. Pure: no I/O, no vendor.

Three decoders of one shape: `feed(bytes)` gives what is complete by now, `close()` what the end of the bytes completes.
All raise FramingError: for bytes that are no UTF-8, for garbage, and for anything longer than `max_line` characters.
"""

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

MAX_LINE = 1 << 20
_EOL = re.compile(r"\r\n|\r|\n")
_SKIPPED = re.compile(r"(?:[\s\ufeff]|data:|(?:event|id|retry)?:[^\r\n]*[\r\n]|\[DONE\])*")
_LINES = ("event:", "id:", "retry:", ":")  # dropped with all up to the end of their line
_FIELDS = ("data:", "[DONE]", *_LINES)
_DATA = re.compile(r"(?<=[\r\n])[ \t\ufeff]*data:")  # amid an object that is spread over several lines
_DECODER = json.JSONDecoder()
_UTF8 = codecs.getincrementaldecoder("utf-8-sig")
_MARK = re.compile(r'\\.|["{}]', re.DOTALL)


class FramingError(ValueError):
    """What arrived is not what was announced. The message never quotes it."""


class RawText:
    """UTF-8 text, also when a character is cut in two; a BOM at the start is dropped."""

    def __init__(self) -> None:
        self._decoder = _UTF8("strict")
        self._is_plain = False  # nothing is held back, and no BOM can come any more

    def feed(self, data: bytes, *, final: bool = False) -> str:
        if self._is_plain and data.isascii():
            return data.decode("ascii")
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError:
            raise FramingError("the bytes are not UTF-8") from None
        if final and self._decoder.getstate()[0]:  # half a BOM: the decoder would let it pass
            raise FramingError("the bytes are not UTF-8")
        self._is_plain = bool(text) and not self._decoder.getstate()[0]
        return text

    def close(self) -> str:
        return self.feed(b"", final=True)


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
        self._line: list[str] = []
        self._data: list[str] = []
        self._name = ""
        self._size = 0  # of the event, its open line included

    def feed(self, data: bytes) -> list[ServerEvent]:
        text = self._text.feed(data)
        if not text:
            return []
        parts = _EOL.split(text.removeprefix("\n") if self._after_cr else text)
        self._after_cr = text.endswith("\r")
        events: list[ServerEvent] = []
        for number, part in enumerate(parts):
            if number:
                events += self._end_of_line()
            self._line.append(part)
            self._size += len(part)
            _bound(self._size, self._max)
        return events

    def close(self) -> list[ServerEvent]:
        self._text.close()
        return self._end_of_line() + self._end_of_line()

    def _end_of_line(self) -> list[ServerEvent]:
        line = "".join(self._line)
        self._line = []
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        elif field == "event":
            self._name = value.removeprefix(" ")
        if line:
            return []
        events = [ServerEvent("\n".join(self._data), self._name or "message")] if self._data else []
        self._data, self._name, self._size = [], "", 0
        return events


MAX_FIELD = 4096  # characters of a comment or a field that is still open


class JsonObjects:
    """JSON objects in any dress: one per line, over several lines, joined without a newline, or as SSE `data:` lines.

    Blank lines, comments, `event:`, `id:` and `retry:` lines and `[DONE]` are dropped. Objects come out as soon as
    their last brace is there; no newline is waited for. An object that is still open at the end is an error.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._text = RawText()
        self._max = max_line
        self._rest = ""  # not yet understood: the beginning of a field, or a backslash
        self._open: list[str] = []
        self._held = self._depth = 0
        self._quoted = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        fresh = self._text.feed(data)
        text = self._rest + fresh
        is_open = self._rest and not self._depth and self._rest.startswith(_LINES) and not _EOL.search(fresh)
        found: list[dict[str, Any]] = []
        at = 0 if is_open or text.startswith("{") else self._skip(text, 0)
        while self._depth or text.startswith("{", at):
            if not self._depth and (whole := self._whole(text, at)):
                found.append(whole[0])
                at = self._skip(text, whole[1])
                continue
            start, at = at, self._scan(text, at)
            self._open.append(text[start:at])
            self._held += at - start
            _bound(self._held, self._max)
            if self._depth:
                break
            found.append(self._parsed())
            at = self._skip(text, at)
        self._rest = rest = text[at:]
        if rest:
            _bound(len(rest), min(self._max, MAX_FIELD))
            if not self._depth and not any(field.startswith(rest) or rest.startswith(field) for field in _FIELDS):
                raise FramingError("something that is not a JSON object")
        return found

    def close(self) -> list[dict[str, Any]]:
        self._text.close()
        if self._depth or self._skip(self._rest + "\n", 0) <= len(self._rest):
            raise FramingError("the stream ended inside an object")
        return []

    def _whole(self, text: str, at: int) -> tuple[dict[str, Any], int] | None:
        """The object that begins here and where it ends, if all of it is here and in one piece."""
        try:
            parsed, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        _bound(end - at, self._max)
        return parsed, end

    def _skip(self, text: str, at: int) -> int:
        """Where an object begins, or something not yet understood."""
        match = None if self._depth else _SKIPPED.match(text, at)
        return match.end() if match else at

    def _scan(self, text: str, at: int) -> int:
        """Where the open object ends in this text, or the end of the text; half an escape is left for later."""
        for mark in _MARK.finditer(text, at):
            at = mark.end()
            if mark[0] == '"':
                self._quoted = not self._quoted
            elif mark[0] in "{}" and not self._quoted:
                self._depth += 1 if mark[0] == "{" else -1
                if not self._depth:
                    return at
        return len(text) - text.endswith("\\", at)

    def _parsed(self) -> dict[str, Any]:
        text = _DATA.sub("", "".join(self._open))
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
        if not self._half and text.isascii():
            return text
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        whole = text.removesuffix(self._half)
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def close(self) -> str:
        return "\ufffd" if self._half else ""


def _bound(size: int, most: int) -> None:
    if size > most:
        raise FramingError("one event, object or line is too long")
