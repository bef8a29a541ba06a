"""Quickchat AI: what is peculiar to it, from answers as printed in its documents."""

import json
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from proxy.errors import (
    ConversationExpired,
    NoAnswer,
    VendorAuthFailed,
    VendorError,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
)
from proxy.messages import Delta, Event, Finish, Handle, Message, Turn
from proxy.vendors import load
from proxy.vendors.quickchat import Quickchat, QuickchatOptions

LEGACY = {"vendor": "quickchat", "scenario_id": "s1", "api_key": "legacy-secret"}
CURRENT = {"vendor": "quickchat", "scenario_id": "s1", "token": "current-secret"}
FIRST = {"ord_number": 2, "conv_id": "abcd1234", "reply": "Hey there! 🙂"}  # documented
LATER = {"ord_number": 236, "reply": "Hey, great to hear from you again! 😉"}  # documented: no conv_id
NEWER = {"conv_id": "conv-uuid-1234", "reply": "Hello<br>there", "ord_number": 3, "src": 0}  # documented


def bot(answer: Any, **options: Any) -> tuple[Quickchat, list[httpx2.Request]]:
    """A bot whose vendor answers with this, and the requests that it gets."""
    seen: list[httpx2.Request] = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    given = QuickchatOptions.model_validate({**(CURRENT if "token" in options else LEGACY), **options})
    return Quickchat(given, transport=httpx2.MockTransport(vendor)), seen


def turn(**fields: Any) -> Turn:
    return Turn(new=[Message("user", "Hello!")], **fields)


KNOWN = Handle({"conv_id": "abcd1234"})


async def said(speaker: Quickchat, what: Turn) -> list[Event]:
    return [event async for event in speaker.reply(what)]


async def test_legacy_first_message() -> None:
    """The legacy call has the key in its body, no `conv_id`, and the reply tells the id."""
    speaker, seen = bot(FIRST)
    assert await said(speaker, turn()) == [KNOWN, Delta("Hey there! 🙂"), Finish()]
    assert str(seen[0].url) == "https://chat.quickchat.ai/chat"
    assert json.loads(seen[0].content) == {"api_key": "legacy-secret", "scenario_id": "s1", "text": "Hello!"}
    assert "authorization" not in seen[0].headers


async def test_legacy_later_message() -> None:
    """A later reply without `conv_id` leaves the handle as it is."""
    speaker, seen = bot(LATER)
    assert await said(speaker, turn(handle=KNOWN)) == [Delta(str(LATER["reply"])), Finish()]
    assert json.loads(seen[0].content)["conv_id"] == "abcd1234"


async def test_current_endpoint() -> None:
    """With a token the current host is asked, with a Bearer header and no key in the body; HTML is left to others."""
    speaker, seen = bot(NEWER, token="current-secret")
    events = await said(speaker, turn(priming="Be kind."))
    assert events == [Handle({"conv_id": "conv-uuid-1234"}), Delta("Hello<br>there"), Finish()]
    assert str(seen[0].url) == "https://app.quickchat.ai/chat"
    assert seen[0].headers["authorization"] == "Bearer current-secret"
    assert json.loads(seen[0].content) == {"scenario_id": "s1", "text": "Be kind.\n\nHello!"}
    assert speaker.options.html == "markdown"


async def test_changed_conv_id_is_told() -> None:
    """A reply that names another `conv_id` gives a new handle; one that names the same gives none."""
    changed, _ = bot(NEWER, token="x")
    assert (await said(changed, turn(handle=KNOWN)))[0] == Handle({"conv_id": "conv-uuid-1234"})
    same, _ = bot(FIRST)
    assert (await said(same, turn(handle=KNOWN)))[0] == Delta("Hey there! 🙂")


@pytest.mark.parametrize("handle", [None, KNOWN])
async def test_context_goes_with_every_legacy_message(handle: Handle | None) -> None:
    """The legacy call takes the system prompt in a field of its own, with every message, cut at 1000 characters."""
    speaker, seen = bot(FIRST)
    await said(speaker, turn(handle=handle, priming="é" * 1500))
    sent = json.loads(seen[0].content)
    assert sent["message_context"] == "é" * 1000
    assert sent["text"] == "Hello!"


