"""NewOaks AI: what is peculiar to it, from answers as printed in its documents."""

import json
from typing import Any

import httpx2
import pytest

from proxy.errors import (
    ConversationExpired,
    InvalidRequest,
    NoAnswer,
    VendorAuthFailed,
    VendorError,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Attachment, Delta, Event, Finish, Handle, Message, Turn, Usage
from proxy.vendors import load
from proxy.vendors.newoaks import NewOaks, NewOaksOptions

SECRET = "sk-newoaks-secret"
SESSION = {"Data": {"SessionID": 123456}, "Version": "1.0.0", "Success": True, "Code": 200, "Message": ""}  # documented
PLAIN = {  # documented
    "Data": {
        "messageid": 375561,
        "content": "Hello! How can I assist you today?",
        "totalToken": 4337,
        "noAnswer": False,
    },
    "Version": "1.0.0",
    "Success": True,
    "Code": 200,
    "Message": "",
}
WORDS = ["\n", "Hello", "!", " How", " can", " I", " assist", " you", "?"]  # documented
LINES = [{"content": word} for word in WORDS]
SUMMARY = {  # documented
    "QuestionID": 10495005,
    "AnswerID": 10495006,
    "Answer": "\nHello! How can I assist you?",
    "TotalToken": 4994,
}


def bot(answer: Any, *, session: Any = None, **options: Any) -> tuple[NewOaks, list[httpx2.Request]]:
    """A bot whose vendor answers messages with this, and the requests that it gets."""
    seen: list[httpx2.Request] = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        found = answer if request.url.path.endswith("/ClientAsk") else session or httpx2.Response(200, json=SESSION)
        return found if isinstance(found, httpx2.Response) else stream(*found)

    given = {"vendor": "newoaks", "secret_key": SECRET, "chatbot_id": "b" * 32, **options}
    return NewOaks(NewOaksOptions.model_validate(given), transport=httpx2.MockTransport(vendor)), seen


def stream(*parts: bytes) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(parts))


class Body(httpx2.AsyncByteStream):
    """A body in pieces; an exception among them is raised when its turn comes."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    async def __aiter__(self) -> Any:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part


def lines(*objects: Any) -> bytes:
    return "".join(json.dumps(found) + "\n" for found in objects).encode()


def turn(text: str = "hello", **fields: Any) -> Turn:
    return Turn(new=[Message("user", text)], **fields)


KNOWN = Handle({"session": 123})


async def said(speaker: NewOaks, what: Turn, events: list[Event] | None = None) -> list[Event]:
    """All events of a reply; `events` keeps what came before an error."""
    events = [] if events is None else events
    async for event in speaker.reply(what):
        events.append(event)
    return events


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_first_turn_opens_a_session() -> None:
    """A turn without handle opens a session with the bot's serial number and tells its number at once."""
    speaker, seen = bot(httpx2.Response(200, json=PLAIN))
    events = await said(speaker, turn(priming="Be kind."))
    assert events == [
        Handle({"session": 123456}),
        Delta("Hello! How can I assist you today?"),
        Finish(usage=Usage(4337)),
    ]
    assert [str(request.url) for request in seen] == [
        "https://usapi.hottask.com/chat/Chatbot/GetSession",
        "https://usapi.hottask.com/chat/Chat/ClientAsk",
    ]
    assert json.loads(seen[0].content) == {"serialNumber": "b" * 32}
    assert json.loads(seen[1].content) == {"sessionID": 123456, "content": "Be kind.\n\nhello", "stream": False}


async def test_later_turn_sends_into_its_session() -> None:
    """A turn with a handle is one request, without the system prompt, and the secret stands bare in the header."""
    speaker, seen = bot(httpx2.Response(200, json=PLAIN))
    events = await said(speaker, turn(handle=KNOWN, priming="Be kind."))
    assert not any(isinstance(event, Handle) for event in events)
    assert len(seen) == 1
    assert json.loads(seen[0].content) == {"sessionID": 123, "content": "hello", "stream": False}
    assert seen[0].headers["authorization"] == SECRET
    assert seen[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "base_url", ["https://euapi.hottask.com", "https://app.neoagent.co/", "https://white.label/api"]
)
async def test_regions_and_white_labels(base_url: str) -> None:
    """Another region or brand is another base URL, with or without a slash at its end."""
    speaker, seen = bot(httpx2.Response(200, json=PLAIN), base_url=base_url)
    await said(speaker, turn(handle=KNOWN))
    assert str(seen[0].url) == base_url.rstrip("/") + "/chat/Chat/ClientAsk"


