"""What a client is given of what a bot says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import NoAnswer, VendorFailed
from proxy.messages import Delta, Event, Finish, Handle, Usage
from proxy.speech import Speech


def spoken(speech: Speech, *pieces: str) -> list[str]:
    """The pieces that go out."""
    events: list[Event] = [*map(Delta, pieces), Finish(usage=Usage(7))]
    return [said.text for event in events for said in speech.heard(event)]


@pytest.mark.parametrize(
    ("stop", "pieces", "given_out"),
    [
        (["END"], ["one END two"], ["one "]),
        (["END"], ["one E", "ND two"], ["one "]),
        (["END"], ["one E", "N", "D two"], ["one "]),
        (["END"], ["one E", "N", "o"], ["one ", "ENo"]),
        (["END"], ["one EN"], ["one ", "EN"]),
        (["END"], ["one EEN", "D"], ["one E"]),
        (["aab"], ["aa", "ab"], ["a"]),
        (["X", "one"], ["no", "ne X"], ["n"]),
        (["\n\n"], ["one\n", "two\n", "\nthree"], ["one", "\ntwo"]),
        (["END"], ["END"], []),
        (["abcd", "bc"], ["abcd"], ["a"]),
        (["abcd", "bc"], ["abc", "d"], ["a"]),
    ],
)
def test_a_reply_ends_where_a_stop_text_begins(stop: list[str], pieces: list[str], given_out: list[str]) -> None:
    """Nothing of a stop text goes out, also where it comes in pieces, and nothing else is lost."""
    assert spoken(Speech(stop=stop), *pieces) == given_out


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.data())
def test_pieces_make_no_difference(text: str, stop: list[str], data: st.DataObject) -> None:
    """However a reply comes in pieces, what goes out is the text before the first stop text."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    speech = Speech(stop=stop)
    found = [(text.find(end) + len(end), text.find(end)) for end in stop if end in text]

    try:
        out = "".join(spoken(speech, *pieces))
    except NoAnswer:
        assert text == ""
    else:
        assert out == speech.text == (text[: min(found)[1]] if found else text)
        assert speech.cut == ("stop" if found else "")
        assert speech.finish == Finish("stop", Usage(7))


@pytest.mark.parametrize(
    ("most", "pieces", "text", "cut"),
    [
        (4, ["12", "34"], "1234", ""),
        (4, ["12", "345"], "1234", "length"),
        (3, ["ää"], "ä", "length"),
        (4, ["a\U0001f469"], "a", "length"),
        (0, ["a"], "", "length"),
    ],
)
def test_a_reply_is_cut_by_its_size(most: int, pieces: list[str], text: str, cut: str) -> None:
    """So many bytes go out and no more, never a part of a character."""
    speech = Speech(most=most)

    assert "".join(spoken(speech, *pieces)) == speech.text == text
    assert (speech.cut, speech.finish.reason) == (cut, cut or "stop")


def test_markup_is_converted_before_it_is_cut() -> None:
    """Stop texts are looked for in what the client is given, not in what the vendor sent."""
    speech = Speech(markdown=True, stop=["**b"])

    assert "".join(spoken(speech, "a <b>b", "</b> c")) == "a "


def test_after_the_cut_nothing_goes_out() -> None:
    """A cut reply may be heard to its end, for its handle and its usage; nothing of it is given."""
    speech = Speech(stop=["."])
    out = [said.text for event in (Delta("a."), Delta("b")) for said in speech.heard(event)]

    assert (out, speech.ended, speech.finish) == (["a"], False, Finish("stop"))
    assert [*speech.heard(Handle({"id": 1})), *speech.heard(Finish(usage=Usage(3)))] == []
    assert (speech.ended, speech.finish, speech.handle) == (True, Finish("stop", Usage(3)), Handle({"id": 1}))


def test_a_reply_must_say_something_and_end() -> None:
    """A blank reply is no answer, and one without an end has failed."""
    with pytest.raises(NoAnswer):
        spoken(Speech(), " ", "\n")
    with pytest.raises(VendorFailed):
        _ = Speech().finish
