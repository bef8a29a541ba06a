"""Framing: every way the network can cut the bytes gives the same events."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.framing import EventStream, FramingError, JsonObjects, Pairs, RawText, ServerEvent


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


def run(decoder: Any, parts: list[bytes]) -> list[Any]:
    return [found for part in parts for found in decoder.feed(part)] + list(decoder.close())


def test_raw_text_survives_every_cut() -> None:
    """Raw text joins characters that were cut in two."""
    text = "Olá, você 🙂 – ação"
    data = text.encode()
    for cut in range(len(data) + 1):
        decoder = RawText()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) + decoder.close() == text


def test_raw_text_gives_what_is_complete() -> None:
    """Raw text holds back nothing but the half of a character."""
    decoder = RawText()
    assert decoder.feed("é!".encode()[:1]) == ""
    assert decoder.feed("é!".encode()[1:]) == "é!"


def test_raw_text_drops_a_bom() -> None:
    """Raw text drops a byte order mark at its beginning."""
    decoder = RawText()
    assert decoder.feed(b"\xef") + decoder.feed(b"\xbb\xbfhi") == "hi"


@pytest.mark.parametrize("data", [b"\xff", b"ab\xc3", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xef\xbb"])
@pytest.mark.parametrize("decoder", [RawText, EventStream, JsonObjects])
def test_what_is_no_utf8_is_an_error(decoder: Callable[[], Any], data: bytes) -> None:
    """Every decoder raises FramingError for bytes that are not UTF-8, at the latest at the end."""
    under_test = decoder()
    with pytest.raises(FramingError):
        run(under_test, [data])


SSE = (
    "\ufeff: hello\r\n"
    "data: one\r\n\r\n"
    "event: more\rdata: two\rdata:three\r\r"
    "id: 7\nretry: 10\ndata\n\n"
    "data:  a\u2028b\u0085c\n\n"
    "unknown: x\n\n"
    "event: alone\n\n"
    "data: ünïcødé 🙂\n\n"
    "data: unfinished\n"
).encode()
EVENTS = [
    ServerEvent("one"),
    ServerEvent("two\nthree", "more"),
    ServerEvent(""),
    ServerEvent(" a\u2028b\u0085c"),
    ServerEvent("ünïcødé 🙂"),
    ServerEvent("unfinished"),
]


def test_sse_as_the_standard_has_it() -> None:
    """SSE reads CR, LF and CRLF, comments, joined data, and no other line ends."""
    assert run(EventStream(), [SSE]) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sse_in_small_pieces(size: int) -> None:
    """SSE gives the same events from pieces of one, two or three bytes."""
    assert run(EventStream(), [SSE[i : i + size] for i in range(0, len(SSE), size)]) == EVENTS


@given(st.lists(st.integers(min_value=0), max_size=6))
def test_sse_survives_every_cut(cuts: list[int]) -> None:
    """SSE gives the same events wherever it was cut."""
    assert run(EventStream(), pieces(SSE, cuts)) == EVENTS


def test_sse_is_out_with_its_blank_line() -> None:
    """SSE gives an event as soon as its blank line has begun."""
    decoder = EventStream()
    assert decoder.feed(b"data: a\r\n\r") == [ServerEvent("a")]
    assert decoder.feed(b"\ndata: b\n") == []
    assert decoder.feed(b"\n") == [ServerEvent("b")]


@pytest.mark.parametrize("data", [b"data: " + b"x" * 30, b"data: x\n" * 5, b": x\n" * 10])
def test_sse_is_bounded(data: bytes) -> None:
    """SSE refuses an event that is longer than it may be, in one line or in many."""
    with pytest.raises(FramingError):
        EventStream(max_line=20).feed(data)


def test_sse_bounds_the_event_and_not_the_read() -> None:
    """SSE takes any number of short events in one read."""
    assert len(EventStream(max_line=20).feed(b"data: x\n\n" * 50)) == 50


OBJECTS = [{"content": "\n"}, {"content": 'a "{b}" \\'}, {"content": "🙂é"}, {"n": {"m": {}}, "data": "data: x"}, {}]
LINES = "\n".join(json.dumps(found, ensure_ascii=False) for found in OBJECTS)
DRESSES = {
    "lines": LINES + "\n",
    "no last newline": LINES,
    "joined": LINES.replace("\n", ""),
    "blank lines and CR": LINES.replace("\n", "\r\n \r\n") + "\r",
    "pretty": "\n".join(json.dumps(found, ensure_ascii=False, indent=2) for found in OBJECTS),
    "data": "".join(f"data: {line}\n\n" for line in LINES.split("\n")) + "data: [DONE]\n\n",
    "data without blank": "".join(f"data:{line}\r" for line in LINES.split("\n")) + "[DONE]",
    "all of SSE": "\ufeffretry: 5\n" + "".join(f": x\nevent: e\nid: 1\ndata: {x}\n\n" for x in LINES.split("\n")),
    "pretty data": "".join(
        f"data: {line}\n" for x in OBJECTS for line in json.dumps(x, ensure_ascii=False, indent=1).split("\n")
    ),
    "BOM per line": "\ufeff" + LINES.replace("\n", "\n\ufeff"),
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_objects_in_every_dress(dress: str, size: int) -> None:
    """JSON objects come out the same in every dress and every size of piece."""
    data = DRESSES[dress].encode()
    assert run(JsonObjects(), [data[i : i + size] for i in range(0, len(data), size)]) == OBJECTS


@given(st.sampled_from(sorted(DRESSES)), st.lists(st.integers(min_value=0), max_size=6))
def test_objects_survive_every_cut(dress: str, cuts: list[int]) -> None:
    """JSON objects come out the same wherever their bytes were cut."""
    assert run(JsonObjects(), pieces(DRESSES[dress].encode(), cuts)) == OBJECTS


def test_objects_do_not_wait_for_a_newline() -> None:
    """A JSON object is out as soon as its last brace is there."""
    decoder = JsonObjects()
    assert decoder.feed(b'{"content":"a"') == []
    assert decoder.feed(b'}{"con') == [{"content": "a"}]
    assert decoder.feed(b'tent":"}"}') == [{"content": "}"}]


@pytest.mark.parametrize(
    "data", [b"<html>", b"[1]", b"null", b"{oops}", b"{} x", b"datum: {}", b'{"a":' * 100 + b"[" * 100_000 + b"}" * 100]
)
def test_objects_refuse_garbage(data: bytes) -> None:
    """Whatever is no JSON object is an error, and the error does not quote it."""
    with pytest.raises(FramingError) as caught:
        run(JsonObjects(), [data])
    assert data.decode() not in str(caught.value)


@pytest.mark.parametrize("data", [b'{"content":"a', b'{"content":"a"', b"{", b"dat", b"[DON"])
def test_objects_refuse_an_early_end(data: bytes) -> None:
    """An end in the middle of an object is an error."""
    decoder = JsonObjects()
    decoder.feed(data)
    with pytest.raises(FramingError):
        decoder.close()


def test_objects_are_bounded() -> None:
    """A JSON object that is longer than it may be is an error, also while it is still open."""
    decoder = JsonObjects(max_line=20)
    assert len(decoder.feed(b'{"a":"0123456789"}' * 10)) == 10
    with pytest.raises(FramingError):
        decoder.feed(b'{"a":"0123456789012345')


@given(st.text(st.characters(codec="utf-16")), st.integers(min_value=0))
def test_pairs_join_halves(text: str, cut: int) -> None:
    """Surrogate pairs that were cut in two come out whole."""
    units = [chr(int.from_bytes(text.encode("utf-16-le")[i : i + 2], "little")) for i in range(0, _units(text) * 2, 2)]
    at = cut % (len(units) + 1)
    pairs = Pairs()
    assert pairs.feed("".join(units[:at])) + pairs.feed("".join(units[at:])) + pairs.close() == text


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def test_half_a_pair_alone_is_replaced() -> None:
    """Half a surrogate pair that stays alone becomes a replacement character."""
    pairs = Pairs()
    assert (
        pairs.feed("a\ud83d") + pairs.feed("b\udc00") + pairs.feed("\ud83d") + pairs.close() == "a\ufffdb\ufffd\ufffd"
    )
