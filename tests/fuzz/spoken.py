"""Replies on their way out: pieces make no difference to what HTML becomes, nor to where a reply is cut."""

import re
from collections.abc import Sequence

from proxy.errors import NoAnswer
from proxy.markup import HOLD, MarkupFilter
from proxy.messages import Delta, Event, Finish
from proxy.speech import Speech, Stop
from tests.fuzz.target import Target, chance, joined, singles, thirds

APART = "\x1e"


def markup(data: bytes) -> None:
    """The filter gives the same text however it came, one that can be encoded, and leaves plain text alone."""
    text = data.decode(errors="replace")
    whole = converted([text])
    for parts in (singles(text), thirds(text, chance(data))):
        assert converted(parts) == whole, "a cut decides what comes out"
    whole.encode()
    if "<" not in text and "&" not in text:
        assert whole == text


def converted(parts: Sequence[str]) -> str:
    under_test = MarkupFilter()
    out = ""
    for part in parts:
        out += under_test.feed(part)
        assert len(under_test._rest) < HOLD, "too much is held back"
    return out + under_test.flush()


def stop(data: bytes) -> None:
    """What goes out ends where the stop text begins that is complete first. Input: stop texts, then the reply."""
    *stops, text = data.decode(errors="replace").split(APART)
    stops = [end for end in stops if end][:4] or ["END"]
    expected = before(text, stops)
    for parts in ([text], singles(text), thirds(text, chance(data))):
        assert given(Stop(stops), parts) == expected, "pieces make a difference"


def before(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """As whoever reads along one character at a time would stop."""
    for end in range(1, len(text) + 1):
        ends = [stop for stop in stops if text.endswith(stop, 0, end)]
        if ends:
            return text[: end - max(map(len, ends))], True
    return text, False


def given(under_test: Stop, parts: Sequence[str]) -> tuple[str, bool]:
    out = ""
    for part in parts:
        more, met = under_test.before(part, last=False)
        out += more
        if met:
            return out, True
    more, met = under_test.before("", last=True)
    return out + more, met


def speech(data: bytes) -> None:
    """Markup, stop texts and a limit together give what one after the other gives for the whole reply.

    Input: "m" for Markdown and the limit, stop texts, then the reply.
    """
    head, *stops, text = (APART + data.decode(errors="replace")).split(APART)[1:] + (
        [] if data.count(b"\x1e") else [""]
    )
    number = re.search(r"[0-9]{1,4}", head)
    most = int(number[0]) if number else None
    stops = [end for end in stops if end][:4]
    full = converted([text]) if "m" in head else text
    full, met = before(full, stops) if stops else (full, False)
    fitting = full.encode()[:most].decode(errors="ignore")
    expected = (fitting if fitting.strip() else "", "length" if fitting != full else "stop" if met else "")
    for parts in ([text], singles(text), thirds(text, chance(data))):
        assert spoken(Speech(markdown="m" in head, stop=stops, most=most), parts) == expected


def spoken(under_test: Speech, parts: Sequence[str]) -> tuple[str, str]:
    out: list[str] = []
    try:
        events: list[Event] = [*map(Delta, parts), Finish()]
        for event in events:
            out += (delta.text for delta in under_test.heard(event))
    except NoAnswer:
        assert not under_test.cut
        assert not out or not out[0].isascii()  # invisible characters, which count only at the end
    else:
        assert "".join(out) == under_test.text
    assert all(out)
    return under_test.text, under_test.cut


_TAGS = "<b> </b> <i> </i> <p> </p> <br> <br/> <div> </div> <ul> </ul> <li> </li> </a> <code> </code> <td> <tr> <other>"
_MARKUP = [
    *_TAGS.split(),
    *(
        "<a href='u v'>",
        '<a href="x>y" id=1>',
        "<a href=",
        "<script>",
        "</script>",
        "<!--",
        "-->",
        "<!DOCTYPE x>",
        "<h1>",
    ),
    *("&amp;", "&lt;", "&#39;", "&nope;", "&#xD800;", "&#0;", "&#x110000;", "&", "<", ">", "=", '"', "'", "</style >"),
    *("a", "word", " ", "  ", "\n", "\n\n", "\r\n", "-", "/", "!", "<3", "\u00a0", "🙂", "x" * 130, "K", "ſ", "\u200b"),
]
MARKUP = [piece.encode() for piece in _MARKUP]
STOP = [*b"a a a b b c".split(), b"ab", b"aab", b"aba", b"\x1e", b"\x1e", "é".encode(), b"\n"]
SPEECH = [*STOP, *MARKUP[:12], b" ", b"\n\n", "🙂".encode(), "\u200b".encode(), b"m", b"1", b"7"]
HEADS = [b"", b"m\x1e", b"3\x1e", b"m9\x1e", b"12\x1eab\x1e", b"m\x1e*\x1e", b"m20\x1ea b\x1eaa\x1e", b"0\x1e"]

_HEADED = joined(SPEECH, 12)
TARGETS = [
    Target("markup", markup, joined(MARKUP, 9), MARKUP, ["proxy/markup.py"]),
    Target("stop", stop, joined(STOP, 16), STOP, ["proxy/speech.py"]),
    Target(
        "speech", speech, lambda rng: rng.choice(HEADS) + _HEADED(rng), SPEECH, ["proxy/speech.py", "proxy/markup.py"]
    ),
]
