"""Mister Turing: what is peculiar to it. Its documents show no answer at all, so nearly everything here is inferred."""

import json
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.errors import (
    ConversationExpired,
    NoAnswer,
    VendorAuthFailed,
    VendorError,
    VendorFailed,
    VendorRefused,
    VendorUnavailable,
)
from proxy.framing import FramingError
from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.vendors import load
from proxy.vendors.misterturing import MisterTuring, MisterTuringOptions, RawOrEvents

ENTRY = {"vendor": "misterturing", "api_key": "turing-secret", "assistant_id": "a-1"}
KNOWN = Handle({"conversation": "c-1"})
TEXT = "Olá! \n\nVocê pode pedir férias no portal 🙂\n"


class Body(httpx2.AsyncByteStream):
    """A body in pieces; an exception among them is raised when its turn comes."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    async def __aiter__(self) -> Any:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part


def streamed(*parts: Any) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=Body(parts))


def bot(chat: httpx2.Response, opened: Any = None, **options: Any) -> tuple[MisterTuring, list[httpx2.Request]]:
    """A bot whose vendor answers the chat call with this, every other with `opened`; and the requests that it gets."""
    seen: list[httpx2.Request] = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        if request.url.path.endswith("/chat/"):
            return chat
        return opened if isinstance(opened, httpx2.Response) else httpx2.Response(200, json=opened)

    given_options = MisterTuringOptions.model_validate({**ENTRY, **options})
    return MisterTuring(given_options, transport=httpx2.MockTransport(vendor)), seen


def turn(**fields: Any) -> Turn:
    return Turn(new=[Message("user", "oi")], **fields)


async def said(speaker: MisterTuring, what: Turn, events: list[Event] | None = None) -> list[Event]:
    """All events of a reply; `events` keeps what came before an error."""
    events = [] if events is None else events
    async for event in speaker.reply(what):
        events.append(event)
    return events


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_first_turn_creates_a_conversation() -> None:
    """A turn without handle creates a conversation for the assistant, then sends into it [documented, but the id]."""
    speaker, seen = bot(streamed(TEXT.encode()), {"external_id": "c-9"})
    events = await said(speaker, turn(priming="Seja gentil."))
    assert events == [Handle({"conversation": "c-9"}), Delta(TEXT), Finish()]
    assert [str(request.url) for request in seen] == [
        "https://backend.az.misterturing.com/v4.0/assistant/conversation/",
        "https://backend.az.misterturing.com/v4.0/assistant/chat/",
    ]
    assert json.loads(seen[0].content) == {"assistant_id": "a-1"}
    assert json.loads(seen[1].content) == {"message": "Seja gentil.\n\noi", "conversation_id": "c-9"}
    assert seen[1].headers["authorization"] == "Bearer turing-secret"


async def test_the_header_can_be_changed() -> None:
    """The newer platform's header without a scheme is a template away."""
    speaker, seen = bot(streamed(b"oi"), auth_template="{key}")
    await said(speaker, turn(handle=KNOWN))
    assert seen[0].headers["authorization"] == "turing-secret"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"conversation_id": "c"}, "c"),
        ({"external_id": "c", "id": 5}, "c"),
        ({"id": 5, "uuid": "c"}, 5),
        ({"uuid": "c", "name": "x"}, "c"),
        ({"id": None, "uuid": "c"}, "c"),
        ({"data": {"id": "c"}}, "c"),
        ({"name": "x", "conversation": {"uuid": "c"}}, "c"),
        ({"result": {"conversation_id": "c"}}, "c"),
        ({"data": None, "result": {"external_id": 7}}, 7),
        ("c", "c"),
    ],
)
async def test_where_the_id_may_be(body: Any, expected: str | int) -> None:
    """The conversation's id is found under every likely name, also one level down, and keeps its type."""
    speaker, seen = bot(streamed(b"oi"), body)
    assert (await said(speaker, turn()))[0] == Handle({"conversation": expected})
    assert json.loads(seen[1].content)["conversation_id"] == expected


