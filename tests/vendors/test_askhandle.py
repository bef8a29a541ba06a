"""AskHandle: what is peculiar to it, from answers put together from its documents and from client code."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from proxy.errors import (
    ConversationExpired,
    NoAnswer,
    ProxyError,
    VendorAuthFailed,
    VendorFailed,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.vendors import load
from proxy.vendors.askhandle import AskHandle, AskHandleOptions

TOKEN = {"vendor": "askhandle", "token": "f" * 40}
LOGIN = {"vendor": "askhandle", "username": "ada", "password": "pass word"}
ROOM: dict[str, Any] = {
    "uuid": "de1e39a5-1",
    "label": "r-1",
    "name": "",
    "rating": None,
    "is_bot_use": True,
    "messages": [],
}  # documented
WAITING = {  # seen in client code
    "uuid": "ffb84155-2",
    "body": "Hi",
    "nickname": "api",
    "email": "",
    "phone_number": "",
    "is_support_sender": False,
    "sent_at": "2021-09-15T12:08:50.676405Z",
    "support_answer": "",
    "terminated": False,
}
ANSWERED = {**WAITING, "support_answer": "Hello!"}
ENDED = {**WAITING, "terminated": True}
KNOWN = Handle({"room": "de1e39a5-1", "nickname": "visitor-0a1b2c"})

Script = dict[str, list[Any]]


class Vendor:
    """Answers every path from its list, the last answer again and again; an exception is raised."""

    def __init__(self, script: Script) -> None:
        usual: Script = {"/rooms/": [httpx2.Response(201, json=ROOM)], "/auth/api-token": [{"token": "t1"}]}
        self.script = {**usual, **script}
        self.seen: list[httpx2.Request] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        await asyncio.sleep(0)
        answers = self.script[request.url.path.removeprefix("/api/v1")]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    def sent(self, path: str) -> list[Any]:
        return [json.loads(r.content or "null") for r in self.seen if r.url.path == f"/api/v1{path}"]

    def tokens(self, path: str) -> list[str]:
        return [r.headers["authorization"] for r in self.seen if r.url.path == f"/api/v1{path}"]


POLL = "/messages/ffb84155-2/"


def bot(script: Script, **options: Any) -> tuple[AskHandle, Vendor]:
    vendor = Vendor(script)
    given = {**(LOGIN if "username" in options else TOKEN), "poll_interval": 0.01, "poll_timeout": 0.2, **options}
    return AskHandle(AskHandleOptions.model_validate(given), transport=httpx2.MockTransport(vendor)), vendor


def turn(**fields: Any) -> Turn:
    return Turn(new=[Message("user", "Hi")], **fields)


async def said(speaker: AskHandle, what: Turn) -> list[Event]:
    return [event async for event in speaker.reply(what)]


async def test_first_turn_opens_a_room() -> None:
    """A turn without handle opens a room without a body, then posts with the room nested and a nickname of its own."""
    speaker, vendor = bot({"/messages/": [ANSWERED]})
    handle, *rest = await said(speaker, turn(priming="Be kind."))
    assert rest == [Delta("Hello!"), Finish()]
    assert isinstance(handle, Handle)
    nickname = str(handle.data["nickname"])
    assert nickname.startswith("visitor-")
    assert len(nickname) == len("visitor-") + 6
    assert vendor.sent("/rooms/") == [None]
    assert "content-type" not in vendor.seen[0].headers
    assert vendor.sent("/messages/") == [
        {"body": "Be kind.\n\nHi", "nickname": nickname, "room": {"uuid": "de1e39a5-1"}},
    ]
    assert vendor.tokens("/messages/") == ["Token " + "f" * 40]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"nickname": "visitor-0a1b2c"}),
        ({"end_user": "u-7"}, {"nickname": "visitor-0a1b2c"}),  # who it is for us is nothing of the vendor's
        ({"end_user": "u-7", "contact": {"nickname": "Ada"}}, {"nickname": "Ada"}),
        (
            {"contact": {"email": "a@b.c", "phone_number": "+1", "other": "x"}, "metadata": {"x": "y"}},
            {"nickname": "visitor-0a1b2c", "email": "a@b.c", "phone_number": "+1"},
        ),
        ({"contact": {"email": ""}}, {"nickname": "visitor-0a1b2c"}),
    ],
)
async def test_who_speaks(fields: dict[str, Any], expected: dict[str, str]) -> None:
    """The nickname of a conversation stays the same unless the request names the person; contact data goes along."""
    speaker, vendor = bot({"/messages/": [ANSWERED]})
    await said(speaker, turn(handle=KNOWN, **fields))
    assert vendor.sent("/messages/") == [{"body": "Hi", "room": {"uuid": "de1e39a5-1"}, **expected}]


def test_forwarded() -> None:
    """What is forwarded is the priming and the contact data, and no metadata."""
    speaker, _ = bot({})
    contact = {"email": "a@b.c", "nickname": "Ada", "other": "x"}
    assert speaker.forwarded(turn(priming="P", contact=contact, metadata={"x": "y"})) == {
        "priming": "P",
        "contact.email": "a@b.c",
        "contact.nickname": "Ada",
    }


@pytest.mark.parametrize("first", ["", None, "  "])
async def test_answer_is_polled_for(first: str | None) -> None:
    """A post whose answer is still empty is polled for, and posted once only [seen in client code]."""
    polls = [{**WAITING, "support_answer": None}, WAITING, ANSWERED]
    speaker, vendor = bot({"/messages/": [{**WAITING, "support_answer": first}], POLL: polls})
    assert await said(speaker, turn(handle=KNOWN)) == [Delta("Hello!"), Finish()]
    assert [request.method for request in vendor.seen] == ["POST", "GET", "GET", "GET"]


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.Response(500),
        httpx2.Response(503),
        httpx2.Response(429),
        httpx2.Response(504),
        httpx2.Response(200, text="<html>"),
        httpx2.ConnectError("x"),
        httpx2.ReadError("x"),
        httpx2.ReadTimeout("x"),
        httpx2.PoolTimeout("x"),
    ],
)
async def test_a_failed_poll_is_made_again(trouble: Any) -> None:
    """A poll that fails in passing is made again; the message is not."""
    speaker, vendor = bot({"/messages/": [WAITING], POLL: [trouble, ANSWERED]}, poll_timeout=5)
    assert await said(speaker, turn(handle=KNOWN)) == [Delta("Hello!"), Finish()]
    assert len(vendor.sent("/messages/")) == 1


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (httpx2.Response(500), VendorFailed),
        (httpx2.Response(404, json={"detail": "Room not found."}), VendorFailed),
        (httpx2.Response(401), VendorFailed),
        (httpx2.Response(429), VendorFailed),
        (httpx2.ConnectError("x"), VendorFailed),
        (httpx2.PoolTimeout("x"), VendorFailed),
        (httpx2.ReadTimeout("x"), NoAnswer),
    ],
)
async def test_whatever_polls_say_the_message_was_delivered(trouble: Any, error: type[ProxyError]) -> None:
    """No fault of a poll is told as one after which the message may be sent again, or as a lost handle."""
    speaker, vendor = bot({"/messages/": [WAITING], POLL: [trouble]}, poll_interval=0.1, poll_timeout=1)
    with pytest.raises(ProxyError) as caught:
        await said(speaker, turn(handle=KNOWN))
    assert type(caught.value) is error
    assert caught.value.delivered
    assert len(vendor.sent("/messages/")) == 1


async def test_no_answer_names_the_causes() -> None:
    """An answer that does not come within `poll_timeout` is NoAnswer that names the likely causes."""
    speaker, vendor = bot({"/messages/": [WAITING], POLL: [WAITING]})
    with pytest.raises(NoAnswer, match=r"poll_timeout.*data source.*bot is off.*human") as caught:
        await said(speaker, turn(handle=KNOWN))
    assert caught.value.delivered
    assert 3 < len(vendor.seen) < 40


async def test_the_whole_turn_has_a_time_too() -> None:
    """Polling ends with the time of the whole turn, if that is shorter."""
    speaker, _ = bot({"/messages/": [WAITING], POLL: [WAITING]}, timeout=0.1, poll_timeout=60)
    with pytest.raises(VendorTimeout, match="`timeout`"):
        await said(speaker, turn(handle=KNOWN))


@pytest.mark.parametrize("script", [{"/messages/": [ENDED]}, {"/messages/": [WAITING], POLL: [WAITING, ENDED]}])
async def test_a_terminated_session_is_not_polled(script: Script) -> None:
    """A session that is told as terminated ends the waiting at once."""
    speaker, vendor = bot({key: list(answers) for key, answers in script.items()}, poll_timeout=60)
    with pytest.raises(NoAnswer):
        await said(speaker, turn(handle=KNOWN))
    assert len(vendor.seen) <= 3


@pytest.mark.parametrize("uuid", [None, 7.5, "../../rooms", "a/b", "?x", ""])
async def test_a_message_without_a_usable_uuid(uuid: Any) -> None:
    """A message whose uuid cannot be polled for is a failure, and nothing else is asked for."""
    speaker, vendor = bot({"/messages/": [{**WAITING, "uuid": uuid}]})
    with pytest.raises(VendorFailed):
        await said(speaker, turn(handle=KNOWN))
    assert len(vendor.seen) == 1


LOST = [
    httpx2.Response(404, json={"detail": "Not found."}),
    httpx2.Response(400, json={"room": ["Object with uuid=x does not exist."]}),
    httpx2.Response(400, json={"room": {"uuid": ["“x” is not a valid UUID."]}}),
    httpx2.Response(400, json={"detail": "This room has expired"}),
]


@pytest.mark.parametrize("answer", LOST)
async def test_lost_room(answer: httpx2.Response) -> None:
    """A room that the vendor does not know any more is a lost handle [inferred]; a room just opened is not."""
    speaker, _ = bot({"/messages/": [answer]})
    with pytest.raises(ConversationExpired):
        await said(speaker, turn(handle=KNOWN))
    with pytest.raises(VendorRefused):
        await said(speaker, turn())


@pytest.mark.parametrize(
    "body", [{"body": ["This field may not be blank."]}, {"detail": "No."}, {"room": ["This field is required."]}, []]
)
async def test_refused_message(body: Any) -> None:
    """Another 400 is a refusal, and does not show the vendor's words."""
    speaker, _ = bot({"/messages/": [httpx2.Response(400, json=body)]})
    with pytest.raises(VendorRefused) as caught:
        await said(speaker, turn(handle=KNOWN))
    assert "field" not in caught.value.message