FRAMINGS: dict[str, list[bytes]] = {
    "bare lines [documented]": [lines(*LINES), lines(SUMMARY)],
    "SSE [inferred]": [b"".join(b"data: " + lines(x) + b"\n" for x in [*LINES, SUMMARY]), b"data: [DONE]\n\n"],
    "joined [inferred]": [lines(*LINES, SUMMARY).replace(b"\n", b"")],
    "byte by byte": [bytes([byte]) for byte in lines(*LINES, SUMMARY)],
    "other casing": [lines(*({"Content": word} for word in WORDS)), lines({"answer": "x", "totaltoken": 4994})],
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_stream_in_either_framing(framing: str) -> None:
    """A stream reads the same as bare lines and as SSE, with the summary's total; what came at once is one piece."""
    speaker, seen = bot(FRAMINGS[framing])
    events = await said(speaker, turn(handle=KNOWN, stream=True))
    words = ["\nHello", *WORDS[2:]]
    pieces = words if framing == "byte by byte" else ["".join(words)]
    assert events == [*map(Delta, pieces), Finish(usage=Usage(4994))]
    assert json.loads(seen[0].content)["stream"] is True


async def test_a_fault_behind_words_comes_after_them() -> None:
    """Words that came in one read with a fault are said before it."""
    speaker, _ = bot([lines({"content": "Hello"}, {"content": " there"}, {"Success": False, "Code": 500})])
    events: list[Event] = []
    with pytest.raises(VendorFailed):
        await said(speaker, turn(handle=KNOWN, stream=True), events)
    assert events == [Delta("Hello there")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Hello there", "Hello there"),  # extends what was sent
        ("Hello", "Hello"),
        ("Good day", "Hello"),  # differs: what was sent stays
        ("", "Hello"),
        (None, "Hello"),
    ],
)
async def test_summary_completes_what_was_sent(answer: str | None, expected: str) -> None:
    """The summary's answer adds what is missing and never changes what was sent."""
    speaker, _ = bot([lines({"content": "Hello"}), lines({"Answer": answer, "TotalToken": 7})])
    events = await said(speaker, turn(handle=KNOWN, stream=True))
    assert text(events) == expected
    assert events[-1] == Finish(usage=Usage(7))


async def test_summary_alone_is_the_answer() -> None:
    """A stream of nothing but the summary still gives the answer."""
    speaker, _ = bot([lines(SUMMARY)])
    assert text(await said(speaker, turn(handle=KNOWN, stream=True))) == SUMMARY["Answer"]


async def test_close_is_an_end_too() -> None:
    """A stream that ends without a summary is complete, without a token total."""
    speaker, _ = bot([lines(*LINES)])
    events = await said(speaker, turn(handle=KNOWN, stream=True))
    assert text(events) == "".join(WORDS)
    assert events[-1] == Finish()


async def test_nothing_counts_after_the_summary() -> None:
    """What comes after the summary, and a connection that breaks then, changes nothing."""
    speaker, _ = bot([lines(*LINES, SUMMARY, {"content": "!"}), httpx2.ReadError("gone")])
    assert text(await said(speaker, turn(handle=KNOWN, stream=True))) == "".join(WORDS)


@pytest.mark.parametrize(
    "rest", [[httpx2.ReadError("gone")], [httpx2.RemoteProtocolError("incomplete chunked read")], [b'{"content":"a']]
)
async def test_broken_stream_is_a_failure(rest: list[Any]) -> None:
    """A stream that breaks off is a failure after what was heard, and not an end."""
    speaker, _ = bot([lines({"content": "Hel"}), *rest])
    heard: list[Event] = []
    with pytest.raises(VendorFailed) as caught:
        await said(speaker, turn(handle=KNOWN, stream=True), heard)
    assert heard == [Delta("Hel")]
    assert caught.value.delivered