async def test_context_on_the_current_host_is_told_once() -> None:
    """The current call has no such field: the system prompt stands in front of the first message only."""
    speaker, seen = bot(NEWER, token="x")
    await said(speaker, turn(handle=KNOWN, priming="Be kind."))
    assert json.loads(seen[0].content) == {"scenario_id": "s1", "conv_id": "abcd1234", "text": "Hello!"}


REQUEST = {"a": "1", "kb_topic": "mine", "email": "x@y.z", "phone_number": "1", "nickname": "n", "website": "no"}
MORE = {"b": "2", "c": "3", "d": "4", "e": "5"}


@pytest.mark.parametrize(
    ("options", "metadata", "expected"),
    [
        ({}, {}, None),
        ({}, REQUEST, {"a": "1", "website": "no"}),
        ({"client_metadata": {"website": "mine", "userId": 12}}, REQUEST, {"website": "mine", "userId": 12, "a": "1"}),
        ({"kb_topic": "billing"}, REQUEST, {"kb_topic": "billing", "a": "1", "website": "no"}),
        ({"kb_topic": "billing"}, {}, {"kb_topic": "billing"}),
        ({"client_metadata": {"kb_topic": "tax"}}, REQUEST, {"kb_topic": "tax", "a": "1", "website": "no"}),
        ({"kb_topic": "request"}, REQUEST, {"kb_topic": "mine", "a": "1", "website": "no"}),
        ({"kb_topic": "request"}, {}, None),
        ({}, {**REQUEST, **MORE}, {"a": "1", "website": "no", "b": "2", "c": "3", "d": "4"}),
        (
            {"kb_topic": "request", "client_metadata": {"w": "x"}},
            {**MORE, "kb_topic": "mine"},
            {"w": "x", "kb_topic": "mine", "b": "2", "c": "3", "d": "4"},
        ),
    ],
)
async def test_metadata(options: dict[str, Any], metadata: dict[str, str], expected: dict[str, Any] | None) -> None:
    """The configuration's metadata goes first and is never overridden, then the request's, five keys in all."""
    speaker, seen = bot(FIRST, **options)
    await said(speaker, turn(metadata=metadata))
    assert json.loads(seen[0].content).get("client_metadata") == expected
    told = {f"metadata.{key}": value for key, value in metadata.items()}
    sent = {f"metadata.{key}" for key in expected or {} if key != "kb_topic"}
    own = {f"metadata.{key}" for key in options.get("client_metadata", {})}
    assert speaker.forwarded(turn(metadata=metadata)) == {key: told[key] for key in told if key in sent - own}


def test_forwarded_has_the_priming() -> None:
    """The system prompt is part of what is forwarded, on both hosts."""
    assert bot(FIRST)[0].forwarded(turn(priming="P")) == {"priming": "P"}
    assert bot(FIRST, token="x")[0].forwarded(turn(priming="P")) == {"priming": "P"}


@pytest.mark.parametrize("reply", [{"reply": None}, {"reply": ""}, {"reply": " \n"}, {}])
async def test_no_reply_is_no_answer(reply: dict[str, Any]) -> None:
    """An absent, null or blank reply, as after a hand-off, is NoAnswer that says what may have happened [inferred]."""
    speaker, _ = bot({"conv_id": "abcd1234", "ord_number": 4, **reply})
    with pytest.raises(NoAnswer, match="human may have taken"):
        await said(speaker, turn(handle=KNOWN))


def errors(code: str, message: str = "nothing of note") -> dict[str, Any]:
    return {"errors": {"root": [{"message": message, "code": code}]}}  # documented


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, errors("BAD_REQUEST"), VendorRefused),
        (401, errors("PERMISSION_DENIED"), VendorAuthFailed),
        (402, errors("PAYMENT_REQUIRED"), VendorRefused),
        (403, errors("PERMISSION_DENIED"), VendorAuthFailed),
        (404, errors("NOT_FOUND"), ConversationExpired),
        (409, errors("CONFLICT"), VendorRefused),
        (422, errors("VALIDATION_ERROR"), VendorRefused),
        (422, errors("VALIDATION_ERROR", "Invalid conversation"), ConversationExpired),
        (422, {"errors": {"conv_id": [{"message": "Unknown conv_id"}]}}, ConversationExpired),
        (429, errors("TOO_MANY_REQUESTS"), VendorRateLimited),
        (500, errors("UNKNOWN"), VendorFailed),
        (503, errors("SERVICE_UNAVAILABLE"), VendorFailed),
        (400, {"detail": "conv_id abcd1234 does not exist"}, ConversationExpired),
        (400, {"error": "conv_id abcd1234 does not exist"}, ConversationExpired),
        (400, {"detail": "text is required"}, VendorRefused),
    ],
)
async def test_documented_errors(status: int, body: Any, error: type[VendorError]) -> None:
    """The statuses and bodies of both generations mean what the documents say."""
    speaker, _ = bot(httpx2.Response(status, json=body), token="x")
    with pytest.raises(VendorError) as caught:
        await said(speaker, turn(handle=KNOWN))
    assert type(caught.value) is error


