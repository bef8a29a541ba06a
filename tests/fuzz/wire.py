"""Framing: what comes out does not depend on how the bytes were cut, and is what small references say.

What is guaranteed where the bytes are bad: every cut ends in FramingError, and what came out before it is a beginning
of what the finest cut gives, which knows most before it meets the fault.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from proxy.framing import MAX_FIELD, MAX_LINE, EventStream, FramingError, JsonObjects, Pairs, RawText, ServerEvent
from proxy.vendors.misterturing import LONGEST_HEAD, RawOrEvents
from tests.fuzz.target import CANARY, Target, chance, joined, singles, thirds

BOM = b"\xef\xbb\xbf"


def outcome(decoder: Any, parts: Sequence[bytes]) -> tuple[list[Any], bool]:
    """What came out (of text its characters), and whether it ended in an error."""
    out: list[Any] = []
    try:
        for part in parts:
            out += decoder.feed(part)
        out += decoder.close()
    except FramingError as fault:
        told = str(fault)
    else:
        return out, False
    assert CANARY not in told
    return out, True


def in_every_cut(decoder: Callable[[], Any], data: bytes) -> tuple[list[Any], bool]:
    """What the finest cut gives, which the others were compared with."""
    finest, failed = outcome(decoder(), singles(data))
    for parts in ([data], thirds(data, chance(data))):
        out, broke = outcome(decoder(), parts)
        assert broke == failed, "a cut decides whether this is an error"
        assert repr(out) == repr(finest[: len(out)] if failed else finest), "a cut decides what comes out"
    return finest, failed


def valid(data: bytes) -> tuple[str, bool]:
    """The text up to the first byte that is no UTF-8, and whether that is all."""
    data = data.removeprefix(BOM)
    try:
        return data.decode(), True
    except UnicodeDecodeError as fault:
        return data[: fault.start].decode(), False


def raw(data: bytes) -> None:
    """Raw text is the text, or an error where it is none."""
    text, whole = valid(data)
    assert in_every_cut(RawText, data) == (list(text), not whole)


def bound(data: bytes) -> int:
    """A bound that half of the inputs are read with, so that many reach it."""
    chosen = chance(data)
    return 8 + (chosen >> 3) % 56 if chosen & 1 else MAX_LINE


def events(data: bytes) -> None:
    """Events are what the standard's algorithm makes of the lines; nothing longer than the bound is held."""
    most = bound(data)
    text, whole = valid(data)
    expected, too_long = standard(text, ended=whole, most=most)
    assert in_every_cut(lambda: EventStream(most), data) == (expected, too_long or not whole)


def standard(text: str, *, ended: bool, most: int) -> tuple[list[ServerEvent], bool]:
    """The WHATWG's algorithm, line by line, and whether an event is too long; an event that the end cut off counts."""
    events: list[ServerEvent] = []
    data: list[str] = []
    name, size = "", 0
    *lines, last = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in [*lines, last, ""] if ended else lines:
        size += len(line)
        if size > most:
            return events, True
        if not line:
            events += [ServerEvent("\n".join(data), name or "message")] if data else []
            data, name, size = [], "", 0
        elif line == "data" or line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line == "event" or line.startswith("event:"):
            name = line[6:].removeprefix(" ")
    return events, size + len("" if ended else last) > most


def objects(data: bytes) -> None:
    """Objects are what a JSON parser finds where the dress is a plain one, and none is longer than the bound.

    The bound on a comment or field holds while it is open, so a coarse cut may take what a finer one refuses.
    """
    most = bound(data)
    if most == MAX_LINE and len(data) <= MAX_FIELD:
        out, failed = in_every_cut(lambda: JsonObjects(most), data)
    else:
        out, failed = outcome(JsonObjects(most), singles(data))
        if not failed:
            assert repr(in_every_cut(lambda: JsonObjects(most), data)[0]) == repr(out)
    text, whole = valid(data)
    assert failed or whole
    pure = plain(text) if whole else None
    expected = by_line(text) if whole and pure is None else pure
    if expected is not None:
        too_long = any(length > most for _, length in expected)
        if too_long or pure is not None or (most == MAX_LINE and len(data) <= MAX_FIELD):
            assert failed == too_long
        assert failed or repr(out) == repr([found for found, _ in expected])
    assert all(type(found) is dict for found in out)


def plain(text: str) -> list[tuple[Any, int]] | None:
    """The objects of a text that is nothing else, and their lengths; None for any other."""
    found, at = [], 0
    while at < len(text):
        if text[at].isspace() or text[at] == "\ufeff":
            at += 1
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        found.append((value, end - at))
        at = end
    return found