async def test_plain_envelope_instead_of_a_stream() -> None:
    """A plain answer where a stream was asked for is taken [inferred]."""
    speaker, _ = bot(httpx2.Response(200, json=PLAIN))
    events = await said(speaker, turn(handle=KNOWN, stream=True))
    assert events == [Delta("Hello! How can I assist you today?"), Finish(usage=Usage(4337))]


async def test_no_answer_flag_is_told() -> None:
    """The vendor's own `noAnswer` goes along with its text and is no error [inferred]."""
    data = {"content": "I do not know.", "totalToken": 10, "noAnswer": True}
    speaker, _ = bot(httpx2.Response(200, json={**PLAIN, "Data": data}))
    events = await said(speaker, turn(handle=KNOWN))
    assert events == [Delta("I do not know."), Finish(usage=Usage(10), extra={"no_answer": True})]


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, json={**PLAIN, "Data": {"content": " \n"}}),
        httpx2.Response(200, json={**PLAIN, "Data": None}),
        [lines({"content": "\n"}, {"content": " "}, {"Answer": "\n ", "TotalToken": 3})],
        [b""],
    ],
)
async def test_blank_answer_is_no_answer(answer: Any) -> None:
    """An empty or blank answer is NoAnswer, and nothing was let out before."""
    speaker, _ = bot(answer)
    heard: list[Event] = []
    with pytest.raises(NoAnswer, match="human"):
        await said(speaker, turn(handle=KNOWN), heard)
    assert heard == []


def failure(code: int, message: str) -> dict[str, Any]:
    return {"Data": None, "Version": "1.0.0", "Success": False, "Code": code, "Message": message}


FAILURES: list[tuple[int, str, type[VendorError], bool]] = [  # [inferred] from "business errors live in the envelope"
    (401, "Unauthorized", VendorAuthFailed, False),
    (403, "Forbidden", VendorAuthFailed, False),
    (429, "Too many", VendorRateLimited, False),
    (400, "content is required", VendorRefused, False),
    (408, "slow", VendorTimeout, True),
    (500, "Internal error", VendorFailed, True),
    (0, "Something", VendorFailed, True),
    (10042, "Something", VendorFailed, True),
    (400, "sessionID is invalid", ConversationExpired, False),
    (404, "", ConversationExpired, False),
    (500, "Session not exist", ConversationExpired, False),
]


@pytest.mark.parametrize(("code", "message", "error", "delivered"), FAILURES)
@pytest.mark.parametrize("streaming", [False, True])
async def test_failure_with_http_200(
    code: int, message: str, error: type[VendorError], delivered: bool, streaming: bool
) -> None:
    """`Success:false` means what its code says, plain and in a stream."""
    answer = failure(code, message)
    speaker, _ = bot([lines(answer)] if streaming else httpx2.Response(200, json=answer))
    with pytest.raises(VendorError) as caught:
        await said(speaker, turn(handle=KNOWN, stream=streaming))
    assert type(caught.value) is error
    assert caught.value.delivered is delivered
    assert not message or message not in caught.value.message


async def test_lost_only_with_an_old_handle() -> None:
    """A session that was opened a moment ago cannot have been forgotten."""
    speaker, _ = bot(httpx2.Response(200, json=failure(404, "session not found")))
    with pytest.raises(VendorRefused):
        await said(speaker, turn())


@pytest.mark.parametrize("found", [failure(404, "session not found"), {"error": "x"}, {"Code": 500, "Message": "x"}])
async def test_error_in_the_middle_of_a_stream(found: dict[str, Any]) -> None:
    """An error object after a delta is a failure, whatever it says."""
    speaker, _ = bot([lines({"content": "Hel"}, found)])
    with pytest.raises(VendorFailed):
        await said(speaker, turn(handle=KNOWN, stream=True))