@pytest.mark.parametrize("body", ["conv_id abcd1234 does not exist", '"conv_id abcd1234 does not exist"'])
async def test_legacy_lost_conversation(body: str) -> None:
    """The legacy host says in plain words that a `conv_id` is lost, which without one sent means nothing."""
    speaker, _ = bot(httpx2.Response(400, text=body))
    with pytest.raises(ConversationExpired):
        await said(speaker, turn(handle=KNOWN))
    with pytest.raises(VendorRefused):
        await said(speaker, turn())


@pytest.mark.parametrize(
    "body", ["<html>words</html>", '"words"', "[]", '{"reply": {"text": "words"}}', '{"reply": 5}']
)
async def test_other_replies_are_failures(body: str) -> None:
    """A reply that is no JSON object with text in it is a failure that may have been delivered, and is not quoted."""
    speaker, _ = bot(httpx2.Response(200, text=body))
    with pytest.raises(VendorFailed) as caught:
        await said(speaker, turn())
    assert caught.value.delivered
    assert "words" not in caught.value.message


async def test_errors_name_the_key_to_check() -> None:
    """A refused credential names the configured key, and never its value."""
    for options, key in (({}, "`api_key`"), ({"token": "current-secret"}, "`token`")):
        speaker, _ = bot(httpx2.Response(401, json=errors("PERMISSION_DENIED", "bad key")), **options)
        with pytest.raises(VendorAuthFailed) as caught:
            await said(speaker, turn())
        assert key in caught.value.message
        assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"api_key": None}, "either token"),
        ({"token": "x"}, "not both"),
        ({"token": "two words"}, "visible ASCII"),
        ({"client_metadata": dict.fromkeys("abcdef", "x")}, "at most 5"),
        ({"client_metadata": dict.fromkeys("abcde", "x"), "kb_topic": "t"}, "more than 5"),
        ({"client_metadata": {"kb_topic": "x"}, "kb_topic": "t"}, "twice"),
        ({"base_url": "ftp://x"}, "https://"),
        ({"base_url": "https://user:pw@x"}, "without user"),
        ({"base_url": "https://x:99999"}, "address"),
    ],
)
def test_options_are_checked(change: dict[str, Any], complaint: str) -> None:
    """Options that cannot work are refused in words that say what to do."""
    with pytest.raises(ValidationError) as caught:
        QuickchatOptions.model_validate({**LEGACY, **change})
    assert complaint in str(caught.value)
    assert "legacy-secret" not in str(caught.value)


def test_the_credential_decides_the_host() -> None:
    """Each credential has its host, unless a base URL is given; a credential set to nothing is none."""
    assert QuickchatOptions.model_validate(LEGACY).base_url == "https://chat.quickchat.ai"
    assert QuickchatOptions.model_validate({**LEGACY, "token": ""}).base_url == "https://chat.quickchat.ai"
    assert QuickchatOptions.model_validate(CURRENT).base_url == "https://app.quickchat.ai"
    assert QuickchatOptions.model_validate({**CURRENT, "base_url": "http://h:1/x/"}).base_url == "http://h:1/x"


def test_identity_and_repr_hold_no_secret() -> None:
    """Identity differs by credential, and nothing that can be shown holds it."""
    one, other = bot({})[0], bot({}, api_key="another")[0]
    assert one.identity != other.identity
    assert "legacy-secret" not in one.identity + repr(one) + repr(one.options)


def test_loaded_by_name() -> None:
    """The vendor's name leads to its class and its options."""
    assert load("quickchat") is Quickchat
    assert load("quickchat").Options is QuickchatOptions
