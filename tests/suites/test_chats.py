"""Whole chats through SDKs of other languages and versions, and afterwards what the vendors say they heard."""

from collections.abc import Callable
from typing import Any

import pytest

from proxy.markup import MarkupFilter
from tests.suites.sdks import EDIT, FAULTS, MODELS, ONWARD, SDKS, TURNS, Visit

pytestmark = pytest.mark.timeout(300)  # whoever comes first installs

Visits = Callable[[str], Visit]

CHATS = [(name, model, way) for name, sdk in SDKS.items() for model in MODELS for way in sdk.ways]
STREAMS = [chat for chat in CHATS if chat[2] not in ("plain", "sync", "async")]
chats = pytest.mark.parametrize(("name", "model", "way"), CHATS)

REFUSALS = {
    "unknown-model": ("NotFoundError", 404, "model_not_found"),
    "wrong-key": ("AuthenticationError", 401, "invalid_api_key"),
    "unsupported": ("BadRequestError", 400, "unsupported_parameter"),
    "wrong-type": ("BadRequestError", 400, "invalid_type"),
    "limited": ("RateLimitError", 429, "vendor_rate_limited"),
    "refused": ("InternalServerError", 502, "vendor_refused"),
    "unreachable": ("InternalServerError", 502, "vendor_unavailable"),
    "unreachable-twice": ("InternalServerError", 502, "vendor_unavailable"),
    "failed": ("InternalServerError", 502, "vendor_failed"),
    "cut-off": ("InternalServerError", 502, "vendor_failed"),
}
PARAMS = {"unsupported": "logprobs", "wrong-type": "user"}
TYPES = {"vendor_rate_limited": "rate_limit_error"}
BROKEN = ["broken", "truncated", "told-in-stream", "broken-text"]


def how(told: Any) -> str:
    """`x-parley-conversation` and its reason."""
    names = ("x-parley-conversation", "x-parley-reason")
    return " ".join(told["headers"][name] for name in names if name in told["headers"])


def as_markdown(text: str) -> str:
    """What becomes of HTML that a bot speaks."""
    markup = MarkupFilter()
    return markup.feed(text) + markup.flush()


def test_every_fault_is_looked_at() -> None:
    """Every fault of the plan is one of those that are expected below."""
    assert {*REFUSALS, *BROKEN} == set(FAULTS)


@pytest.mark.parametrize("name", SDKS)
def test_callers_come_to_their_end(visits: Visits, name: str) -> None:
    """Every client does all of its plan without a word of complaint, and no vendor has seen what it forbids."""
    visit = visits(name)
    assert visit.told["complaint"] == ""
    assert visit.line("end")
    assert visit.told["violations"] == []


@chats
def test_three_turns_are_one_vendor_conversation(visits: Visits, name: str, model: str, way: str) -> None:
    """A chat of three turns is opened once, continued exactly, and heard by the vendor word for word, once."""
    visit = visits(name)
    talk = visit.line(f"talk {model} {way}")
    first = visit.conversations(model, talk["label"])[0][:6]
    heard = [entry["text"] for entry in first if entry["role"] == "user"]
    assert [how(told) for told in talk["turns"]] == ["opened", "continued exact", "continued exact"]
    assert heard == [f"{talk['label']}: {TURNS[0]}", *TURNS[1:]]
    assert "Ada" in talk["turns"][1]["text"]


@chats
def test_replies_are_what_the_bot_said(visits: Visits, name: str, model: str, way: str) -> None:
    """A reply is the vendor's to the letter, streamed or not, and has one finish."""
    visit = visits(name)
    talk = visit.line(f"talk {model} {way}")
    entries = visit.conversations(model, talk["label"])[0]
    said = [entry["text"] for entry in entries if entry["role"] == "bot"]
    turns = [*talk["turns"], talk["onward"]]
    assert [told["text"] for told in turns] == [text if model == "newoaks" else as_markdown(text) for text in said]
    assert {told["finish"] for told in turns} == {"stop"}


@chats
def test_edits_are_rebuilt(visits: Visits, name: str, model: str, way: str) -> None:
    """An edited turn goes to a new vendor conversation, which is told what came before it and nothing of later."""
    visit = visits(name)
    talk = visit.line(f"talk {model} {way}")
    _, (told,), _ = visit.heard(model, talk["label"])
    assert how(talk["edited"]) == "rebuilt unknown-history"
    assert told.endswith(f"\n\n{EDIT}")
    assert talk["turns"][0]["text"] in told
    assert not any(text in told for text in TURNS[1:])