async def test_http_error_with_an_envelope() -> None:
    """An HTTP error is told by its status, and a lost session by the envelope's message."""
    speaker, _ = bot(httpx2.Response(400, json=failure(400, "The session has expired")))
    with pytest.raises(ConversationExpired):
        await said(speaker, turn(handle=KNOWN))


async def test_web_page_instead_of_json() -> None:
    """A web page with HTTP 200 is a failure that names the address as the likely cause."""
    speaker, _ = bot([b"<html>secret page</html>"])
    with pytest.raises(VendorFailed, match="base_url") as caught:
        await said(speaker, turn(handle=KNOWN))
    assert "secret page" not in str(caught.value)


@pytest.mark.parametrize(
    ("session", "error"),
    [
        (httpx2.Response(500), VendorUnavailable),
        (httpx2.Response(200, json=failure(500, "down")), VendorUnavailable),
        (httpx2.Response(200, json={**SESSION, "Data": {}}), VendorUnavailable),
        (httpx2.Response(200, text="<html>"), VendorUnavailable),
        (httpx2.Response(504), VendorUnavailable),
        (httpx2.Response(302, headers={"location": "/x"}), VendorUnavailable),
        (httpx2.Response(401), VendorAuthFailed),
        (httpx2.Response(200, json=failure(401, "no")), VendorAuthFailed),
        (httpx2.Response(429, headers={"retry-after": "7"}), VendorRateLimited),
        (httpx2.Response(200, json=failure(400, "serialNumber is invalid")), VendorRefused),
    ],
)
async def test_nothing_is_delivered_while_opening(session: httpx2.Response, error: type[VendorError]) -> None:
    """Whatever fails while a session is opened was not delivered."""
    speaker, seen = bot(httpx2.Response(200, json=PLAIN), session=session)
    with pytest.raises(VendorError) as caught:
        await said(speaker, turn())
    assert type(caught.value) is error
    assert not caught.value.delivered
    assert len(seen) == 1


async def test_halves_of_an_emoji_in_two_objects() -> None:
    """A character that the vendor cut into two JSON strings comes out whole [inferred]."""
    speaker, _ = bot([b'{"content":"a\\ud83d"}\n{"content":"\\ude42"}\n{"Answer":"a\\ud83d\\ude42!"}'])
    assert text(await said(speaker, turn(handle=KNOWN, stream=True))) == "a🙂!"


def test_text_only() -> None:
    """A picture in the new messages is refused before anything is sent; one in the history is not looked at."""
    speaker, _ = bot([])
    picture = Message(
        "user", "look", attachments=[Attachment("image", url="https://x/y.png", path="messages.0.content.1")]
    )
    speaker.check(Turn(new=[Message("user", "hi")], history=[picture]))
    with pytest.raises(InvalidRequest, match="text only") as caught:
        speaker.check(Turn(new=[picture]))
    assert (caught.value.param, caught.value.code) == ("messages.0.content.1", "unsupported_value")


def test_forwarded_is_the_priming() -> None:
    """Besides messages nothing but the system prompt reaches this vendor."""
    speaker, _ = bot([])
    assert speaker.forwarded(turn(metadata={"a": "b"}, contact={"email": "x"}, end_user="u")) == {}
    assert speaker.forwarded(turn(priming="P")) == {"priming": "P"}


def test_identity_and_repr_hold_no_secret() -> None:
    """Identity differs by bot and by secret, and neither it nor a repr shows the secret."""
    one, _ = bot([])
    others = [bot([], secret_key="other")[0], bot([], chatbot_id="other")[0], bot([], base_url="https://x.y")[0]]
    assert len({one.identity, *(other.identity for other in others)}) == 4
    assert one.identity == bot([])[0].identity
    assert SECRET not in one.identity + repr(one) + repr(one.options) + str(vars(one.options))


def test_loaded_by_name() -> None:
    """The vendor's name leads to its class and its options."""
    assert load("newoaks") is NewOaks
    assert load("newoaks").Options is NewOaksOptions