def by_line(text: str) -> list[tuple[Any, int]] | None:
    """The objects of a text that has whole ones only, each on a line, maybe as `data:`; None for any other."""
    found = []
    for line in map(bare, text.replace("\r", "\n").split("\n")):
        if line.startswith((":", "event:", "id:", "retry:")):
            continue
        payload = bare(line.removeprefix("data:"))
        if payload not in ("", "[DONE]"):
            try:
                found.append((json.loads(payload), len(payload)))
            except (ValueError, RecursionError):
                return None
            if not isinstance(found[-1][0], dict):
                return None
    return found


def bare(line: str) -> str:
    """Without the white space and byte order marks around it."""
    return re.sub(r"^[\s\ufeff]+|[\s\ufeff]+\Z", "", line)


def auto(data: bytes) -> None:
    """Text of either dress is that of the one or of the other, and always the same."""
    if len(data) > LONGEST_HEAD:
        outcome(RawOrEvents(), thirds(data, chance(data)))
        return
    out, failed = in_every_cut(RawOrEvents, data)
    text, whole = valid(data)
    told = "".join(event.data for event in standard(text, ended=whole, most=MAX_LINE)[0] if event.data != "[DONE]")
    assert failed or "".join(out) in (text, told)


def pairs(data: bytes) -> None:
    """Halves that belong together are joined, all others replaced; the input is units of UTF-16."""
    units = "".join(chr(int.from_bytes(data[i : i + 2], "little")) for i in range(0, len(data), 2))
    for parts in ([units], singles(units), thirds(units, chance(data))):
        decoder = Pairs()
        assert "".join(map(decoder.feed, parts)) + decoder.close() == whole_characters(units)


def whole_characters(units: str) -> str:
    """Written out by the definition of UTF-16."""
    out: list[str] = []
    high = 0
    for unit in map(ord, units):
        if high and 0xDC00 <= unit < 0xE000:
            out[-1] = chr(0x10000 + ((high - 0xD800) << 10) + unit - 0xDC00)
        else:
            out.append("\ufffd" if 0xD800 <= unit < 0xE000 else chr(unit))
        high = unit if 0xD800 <= unit < 0xDC00 else 0
    return "".join(out)


TEXT = [b"a", b"one two", b" ", "é".encode(), "🙂".encode(), "\u2028\u0085".encode(), CANARY.encode(), b"\x00"]
BAD = [BOM, b"\xef\xbb", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f", b"\x80", b"\xed\xa0\x80"]
ENDS = [b"\n", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"]
FIELDS = [b"data:", b"data: ", b"data", b"event: x", b"event:", b"event", b": hm", b"id: 7", b"retry: 5", b"datum: x"]
FIELDS += [b"data: [DONE]", b"[DONE]", b":", b"retry", b"id", b"dat", b"data:  x"]
JSON = [
    b'{"a": 1}',
    b"{}",
    b'{"content":"x"}',
    b"{",
    b"}",
    b'{"a":',
    b'"',
    b'"}',
    b"\\",
    b'\\"',
    b"\\u00e9",
    b"\\ud83d",
]
JSON += [b"[", b"]", b",", b"1", b"null", b"NaN", b'{"b": {"c": "}{"}}', b'"k":', b'{"\\\\":"\\""}', b"1e999", b"'"]
DEEP = b'{"a":' + b"[" * 1500 + b"}"  # more than a parser of Python's goes down
UNITS = [unit.to_bytes(2, "little") for unit in (0x41, 0xE9, 0xD83D, 0xDE42, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000)]

_FRAMING = ["proxy/framing.py"]
_LINES = [*FIELDS, *ENDS, *ENDS, *TEXT, *TEXT, b"data: x\n\n", BAD[0]] * 2 + BAD
_OBJECTS = [
    *JSON,
    *JSON,
    *ENDS,
    *FIELDS,
    b'{"a": 1}\n',
    b'data: {"a": 1}\n\n',
    b"{}",
    b" ",
    *TEXT[2:7],
    BAD[0],
] * 2 + BAD
_RAW = [*TEXT, *BAD, b"b", b"\n"]
TARGETS = [
    Target("raw", raw, joined(_RAW, 10), _RAW, _FRAMING),
    Target("events", events, joined(_LINES, 9), _LINES, _FRAMING),
    Target("objects", objects, joined(_OBJECTS, 8), [*_OBJECTS, DEEP], _FRAMING),
    Target("auto", auto, joined(_LINES, 7), _LINES, ["proxy/framing.py", "proxy/vendors/misterturing.py"]),
    Target("pairs", pairs, joined(UNITS, 14), UNITS, _FRAMING),
]