@pytest.mark.parametrize("answer", [httpx2.Response(500), httpx2.Response(200, json=[]), {"uuid": 5}, {}])
async def test_a_room_that_does_not_open(answer: Any) -> None:
    """A room that does not open means that nothing was delivered."""
    speaker, vendor = bot({"/rooms/": [answer]})
    with pytest.raises(VendorUnavailable):
        await said(speaker, turn())
    assert len(vendor.seen) == 1


async def test_token_is_fetched_once() -> None:
    """With a login, many turns at the same time share one token."""
    speaker, vendor = bot({"/messages/": [ANSWERED]}, username="ada")
    await asyncio.gather(*(said(speaker, turn()) for _ in range(10)))
    assert vendor.sent("/auth/api-token") == [{"username": "ada", "password": "pass word"}]
    assert set(vendor.tokens("/messages/")) == {"Token t1"}


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_is_fetched_anew(status: int) -> None:
    """A token that is refused is fetched anew once, and the same call made once more."""
    no = httpx2.Response(status, json={"detail": "Invalid token."})
    tokens = [{"token": "t1"}, {"token": "t2"}]
    speaker, vendor = bot({"/messages/": [no, ANSWERED], "/auth/api-token": tokens}, username="ada")
    assert await said(speaker, turn(handle=KNOWN)) == [Delta("Hello!"), Finish()]
    assert vendor.tokens("/messages/") == ["Token t1", "Token t2"]