@pytest.mark.parametrize("body", [{"name": "secret name", "pk": "x", "a b": 1}, [], {"id": True}, {"data": {}}, "", 5])
async def test_no_id_to_be_found(body: Any) -> None:
    """An answer without an id names the keys that it has, and none of their values; nothing is sent."""
    speaker, seen = bot(streamed(b"oi"), body)
    with pytest.raises(VendorUnavailable, match=r"conversation_id.*keys seen: ") as caught:
        await said(speaker, turn())
    assert len(seen) == 1
    assert "secret" not in caught.value.message
    if isinstance(body, dict) and "pk" in body:
        assert "(keys seen: name, pk)" in caught.value.message


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_raw_text_cut_anywhere(size: int) -> None:
    """Raw text comes out to the letter, with its line ends, however its characters are cut."""
    data = TEXT.encode()
    speaker, _ = bot(streamed(*(data[i : i + size] for i in range(0, len(data), size))))
    events = await said(speaker, turn(handle=KNOWN))
    assert text(events) == TEXT
    assert events[-1] == Finish()


SSE = "data: Olá\n\ndata: , tudo\ndata: bem?\n\ndata: [DONE]\n\n".encode()
RAW = [
    "data: 10 de maio\nhora: 10h",
    "data: hoje",
    "data: hoje\n",
    "event: a party",
    "dat",
    "data",
    ": x\n\ny",
    "id: 1\n\ndata: x\n\n",
    "um\ndata: x\n\n",
    "\ndata: x\n\n",
]


@given(st.lists(st.integers(min_value=0), max_size=6))
def test_events_are_told_from_text(cuts: list[int]) -> None:
    """What begins with a whole event is read as events, what does not is text to the letter, wherever it was cut."""
    for data, expected in [(SSE, "Olá, tudo\nbem?"), *((raw.encode(), raw) for raw in RAW)]:
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        decoder = RawOrEvents()
        pieces = [decoder.feed(data[a:b]) for a, b in pairwise(places)]
        assert "".join(pieces) + decoder.close() == expected


def test_text_is_not_held_back() -> None:
    """Text that cannot be an event is out at once, and what could be one for too long is text."""
    assert RawOrEvents().feed(b"O") == "O"
    assert RawOrEvents().feed(b"da") == ""
    assert RawOrEvents().feed(b"dados") == "dados"
    assert len(RawOrEvents().feed(b"data:" + b"x" * 70_000)) == 70_005


@pytest.mark.parametrize(("framing", "expected"), [("raw", SSE.decode()), ("sse", "Olá, tudo\nbem?")])
async def test_framing_can_be_forced(framing: str, expected: str) -> None:
    """The configuration can say what the stream is."""
    speaker, _ = bot(streamed(SSE), framing=framing)
    assert text(await said(speaker, turn(handle=KNOWN))) == expected


@pytest.mark.parametrize("rest", [httpx2.ReadError("x"), httpx2.RemoteProtocolError("incomplete"), b"\xc3"])
async def test_broken_body_is_a_failure(rest: Any) -> None:
    """A body that breaks off, be it in the midst of a character, is a failure and no end."""
    speaker, _ = bot(streamed(b"Ol", rest))
    heard: list[Event] = []
    with pytest.raises(VendorFailed):
        await said(speaker, turn(handle=KNOWN), heard)
    assert heard == [Delta("Ol")]


@pytest.mark.parametrize("parts", [(), (b"",), (b" \n", b"\n"), (b"data: \n\n",)])
async def test_blank_answer_is_no_answer(parts: tuple[bytes, ...]) -> None:
    """A blank answer is NoAnswer that names the likely causes, and nothing was let out before."""
    speaker, _ = bot(streamed(*parts))
    heard: list[Event] = []
    with pytest.raises(NoAnswer, match="deployed"):
        await said(speaker, turn(handle=KNOWN), heard)
    assert heard == []


async def test_json_text_instead_of_a_stream() -> None:
    """An answer that is one JSON string is its text."""
    speaker, _ = bot(httpx2.Response(200, json="Olá"))
    assert await said(speaker, turn(handle=KNOWN)) == [Delta("Olá"), Finish()]