@chats
def test_regenerated_replies_are_rebuilt(visits: Visits, name: str, model: str, way: str) -> None:
    """The same request once more goes to a vendor conversation of its own, and the first one lives on."""
    visit = visits(name)
    talk = visit.line(f"talk {model} {way}")
    first, _, (told,) = visit.heard(model, talk["label"])
    assert how(talk["again"]) == "rebuilt unknown-history"
    assert told.endswith(f"\n\n{TURNS[2]}")
    assert all(turn["text"] in told for turn in talk["turns"][:2])
    assert how(talk["onward"]) == "continued exact"
    assert first[1:] == [*TURNS[1:], ONWARD]


@chats
def test_usage_adds_up(visits: Visits, name: str, model: str, way: str) -> None:
    """Plain or at the end of a stream, every reply has a usage that adds up and grows with the chat."""
    talk = visits(name).line(f"talk {model} {way}")
    usages = [told["usage"] for told in talk["turns"]]
    for told in talk["turns"]:
        usage = told["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
        assert usage["completion_tokens"] == -(-len(told["text"].encode()) // 4)
        assert usage.get("alone", True), "the chunk with the usage has no choices"
    assert usages == sorted(usages, key=lambda usage: int(usage["prompt_tokens"]))


@chats
def test_request_ids_are_read(visits: Visits, name: str, model: str, way: str) -> None:
    """What an SDK knows as the request's id is the one in the header."""
    talk = visits(name).line(f"talk {model} {way}")
    for told in talk["turns"]:
        assert told["headers"]["x-request-id"].startswith("req_")
        assert told.get("request", told["headers"]["x-request-id"]) == told["headers"]["x-request-id"]


@pytest.mark.parametrize(("name", "model", "way"), STREAMS)
def test_streams_come_as_the_bot_speaks(visits: Visits, name: str, model: str, way: str) -> None:
    """A bot that streams is heard in many pieces, one that does not in a single one; together they are the reply."""
    for told in visits(name).line(f"talk {model} {way}")["turns"]:
        assert told["headers"]["content-type"] == "text/event-stream; charset=utf-8"
        assert "".join(told["pieces"]) == told["text"]
        assert len(told["pieces"]) == 1 if model == "quickchat" else len(told["pieces"]) > 20


# --- faults


def fault_of(told: Any) -> Any:
    assert "fault" in told, f"it ended as if all were well: {told}"
    return told["fault"]


@pytest.mark.parametrize(
    ("name", "way", "fault"),
    [
        (name, way, fault)
        for name, sdk in SDKS.items()
        for fault in REFUSALS
        for way in sdk.ways[: FAULTS[fault].get("ways")]
    ],
)
def test_faults_are_typed_exceptions(visits: Visits, name: str, way: str, fault: str) -> None:
    """What goes wrong before the first word is the SDK's exception of its status, plain or streaming."""
    told = visits(name).line(f"fault {fault} {way}")
    caught, (kind, status, code) = fault_of(told), REFUSALS[fault]
    assert (caught["class"], caught["status"], caught["code"]) == (kind, status, code)
    assert caught["type"] == TYPES.get(code, "api_error" if status > 500 else "invalid_request_error")
    assert caught["param"] == PARAMS.get(fault)
    assert caught["api"]
    assert f"(parley: {code})" in caught["message"]
    assert caught["request"] == told["headers"]["x-request-id"]
    assert told["pieces"] == []


@pytest.mark.parametrize(("fault", "attempts"), [("unreachable-twice", 2), ("failed", 1)])
@pytest.mark.parametrize(("name", "way"), [(name, way) for name, sdk in SDKS.items() for way in sdk.ways[:2]])
def test_only_what_was_not_delivered_is_repeated(
    visits: Visits, name: str, way: str, fault: str, attempts: int
) -> None:
    """Of two faults with status 502 an SDK repeats the one of which the bot has surely heard nothing."""
    assert visits(name).line(f"fault {fault} {way}")["attempts"] == attempts


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(("name", "way"), sorted({(name, way) for name, _, way in STREAMS}))
def test_broken_streams_are_raised(visits: Visits, name: str, way: str, fault: str) -> None:
    """A stream that breaks off after its first piece raises the SDK's error with our code, and never ends silently."""
    told = visits(name).line(f"fault {fault} {way}")
    caught = fault_of(told)
    assert len(told["pieces"]) > 5
    assert (caught["class"], caught["code"], caught["type"]) == ("APIError", "vendor_failed", "api_error")
    assert caught["api"]
    assert "(parley: vendor_failed)" in caught["message"]


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(("name", "way"), sorted({(name, way) for name, _, way in CHATS} - {c[::2] for c in STREAMS}))
def test_broken_replies_are_errors_when_whole_ones_were_asked_for(
    visits: Visits, name: str, way: str, fault: str
) -> None:
    """The same fault in a plain call is an error with a status, not half a reply."""
    caught = fault_of(visits(name).line(f"fault {fault} {way}"))
    assert (caught["class"], caught["status"], caught["code"]) == ("InternalServerError", 502, "vendor_failed")


# --- silence


@pytest.mark.parametrize(("name", "way"), sorted({(name, way) for name, _, way in CHATS}))
def test_heartbeats_are_not_heard(visits: Visits, name: str, way: str) -> None:
    """A bot that is silent for several heartbeats is heard as any other."""
    told = visits(name).line(f"wait {way}")
    assert told["heard"]["text"].startswith("Hello & welcome, this is message 1")
    assert how(told["heard"]) == "opened"


@pytest.mark.parametrize(("name", "way"), sorted({(name, way) for name, _, way in STREAMS}))
def test_faults_after_a_heartbeat_are_raised(visits: Visits, name: str, way: str) -> None:
    """A fault before the first word, but after a heartbeat has used the status up, raises the SDK's error."""
    told = visits(name).line(f"wait {way}")["failed"]
    caught = fault_of(told)
    assert (caught["class"], caught["status"], caught["code"]) == ("APIError", None, "vendor_failed")
    assert told["pieces"] == []


# --- models


@pytest.mark.parametrize("name", SDKS)
def test_models_are_listed(visits: Visits, name: str) -> None:
    """`models.list()` and `models.retrieve()` know every model, also one with a slash in its name."""
    told = visits(name).line("models")
    listed = {model["id"]: model["owned_by"] for model in told["listed"]}
    assert {*MODELS, "misterturing", "team/gpt", "away"} <= set(listed)
    assert listed["team/gpt"] == "newoaks"
    assert told["retrieved"] == told["listed"]


@pytest.mark.parametrize("name", SDKS)
@pytest.mark.parametrize(("asked", "code"), [("fault", "model_not_found"), ("elsewhere", "not_found")])
def test_what_is_not_there_is_a_typed_exception(visits: Visits, name: str, asked: str, code: str) -> None:
    """A model or a path that is not there is the SDK's NotFoundError."""
    caught = visits(name).line("models")[asked]
    assert (caught["class"], caught["status"], caught["code"]) == ("NotFoundError", 404, code)


# --- leaving

LEAVING = [
    *((f"openai-node-{major}", manner) for major in (6, 7) for manner in ("break", "controller", "signal", "helper")),
    *(("openai-python-2", manner) for manner in ("close", "helper", "cancel")),
]


@pytest.mark.parametrize(("name", "manner"), LEAVING)
def test_left_replies_are_never_continued(visits: Visits, name: str, manner: str) -> None:
    """A client that leaves mid-stream goes on in a new vendor conversation, which knows what the client had heard."""
    visit = visits(name)
    told = visit.line(f"leave {manner}")
    left, rebuilt = visit.heard("newoaks", told["label"])
    # In use, where the next request was faster than the hang-up.
    assert how(told["next"]) in ("rebuilt unknown-history", "rebuilt in-use")
    assert len(left) == 1
    assert f"Assistant: {told['text']}\n" in rebuilt[0]
    assert rebuilt[0].endswith(f"\n\n{ONWARD}")


@pytest.mark.parametrize("name", SDKS)
def test_vendors_are_hung_up_on(visits: Visits, name: str) -> None:
    """Every way of leaving that an SDK has, a time-out among them, takes the vendor's call with it."""
    visit = visits(name)
    left = [id for id in visit.told["lines"] if id.startswith("leave ")]
    assert len(left) == visit.told["hung_up"]