async def test_many_refused_turns_fetch_one_token() -> None:
    """Turns whose common token is refused at the same time fetch one new token for all."""
    speaker, vendor = bot({"/messages/": [ANSWERED]}, username="ada")
    await said(speaker, turn(handle=KNOWN))
    vendor.script["/auth/api-token"] = [{"token": "t2"}]
    vendor.script["/messages/"] = [*[httpx2.Response(401) for _ in range(5)], ANSWERED]
    await asyncio.gather(*(said(speaker, turn(handle=KNOWN)) for _ in range(5)))
    assert len(vendor.sent("/auth/api-token")) == 2
    assert len(vendor.sent("/messages/")) == 1 + 10


async def test_a_token_that_stays_refused() -> None:
    """A new token that is refused too is a refused credential, after two calls."""
    speaker, vendor = bot({"/messages/": [httpx2.Response(401)]}, username="ada")
    with pytest.raises(VendorAuthFailed, match="`password`") as caught:
        await said(speaker, turn(handle=KNOWN))
    assert not caught.value.delivered
    assert len(vendor.sent("/messages/")) == 2


async def test_a_configured_token_is_not_fetched() -> None:
    """A configured token that is refused is not sent again."""
    speaker, vendor = bot({"/messages/": [httpx2.Response(401)]})
    with pytest.raises(VendorAuthFailed, match="`token`"):
        await said(speaker, turn(handle=KNOWN))
    assert len(vendor.seen) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx2.Response(400, json={"non_field_errors": ["Unable to log in."]}), VendorAuthFailed),
        (httpx2.Response(401), VendorAuthFailed),
        (httpx2.Response(500), VendorUnavailable),
        ({"token": None}, VendorUnavailable),
        ({"token": "two words"}, VendorUnavailable),
        ({}, VendorUnavailable),
        ([], VendorUnavailable),
    ],
)
async def test_no_token(answer: Any, error: type[ProxyError]) -> None:
    """Without a token nothing is sent, and a refused login names the keys to check."""
    speaker, vendor = bot({"/auth/api-token": [answer]}, username="ada")
    with pytest.raises(ProxyError) as caught:
        await said(speaker, turn(handle=KNOWN))
    assert type(caught.value) is error
    assert not caught.value.delivered
    assert len(vendor.seen) == 1
    assert "pass word" not in caught.value.message