@pytest.mark.parametrize(
    "answer",
    [
        *(httpx2.Response(200, json=body) for body in ({"error": "segredo"}, {"detail": "segredo"}, ["segredo"])),
        httpx2.Response(200, html="<html>segredo</html>"),
    ],
)
async def test_no_stream(answer: httpx2.Response) -> None:
    """Other JSON or a web page with HTTP 200 is a failure, and is not quoted."""
    speaker, _ = bot(answer)
    with pytest.raises(VendorFailed) as caught:
        await said(speaker, turn(handle=KNOWN))
    assert "segredo" not in caught.value.message


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx2.Response(403), VendorAuthFailed),  # documented: no key
        (httpx2.Response(401), VendorAuthFailed),
        (httpx2.Response(404), ConversationExpired),
        (httpx2.Response(400, json={"error": "conversation not found"}), ConversationExpired),
        (httpx2.Response(400, json={"message": "required"}), VendorRefused),
        (httpx2.Response(500), VendorFailed),
    ],
)
async def test_refusals(answer: httpx2.Response, error: type[VendorError]) -> None:
    """A status before the stream means what it says."""
    speaker, _ = bot(answer)
    with pytest.raises(VendorError) as caught:
        await said(speaker, turn(handle=KNOWN))
    assert type(caught.value) is error


async def test_a_refusal_speaks_of_deploying() -> None:
    """A refusal says that an assistant must be deployed once, while chatting and while opening."""
    for what in (turn(), turn(handle=KNOWN)):
        speaker, _ = bot(httpx2.Response(422), {"id": 1})
        with pytest.raises(VendorRefused, match="`parley setup MODEL`, or `deploy: start`"):
            await said(speaker, what)
    speaker, _ = bot(streamed(b"x"), httpx2.Response(409))
    with pytest.raises(VendorRefused, match="deployed once"):
        await said(speaker, turn())


async def test_deploy() -> None:
    """Deploying is one call for the assistant; at start-up only where the configuration says so."""
    speaker, seen = bot(streamed(b"x"), {"ok": True})
    await speaker.start()
    assert seen == []
    await speaker.deploy()
    assert str(seen[0].url).endswith("/v4.0/assistant/deploy/")
    assert json.loads(seen[0].content) == {"assistant_id": "a-1"}
    eager, seen = bot(streamed(b"x"), {}, deploy="start")
    await eager.start()
    assert [request.url.path for request in seen] == ["/v4.0/assistant/deploy/"]


async def test_create() -> None:
    """A new assistant is made by name and description, and its `external_id` comes back [documented]."""
    speaker, seen = bot(streamed(b"x"), {"id": 3, "external_id": "a-2", "assistant_preferences": {}})
    assert await speaker.create("Bob", "helps") == "a-2"
    assert str(seen[0].url).endswith("/v4.0/assistant/")
    assert json.loads(seen[0].content) == {"name": "Bob", "description": "helps"}


async def test_setup() -> None:
    """Setting up deploys the configured assistant, or creates one and tells its id."""
    speaker, seen = bot(streamed(b"x"), {"external_id": "a-2"})
    assert await speaker.setup() == "deployed: a-1"
    assert await speaker.setup("Bob", "helps") == "a-2"
    assert [request.url.path for request in seen] == ["/v4.0/assistant/deploy/", "/v4.0/assistant/"]


@pytest.mark.parametrize("template", ["Bearer", "{key} {key}", "Bearer {key}\n", " {key}", ""])
def test_template_is_checked(template: str) -> None:
    """A header template that cannot work is refused."""
    with pytest.raises(ValidationError, match=r"must hold \{key\} once"):
        MisterTuringOptions.model_validate({**ENTRY, "auth_template": template})


def test_invalid_utf8_is_an_error_in_either_framing() -> None:
    """Bytes that are not UTF-8 are an error."""
    for data in (b"\xff", b"data: \xff\n\n"):
        with pytest.raises(FramingError):
            RawOrEvents().feed(data)


def test_identity_and_repr_hold_no_secret() -> None:
    """Identity differs by key and assistant, and nothing that can be shown holds the key."""
    speakers = [bot(streamed(), **options)[0] for options in ({}, {"api_key": "b"}, {"assistant_id": "b"})]
    assert len({speaker.identity for speaker in speakers}) == 3
    assert "turing-secret" not in "".join(repr(s) + repr(s.options) + s.identity for s in speakers)


def test_loaded_by_name() -> None:
    """The vendor's name leads to its class and its options."""
    assert load("misterturing") is MisterTuring
    assert load("misterturing").Options is MisterTuringOptions