def changes() -> Iterator[dict[str, Any]]:
    yield {"token": ""}
    yield {"username": "ada"}
    yield {"password": "x"}
    yield {"username": "ada", "password": "x"}
    yield {"token": "", "username": "ada"}
    yield {"token": "", "password": "x"}
    yield {"token": "", "username": "ada", "password": ""}


@pytest.mark.parametrize("change", list(changes()))
def test_one_credential(change: dict[str, Any]) -> None:
    """The options take a token or a whole login, and neither both nor half of one."""
    with pytest.raises(ValidationError, match="either token, or username and password"):
        AskHandleOptions.model_validate({**TOKEN, **change})


def test_identity_and_repr_hold_no_secret() -> None:
    """Identity differs by token and by login, and nothing that can be shown holds a secret."""
    speakers = [bot({})[0], bot({}, token="a")[0], bot({}, username="ada")[0], bot({}, username="ada", password="b")[0]]
    assert len({speaker.identity for speaker in speakers}) == 4
    shown = "".join(repr(s) + repr(s.options) + s.identity for s in speakers)
    assert "pass word" not in shown
    assert "ffff" not in shown


def test_loaded_by_name() -> None:
    """The vendor's name leads to its class and its options."""
    assert load("askhandle") is AskHandle
    assert load("askhandle").Options is AskHandleOptions


async def test_a_login_that_fails_fails_for_all_who_wait() -> None:
    """Of many turns that wait for a token one logs in, and its failure is everyone's: no log-in per turn."""
    speaker, vendor = bot({"/auth/api-token": [httpx2.Response(400, json={})] * 9}, username="ada")

    outcomes = await asyncio.gather(*(said(speaker, turn()) for _ in range(8)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {VendorAuthFailed}
    assert len(vendor.sent("/auth/api-token")) == 1
