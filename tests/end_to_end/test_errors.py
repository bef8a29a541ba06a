"""What goes wrong and how a client is told: the error table of the interface, row by row, plain and streaming."""

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import openai
import pytest

from proxy.simulator import Vendor
from tests.conftest import Stage, stage
from tests.end_to_end.callers import (
    MODELS,
    WAYS,
    Answer,
    Chat,
    Refused,
    Way,
    async_client,
    async_plain,
    async_stream,
    call,
    calling,
    fresh,
    heard_by,
    question,
    raw_plain,
    raw_stream,
    request_bytes,
    soon,
    sync_client,
)

CALM: dict[str, Any] = {"breaker": {"failures": 0}}
ENTRIES = {
    **{model: {**CALM, "max_reply_bytes": 30_000} for model in MODELS},
    "newoaks": {**CALM, "max_reply_bytes": 30_000, "aliases": ["gpt-4o-mini"]},
}
KEYS = [{"name": "all", "key": "key-for-all"}, {"name": "quick", "key": "key-for-quick", "models": ["quick*t", "n?x"]}]
WAY_NAMES = {"plain": async_plain, "stream": async_stream}


@dataclass(frozen=True)
class Row:
    """One row of the interface's error table."""

    status: int
    word: str
    retry: bool
    kind: type[openai.APIStatusError]


ROWS: Mapping[str, Row] = {
    "vendor_rate_limited": Row(429, "rate_limit_error", True, openai.RateLimitError),
    "bot_busy": Row(429, "rate_limit_error", True, openai.RateLimitError),
    "vendor_auth_failed": Row(502, "api_error", False, openai.InternalServerError),
    "vendor_refused": Row(502, "api_error", False, openai.InternalServerError),
    "vendor_unavailable": Row(502, "api_error", True, openai.InternalServerError),
    "vendor_failed": Row(502, "api_error", False, openai.InternalServerError),
    "vendor_timeout": Row(504, "api_error", False, openai.InternalServerError),
    "vendor_no_answer": Row(502, "api_error", False, openai.InternalServerError),
}


@pytest.fixture(scope="module")
def failing_stage() -> Iterator[Stage]:
    """Bots that are asked again however often they fail."""
    with stage(models=ENTRIES, server={"max_body_bytes": 1_000_000}) as built:
        yield built


@pytest.fixture(scope="module")
def impatient_stage() -> Iterator[Stage]:
    """Bots that are not waited for."""
    times = {"first_byte_timeout": 0.25, "idle_timeout": 0.25}
    with stage(models={model: {**CALM, **times} for model in MODELS}) as built:
        yield built


@pytest.fixture(scope="module")
def odd_stage() -> Iterator[Stage]:
    """Bots with settings of their own."""
    models = {
        "newoaks": {"recap": "refuse", "timeout": 0.8},
        "quickchat": {"recap": "ignore", "max_connections": 1, "connect_timeout": 0.2},
        "quickchat-legacy": {"recap_text": "So far:", "recap_max_chars": 300, "idle_ttl": 0.5},
    }
    with stage(models=models) as built:
        yield built


@pytest.fixture(scope="module")
def keyed() -> Iterator[Stage]:
    with stage(models=ENTRIES, keys=KEYS) as built:
        yield built


@pytest.fixture
def failing(failing_stage: Stage) -> Iterator[Stage]:
    yield from fresh(failing_stage)


@pytest.fixture
def impatient(impatient_stage: Stage) -> Iterator[Stage]:
    yield from fresh(impatient_stage)


@pytest.fixture
def odd(odd_stage: Stage) -> Iterator[Stage]:
    yield from fresh(odd_stage)


@pytest.fixture
def person() -> str:
    return f"person-{uuid4().hex}"


def told(fault: openai.APIError) -> dict[str, Any]:
    """The error object, which has its four keys and ends in its code."""
    assert isinstance(fault.body, dict)
    assert set(fault.body) == {"message", "type", "param", "code"}
    assert fault.body["message"].endswith(f" (parley: {fault.code})")
    assert "\n" not in fault.body["message"]
    return fault.body


def is_row(fault: openai.APIError, code: str) -> bool:
    """Whether an error is told as its row says: class, status, type, param and headers."""
    row = ROWS[code]
    assert isinstance(fault, openai.APIStatusError)
    assert fault.code == code
    assert type(fault) is row.kind
    assert fault.status_code == row.status
    assert told(fault)["type"] == row.word
    assert fault.param is None
    assert fault.response.headers["x-should-retry"] == str(row.retry).lower()
    assert ("retry-after" in fault.response.headers) is (row.status == 429)
    assert fault.response.headers["x-request-id"].startswith("req_")
    assert fault.response.headers["content-type"] == "application/json"
    return True


async def fault_of(chat: Chat, text: str = "Hello") -> openai.APIError:
    """The error that one more turn ends in; the turn is taken back."""
    with pytest.raises(openai.APIError) as caught:
        await chat.say(text)
    chat.messages.pop()
    return caught.value


async def refused(chat: Chat, text: str) -> Answer:
    """The raw answer of a turn that fails; the turn is taken back."""
    with pytest.raises(Refused) as caught:
        await chat.say(text)
    chat.messages.pop()
    return caught.value.answer


# --- vendors' faults

EVERYWHERE = {
    "limited": "vendor_rate_limited",
    "limited-date": "vendor_rate_limited",
    "unauthorized": "vendor_auth_failed",
    "refused": "vendor_refused",
    "failed": "vendor_failed",
    "unavailable": "vendor_failed",
    "request-timeout": "vendor_timeout",
    "gateway-timeout": "vendor_timeout",
    "garbled": "vendor_failed",
    "html": "vendor_failed",
    "redirect": "vendor_failed",
    "empty": "vendor_no_answer",
    "null": "vendor_no_answer",
    "blank": "vendor_no_answer",
}
SPOILT = dict.fromkeys(["truncated", "cut-off", "invalid-utf8", "wrong-type", "huge", "endless"], "vendor_failed")
BROKEN = dict.fromkeys(["cut-off", "invalid-utf8", "huge", "endless"], "vendor_failed")
ENVELOPES = {
    "envelope-failed": "vendor_failed",
    "envelope-limited": "vendor_rate_limited",
    "envelope-unauthorized": "vendor_auth_failed",
}
QUICK = {**EVERYWHERE, **SPOILT, "hand-off": "vendor_no_answer"}
CASES = [
    *(("newoaks", way, fault, code) for way in WAY_NAMES for fault, code in {**EVERYWHERE, **ENVELOPES}.items()),
    *(("newoaks", "plain", fault, code) for fault, code in {**SPOILT, "error-in-stream": "vendor_failed"}.items()),
    *(("quickchat", way, fault, code) for way in WAY_NAMES for fault, code in QUICK.items()),
    *(("quickchat-legacy", way, fault, code) for way in WAY_NAMES for fault, code in QUICK.items()),
    *(("askhandle", way, fault, code) for way in WAY_NAMES for fault, code in {**EVERYWHERE, **SPOILT}.items()),
    *(("askhandle", way, fault, "vendor_no_answer") for way in WAY_NAMES for fault in ("terminated", "hand-off")),
    *(("misterturing", "plain", fault, code) for fault, code in {**EVERYWHERE, **BROKEN}.items()),
    *(("misterturing", "stream", fault, code) for fault, code in EVERYWHERE.items()),
]


@pytest.mark.parametrize(("model", "way", "fault", "code"), CASES, ids=map("-".join, CASES))
async def test_vendor_fault_has_its_row(failing: Stage, model: str, way: str, fault: str, code: str) -> None:
    """A vendor's fault is told with the class, status, type, code and headers of its row; the proxy goes on."""
    vendor = failing.simulator.vendors[model]
    vendor.fail(fault, megabytes=0.2)
    chat = Chat(failing.url, model, WAY_NAMES[way], more={"user": uuid4().hex})
    caught = await fault_of(chat)
    assert is_row(caught, code)
    assert isinstance(caught, openai.APIStatusError)
    if fault in ("limited", "envelope-limited"):
        assert caught.response.headers["retry-after"] == "7"
    if fault == "limited-date":
        assert 4 <= int(caught.response.headers["retry-after"]) <= 7
    chat.way = raw_plain
    assert (await chat.say("Hello")).how == "opened"


OPENING = {
    **dict.fromkeys(
        [
            "failed", "unavailable", "request-timeout", "gateway-timeout", "garbled", "html", "redirect", "truncated",
            "cut-off", "wrong-type", "envelope-failed",
        ],
        "vendor_unavailable",
    ),
    "limited": "vendor_rate_limited",
    "envelope-limited": "vendor_rate_limited",
    "unauthorized": "vendor_auth_failed",
    "envelope-unauthorized": "vendor_auth_failed",
    "refused": "vendor_refused",
}  # fmt: skip


OPENERS = [
    (model, way, fault)
    for model in ("askhandle", "misterturing", "newoaks")
    for way, fault in zip(itertools.cycle(WAY_NAMES), OPENING, strict=False)
    if model == "newoaks" or not fault.startswith("envelope")
]


@pytest.mark.parametrize(("model", "way", "fault"), OPENERS)
async def test_fault_while_opening_has_its_row(failing: Stage, model: str, way: str, fault: str) -> None:
    """Whatever fails while a conversation is opened was not delivered: the question may be repeated."""
    vendor = failing.simulator.vendors[model]
    vendor.fail(fault, on="open")
    chat = Chat(failing.url, model, WAY_NAMES[way], more={"user": uuid4().hex})
    assert is_row(await fault_of(chat), OPENING[fault])
    assert [call.operation for call in vendor.calls] == ["open"]
    chat.way = raw_plain
    assert (await chat.say("Hello")).how == "opened"
    assert heard_by(vendor)[-1] == ["Hello"]


MIDSTREAM = [
    *(("newoaks", fault) for fault in ("truncated", "cut-off", "invalid-utf8", "error-in-stream", "huge")),
    *(("misterturing", fault) for fault in BROKEN),
]


@pytest.mark.parametrize(("model", "fault"), MIDSTREAM)
@pytest.mark.parametrize("way", ["sync-stream", "async-stream"])
async def test_fault_mid_stream_is_raised(failing: Stage, way: str, model: str, fault: str) -> None:
    """A stream that fails after its first delta raises the SDK's APIError with our code, not a silent end."""
    vendor = failing.simulator.vendors[model]
    vendor.fail(fault, megabytes=0.2)
    chat = Chat(failing.url, model, WAYS[way], more={"user": uuid4().hex})
    caught = await fault_of(chat, "say one two three four")
    assert caught.code == "vendor_failed"
    assert told(caught)["type"] == "api_error"


@pytest.mark.parametrize(("model", "way"), list(zip(MODELS, itertools.cycle(WAY_NAMES))))
async def test_slow_vendor_is_a_timeout(impatient: Stage, model: str, way: str) -> None:
    """A vendor that does not begin in `first_byte_timeout` is a 504, and it is hung up on."""
    vendor = impatient.simulator.vendors[model]
    vendor.fail("slow")
    assert is_row(await fault_of(Chat(impatient.url, model, WAY_NAMES[way])), "vendor_timeout")
    await soon(lambda: vendor.hung_up == 1)


@pytest.mark.parametrize("way", WAY_NAMES)
async def test_stalled_vendor_is_a_timeout(impatient: Stage, way: str) -> None:
    """A vendor that stops in the midst for longer than `idle_timeout` is a timeout, told in the stream if it must."""
    vendor = impatient.simulator.newoaks
    vendor.fail("stall")
    caught = await fault_of(Chat(impatient.url, "newoaks", WAY_NAMES[way]), "say one two three four")
    assert caught.code == "vendor_timeout"
    assert "idle_timeout" in told(caught)["message"] or way == "plain"
    await soon(lambda: vendor.hung_up == 1)


async def test_slow_opening_may_be_repeated(impatient: Stage) -> None:
    """A session that is not opened in time leaves nothing delivered: 502, and retry."""
    impatient.simulator.newoaks.fail("slow", on="open")
    assert is_row(await fault_of(Chat(impatient.url, "newoaks", async_plain)), "vendor_unavailable")


async def test_whole_turn_has_a_deadline(odd: Stage) -> None:
    """`timeout` bounds the whole turn, however steadily the vendor trickles."""
    odd.simulator.newoaks.gap = 0.05
    try:
        caught = await fault_of(Chat(odd.url, "newoaks", async_stream), "say " + "word " * 100)
    finally:
        odd.simulator.newoaks.gap = 0
    assert caught.code == "vendor_timeout"
    assert "`timeout`" in told(caught)["message"]


async def test_unreachable_vendor_may_be_repeated() -> None:
    """A vendor that nobody answers for is unavailable: 502, and retry."""
    with stage(models={model: {"base_url": "http://127.0.0.1:9", **CALM} for model in MODELS}) as built:
        for model in MODELS:
            for way in WAY_NAMES.values():
                assert is_row(await fault_of(Chat(built.url, model, way)), "vendor_unavailable")


async def test_wrong_credential_is_never_the_callers() -> None:
    """A credential that the vendor refuses is a 502 that names the key of the configuration and not its value."""
    wrong = {"newoaks": "secret_key", "quickchat": "token", "quickchat-legacy": "api_key"}
    wrong |= {"askhandle": "token", "misterturing": "api_key"}
    models = {model: {key: "not-the-right-one", **CALM} for model, key in wrong.items()}
    with stage(models=models) as built:
        for model, key in wrong.items():
            caught = await fault_of(Chat(built.url, model, async_plain))
            assert is_row(caught, "vendor_auth_failed")
            assert f"`{key}`" in caught.message
            assert "not-the-right-one" not in caught.message


async def test_full_pool_is_busy(odd: Stage) -> None:
    """With all connections in use the caller is told to come back: 429 with Retry-After, nothing was sent."""
    vendor = odd.simulator.quickchat
    fault = vendor.fail("slow")
    async with calling(odd.url, question("quickchat", "First")) as line:
        await soon(lambda: len(vendor.calls) == 1)
        assert is_row(await fault_of(Chat(odd.url, "quickchat", async_plain)), "bot_busy")
        fault.release()
        assert (await line.answer()).status == 200
    assert heard_by(vendor) == [["First"]]


# --- what happens to the conversation


def alternating(faults: Iterable[str]) -> list[Any]:
    """Every fault at every vendor, plain and streaming in turn."""
    nothing_seen = [("misterturing", "truncated")]  # raw text that ends early looks like shorter text
    cases = [case for case in itertools.product(MODELS, faults) if case not in nothing_seen]
    ways = itertools.cycle((("plain", raw_plain), ("stream", raw_stream)))
    return [pytest.param(m, way, f, id=f"{m}-{name}-{f}") for (m, f), (name, way) in zip(cases, ways, strict=False)]


KNOWN_UNDELIVERED = ["limited", "unauthorized", "refused"]
UNKNOWN = ["failed", "unavailable", "request-timeout", "gateway-timeout", "garbled", "html", "cut-off", "truncated"]


@pytest.mark.parametrize(("model", "way", "fault"), alternating(KNOWN_UNDELIVERED))
async def test_undelivered_turn_is_continued(failing: Stage, model: str, way: Way, fault: str) -> None:
    """After a fault that proves that nothing was taken in, the retry goes on in the same vendor conversation."""
    vendor = failing.simulator.vendors[model]
    chat = Chat(failing.url, model, way, more={"user": uuid4().hex})
    await chat.say("One")
    vendor.fail(fault, times=3)
    for _ in range(3):
        await refused(chat, "Two")
    assert (await chat.say("Two")).how == "continued exact"
    assert (await chat.say("Three")).how == "continued exact"
    assert heard_by(vendor) == [["One", "Two", "Three"]]


@pytest.mark.parametrize(("model", "way", "fault"), alternating(UNKNOWN))
async def test_turn_of_unknown_fate_is_rebuilt(failing: Stage, model: str, way: Way, fault: str) -> None:
    """After a fault with an unknown outcome a retry is rebuilt; no vendor conversation holds a turn twice."""
    vendor = failing.simulator.vendors[model]
    chat = Chat(failing.url, model, way, more={"user": uuid4().hex})
    await chat.say("One")
    vendor.fail(fault)
    await refused(chat, "Two")
    assert (await chat.say("Two")).how == "rebuilt unknown-history"
    assert (await chat.say("Three")).how == "continued exact"
    first, second = heard_by(vendor)
    assert first in (["One"], ["One", "Two"])
    assert second[0].endswith("\n\nTwo")
    assert second[1:] == ["Three"]


@pytest.mark.parametrize("fault", ["empty", "null", "blank"])
@pytest.mark.parametrize("model", MODELS)
async def test_conversation_without_an_answer_is_dropped(failing: Stage, model: str, fault: str) -> None:
    """A bot that took the turn and said nothing is not asked again in that conversation."""
    vendor = failing.simulator.vendors[model]
    chat = Chat(failing.url, model, async_plain, more={"user": uuid4().hex})
    await chat.say("One")
    vendor.fail(fault)
    assert is_row(await fault_of(chat, "Two"), "vendor_no_answer")
    assert (await chat.say("Two")).how == "rebuilt unknown-history"
    assert [len(texts) for texts in heard_by(vendor)] == [2, 1]


async def test_handed_over_conversation_is_left(failing: Stage) -> None:
    """After a hand-off to a human the next turn opens a conversation with the bot anew."""
    vendor = failing.simulator.quickchat
    chat = Chat(failing.url, "quickchat", async_plain, more={"user": uuid4().hex})
    await chat.say("One")
    vendor.fail("hand-off")
    assert is_row(await fault_of(chat, "Two"), "vendor_no_answer")
    assert (await chat.say("Two")).how == "rebuilt unknown-history"
    assert (await chat.say("Three")).how == "continued exact"


@pytest.mark.parametrize("way", WAY_NAMES)
@pytest.mark.parametrize("model", MODELS)
async def test_forgotten_conversation_is_rebuilt_at_once(failing: Stage, model: str, way: str) -> None:
    """A vendor that has forgotten the conversation is told it again within the same request, and then continued."""
    vendor = failing.simulator.vendors[model]
    chat = Chat(failing.url, model, WAY_NAMES[way], more={"user": uuid4().hex})
    for text in ("My name is Ada.", "Two"):
        await chat.say(text)
    vendor.forget()
    answer = await chat.say("What is my name?")
    assert answer.how == "rebuilt vendor-forgot"
    assert "Your name is Ada" in answer.text
    assert (await chat.say("Four")).how == "continued exact"
    first, second = heard_by(vendor)
    assert first == ["My name is Ada.", "Two"]
    assert second[0].endswith("\n\nWhat is my name?")
    assert second[1:] == ["Four"]


async def test_forgetting_again_and_again(failing: Stage) -> None:
    """A vendor that forgets between all turns is told the whole chat each time, every turn once."""
    vendor = failing.simulator.quickchat
    chat = Chat(failing.url, "quickchat", more={"user": uuid4().hex})
    hows = []
    for number in range(4):
        hows.append((await chat.say(f"Turn {number}")).how)
        vendor.forget()
    assert hows == ["opened"] + ["rebuilt vendor-forgot"] * 3
    assert [text.rpartition("\n\n")[2] for texts in heard_by(vendor) for text in texts] == [
        f"Turn {number}" for number in range(4)
    ]


@pytest.mark.parametrize(("fault", "code"), [("limited", "vendor_rate_limited"), ("failed", "vendor_failed")])
async def test_fault_after_forgetting_is_told(failing: Stage, fault: str, code: str) -> None:
    """Is the rebuilt conversation met by a fault as well, that is told, and the next try is rebuilt."""
    vendor = failing.simulator.quickchat
    chat = Chat(failing.url, "quickchat", async_plain, more={"user": uuid4().hex})
    await chat.say("One")
    vendor.fail("forgotten")
    vendor.fail(fault)
    assert is_row(await fault_of(chat, "Two"), code)
    assert (await chat.say("Two")).how == "rebuilt unknown-history"


async def test_changed_ids_are_followed(failing: Stage) -> None:
    """A vendor that gives the conversation a new id with every reply is followed."""
    vendor = failing.simulator.quickchat
    vendor.changes_id = True
    try:
        chat = Chat(failing.url, "quickchat", more={"user": uuid4().hex})
        hows = [(await chat.say(f"Turn {number}")).how for number in range(4)]
    finally:
        vendor.changes_id = False
    assert hows == ["opened"] + ["continued exact"] * 3
    assert heard_by(vendor) == [[f"Turn {number}" for number in range(4)]]


async def test_expired_conversation_is_rebuilt(odd: Stage) -> None:
    """A conversation that was silent for longer than `idle_ttl` is not taken up again, and the reason is told."""
    chat = Chat(odd.url, "quickchat-legacy")
    await chat.say("One")
    await asyncio.sleep(0.6)
    assert (await chat.say("Two")).how == "rebuilt expired"
    assert (await chat.say("Three")).how == "continued exact"


async def test_recap_refuse(odd: Stage) -> None:
    """`recap: refuse`: a history that no conversation fits is a 400; new chats and known ones are served."""
    chat = Chat(odd.url, "newoaks", async_plain)
    for text in ("One", "Two"):
        await chat.say(text)
    for way in WAY_NAMES.values():
        other = chat.back_to(1)
        other.way = way
        caught = await fault_of(other, "Something else")
        assert isinstance(caught, openai.BadRequestError)
        assert (caught.code, caught.param) == ("conversation_not_found", "messages")
        assert caught.response.headers["x-should-retry"] == "false"
        told(caught)
    assert (await chat.say("Three")).how == "continued exact"
    odd.simulator.newoaks.forget()
    assert (await fault_of(chat, "Four")).code == "conversation_not_found"
    assert heard_by(odd.simulator.newoaks) == [["One", "Two", "Three"]]


async def test_recap_ignore(odd: Stage) -> None:
    """`recap: ignore`: a history that no conversation fits is left out, and the answer says so."""
    chat = Chat(odd.url, "quickchat")
    for text in ("One", "Two"):
        await chat.say(text)
    other = chat.back_to(1)
    assert (await other.say("Something else")).how == "rebuilt recap-off"
    assert (await other.say("More")).how == "continued exact"
    assert heard_by(odd.simulator.quickchat) == [["One", "Two"], ["Something else", "More"]]


async def test_recap_wording_and_length(odd: Stage) -> None:
    """`recap_text` words the recap, and `recap_max_chars` keeps the newest of it."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"Message {i} " + "x" * 60} for i in range(40)]
    await Chat(odd.url, "quickchat-legacy", messages=messages).say("And now?")
    ((text,),) = heard_by(odd.simulator.quickchat_legacy)
    assert text.startswith("So far:\n")
    assert text.endswith("\n\nAnd now?")
    assert "Message 39" in text
    assert "Message 3 " not in text
    assert len(text) < 450


# --- the client's own faults


def body_with(**fields: Any) -> dict[str, Any]:
    body = {"model": "newoaks", "messages": [{"role": "user", "content": "Hello"}], **fields}
    return {name: value for name, value in body.items() if value != "absent"}


def first_message(**fields: Any) -> dict[str, Any]:
    return body_with(messages=[{"role": "user", "content": "Hello", **fields}])


def first_part(*parts: Any, **fields: Any) -> dict[str, Any]:
    return body_with(messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}, *parts]}], **fields)


TYPES: Mapping[str, Any] = {
    "model": 7, "messages": "Hello", "stream": "yes", "stream_options": "usage", "user": 7, "safety_identifier": [],
    "metadata": ["a"], "n": "2", "stop": 5, "max_tokens": "many", "max_completion_tokens": 1.5, "temperature": "hot",
    "top_p": [], "frequency_penalty": "a", "presence_penalty": True, "logit_bias": [], "seed": "a", "store": "no",
    "service_tier": 1, "verbosity": 1, "reasoning_effort": 3, "prediction": "x", "modalities": "text", "audio": "x",
    "parallel_tool_calls": 1, "logprobs": 3, "top_logprobs": "a", "response_format": "json", "tools": {},
    "functions": "f", "tool_choice": 3, "function_call": 3,
}  # fmt: skip
RANGES: Mapping[str, Any] = {
    "n": 0, "stop": ["a", "b", "c", "d", "e"], "max_tokens": 0, "max_completion_tokens": -1, "temperature": 3,
    "top_p": 1.5, "frequency_penalty": -2.5, "presence_penalty": 9, "top_logprobs": 21,
}  # fmt: skip
UNSUPPORTED: Mapping[str, Any] = {
    "logprobs": True,
    "top_logprobs": 3,
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "tool_choice": "required",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {}}},
    "function_call": {"name": "f"},
}
NAMED_TOOL = {"type": "function", "function": {"name": "f"}}

REQUESTS: dict[str, tuple[Any, str | None, str | None]] = {
    **{f"type of {name}": (body_with(**{name: value}), name, "invalid_type") for name, value in TYPES.items()},
    **{f"range of {name}": (body_with(**{name: value}), name, "invalid_value") for name, value in RANGES.items()},
    **{
        f"unsupported {name}": (body_with(**{name: value}), name, "unsupported_parameter")
        for name, value in UNSUPPORTED.items()
    },
    "a named tool": (body_with(tool_choice=NAMED_TOOL), "tool_choice", "unsupported_parameter"),
    "more choices than there may be": (body_with(n=9), "n", None),
    "usage that is a word": (
        body_with(stream=True, stream_options={"include_usage": "no"}),
        "stream_options.include_usage",
        "invalid_type",
    ),
    "no model": (body_with(model="absent"), "model", "missing_required_parameter"),
    "null model": (body_with(model=None), "model", "missing_required_parameter"),
    "empty model": (body_with(model=""), "model", "missing_required_parameter"),
    "no messages": (body_with(messages="absent"), "messages", "missing_required_parameter"),
    "null messages": (body_with(messages=None), "messages", "missing_required_parameter"),
    "empty messages": (body_with(messages=[]), "messages", "missing_required_parameter"),
    "number in metadata": (body_with(metadata={"a": 1}), "metadata", None),
    "number in stop": (body_with(stop=["a", 1]), "stop", None),
    "no object": (b"[1, 2]", None, "invalid_json"),
    "a string": (b'"Hello"', None, "invalid_json"),
    "no JSON": (b"{'model': 'newoaks'}", None, "invalid_json"),
    "half JSON": (b'{"model": "newo', None, "invalid_json"),
    "nothing": (b"", None, "invalid_json"),
    "NaN": (b'{"model": "newoaks", "messages": [], "temperature": NaN}', None, "invalid_json"),
    "no UTF-8": (b'{"model": "newoaks\xff", "messages": []}', None, "invalid_json"),
    "half a surrogate pair": (json.dumps(first_message(content="\ud83d")).encode(), None, "invalid_json"),
    "very deep": (b'{"model":' + b"[" * 9000 + b"]" * 9000 + b"}", None, None),
    "message that is none": (body_with(messages=["Hello"]), "messages[0]", "invalid_type"),
    "no role": (first_message(role=None), "messages[0].role", "missing_required_parameter"),
    "unknown role": (first_message(role="human"), "messages[0].role", "invalid_value"),
    "role that is a number": (first_message(role=1), "messages[0].role", None),
    "content that is a number": (first_message(content=7), "messages[0].content", "invalid_type"),
    "content that is an object": (first_message(content={"text": "a"}), "messages[0].content", "invalid_type"),
    "part that is a string": (first_part("Hello"), "messages[0].content[1]", "invalid_type"),
    "part of no kind": (first_part({"text": "Hello"}), "messages[0].content[1].type", "unsupported_value"),
    "part of unknown kind": (first_part({"type": "smell"}), "messages[0].content[1].type", "unsupported_value"),
    "part without text": (first_part({"type": "text"}), "messages[0].content[1].text", "invalid_type"),
    "second message": (
        body_with(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": 1}]),
        "messages[1].content",
        "invalid_type",
    ),
    "tool calls that are none": (
        body_with(messages=[{"role": "assistant", "tool_calls": "a"}, {"role": "user", "content": "b"}]),
        "messages[0].tool_calls",
        "invalid_type",
    ),
    "no base64": (
        first_part({"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}}),
        "messages[0].content[1].image_url.url",
        "invalid_value",
    ),
    "file address": (
        first_part({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
        "messages[0].content[1].image_url.url",
        "invalid_value",
    ),
    "image that the bot cannot see": (
        first_part({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, model="quickchat"),
        "messages[0].content[1].image_url",
        "unsupported_value",
    ),
    "audio that the bot cannot hear": (
        first_part({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, model="quickchat"),
        "messages[0].content[1].input_audio",
        "unsupported_value",
    ),
}


def is_refusal(answer: Answer, param: str | None, code: str | None) -> bool:
    """Whether a raw answer is a 400 with its envelope."""
    assert answer.status == 400, answer.body[:300]
    error = answer.json["error"]
    assert list(answer.json) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(f" (parley: {error['code']})")
    assert answer.headers["x-should-retry"] == "false"
    assert error["param"] == param
    return error["code"] == code or code is None


@pytest.mark.parametrize("case", REQUESTS)
async def test_faulty_request_names_its_fault(failing: Stage, case: str) -> None:
    """A request that cannot be served is a 400 whose `param` names the field at fault; no vendor is called."""
    body, param, code = REQUESTS[case]
    answer = await call(failing.url, body)
    assert is_refusal(answer, param, code)
    assert all(vendor.calls == [] for vendor in failing.simulator.vendors.values())


NOTHING_NEW: Mapping[str, list[dict[str, Any]]] = {
    "ends in a reply": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
    "ends in an empty text": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": " "}],
    "blank": [{"role": "user", "content": " \n\u200b"}],
    "no content": [{"role": "user"}],
    "null": [{"role": "user", "content": None}],
    "only a system prompt": [{"role": "system", "content": "Be kind."}],
    "only our error": [{"role": "assistant", "content": "It failed (parley: vendor_failed)"}],
}


@pytest.mark.parametrize("case", NOTHING_NEW)
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_new_to_say(failing: Stage, case: str, stream: bool) -> None:
    """A history that asks nothing is a 400 about `messages`, and nothing is sent."""
    body = {"model": "newoaks", "messages": NOTHING_NEW[case], "stream": stream}
    assert is_refusal(await call(failing.url, body), "messages", None)
    assert failing.simulator.newoaks.calls == []


NULLABLE = sorted({*TYPES, "functions", "web_search_options"} - {"model", "messages"})


@pytest.mark.parametrize("model", MODELS)
async def test_nulls_are_tolerated(failing: Stage, model: str) -> None:
    """Null stands for "not given", in every field and inside messages."""
    message = {"role": "user", "content": "Hello", "name": None, "tool_calls": None, "function_call": None}
    body = {"model": model, "messages": [message], **dict.fromkeys(NULLABLE)}
    answer = await call(failing.url, body)
    assert answer.status == 200
    assert "x-parley-ignored" not in answer.headers


async def test_ignored_fields_are_listed(failing: Stage) -> None:
    """What is accepted but cannot be honoured is listed in a header, unknown extras too, strange names apart."""
    fields = {
        "temperature": 0.5, "top_p": 1, "seed": 7, "store": True, "logit_bias": {"5": 1}, "parallel_tool_calls": True,
        "reasoning_effort": "low", "service_tier": "auto", "tools": [NAMED_TOOL], "tool_choice": "auto",
        "prediction": {"type": "content"}, "my_extra": 1, "bad name\r\nx-evil: 1": 1, "\u00e9": 1,
    }  # fmt: skip
    answer = await call(failing.url, body_with(**fields))
    assert answer.status == 200
    listed = answer.headers["x-parley-ignored"].split(", ")
    assert listed == [name for name in fields if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)]
    assert "x-evil" not in answer.headers
    many = await call(failing.url, body_with(**{f"extra{number}": 1 for number in range(50)}))
    assert len(many.headers["x-parley-ignored"].split(", ")) == 20
    unused = {"modalities": ["text"], "store": False, "tools": [], "tool_choice": "none", "logit_bias": {}}
    none = await call(failing.url, body_with(n=1, stream=False, user="me", metadata={}, **unused))
    assert "x-parley-ignored" not in none.headers


async def test_ill_formed_scope_is_ignored(failing: Stage) -> None:
    """A conversation id that is none is ignored and listed; the chat is served without it."""
    for header in ("x-conversation-id: has blanks", f"x-conversation-id: {'x' * 257}"):
        answer = await call(failing.url, body_with(), headers=[header])
        assert answer.headers["x-parley-ignored"] == "x-conversation-id"
    answer = await call(failing.url, body_with(metadata={"chat_id": "\u00e9"}))
    assert answer.headers["x-parley-ignored"] == "metadata.chat_id"


STRANGE: Mapping[str, Any] = {
    "number of 5000 digits": {"arguments": '{"a": ' + "1" * 5000 + "}"},
    "half a surrogate pair": {"arguments": '{"a": "\\ud83d"}'},
    "very deep": {"arguments": "[" * 5000},
    "infinity": {"arguments": "1e999"},
    "not a string": {"arguments": {"a": 1}},
    "nothing": {},
}


@pytest.mark.parametrize("case", STRANGE)
async def test_strange_tool_calls_in_a_history(failing: Stage, case: str, person: str) -> None:
    """Whatever arguments a tool call in the history has, the request is served and its conversation continued."""
    call_ = {"id": "call_1", "type": "function", "function": {"name": "f", **STRANGE[case]}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [call_]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    body = {"model": "newoaks", "messages": messages, "user": person}
    answer = await call(failing.url, body)
    assert answer.status == 200, answer.body
    messages += [answer.json["choices"][0]["message"], {"role": "user", "content": "Go on"}]
    assert (await call(failing.url, body)).headers["x-parley-conversation"] == "continued"


# --- paths, methods, keys, sizes


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/newoaks", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/", 404, "not_found"),
        ("GET", "/nothing/here", 404, "not_found"),
        ("POST", "/chat/completions", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "/v1/v1/chat/completions", 404, "not_found"),
        ("GET", "/%0d%0aset-cookie:%20a=b", 404, "not_found"),
    ],
)
async def test_unknown_paths_and_methods(failing: Stage, method: str, path: str, status: int, code: str) -> None:
    """Paths and methods that are not there are answered in OpenAI's envelope."""
    answer = await call(failing.url, body_with(), method=method, path=path)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    error = answer.json["error"]
    assert (error["code"], error["type"], error["param"]) == (code, "invalid_request_error", None)
    assert error["message"].endswith(f" (parley: {code})")
    assert answer.headers["x-should-retry"] == "false"
    assert "set-cookie" not in answer.headers


async def test_unknown_model_is_not_found(failing: Stage) -> None:
    """A model that is not there is the SDK's NotFoundError, plain, streaming and in `models.retrieve()`."""
    for way in WAYS.values():
        caught = await fault_of(Chat(failing.url, "nobody", way))
        assert isinstance(caught, openai.NotFoundError)
        assert caught.code == "model_not_found"
    with sync_client(failing.url) as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("key", ["wrong", "key-for-all2", "key-for-al", "KEY-FOR-ALL"])
async def test_wrong_key_is_unauthorized(keyed: Stage, key: str) -> None:
    """A wrong key is the SDK's AuthenticationError everywhere under /v1, also where there is nothing."""
    async with async_client(keyed.url, key) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="nobody", messages=[])
        assert (caught.value.code, told(caught.value)["type"]) == ("invalid_api_key", "invalid_request_error")
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_key_must_be_given(keyed: Stage) -> None:
    """No key, an empty one, another scheme or a key in another place is a 401; the scheme's case does not matter."""
    for headers in (
        [],
        ["authorization: "],
        ["authorization: Bearer"],
        ["authorization: Bearer "],
        ["authorization: Basic key-for-all"],
        ["authorization: key-for-all"],
        ["x-api-key: key-for-all"],
        ["authorization: Bearer k\u00e9y"],
    ):
        answer = await call(keyed.url, body_with(), headers=headers)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["x-should-retry"] == "false"
    assert (await call(keyed.url, body_with(), headers=["authorization: bearer key-for-all"])).status == 200
    for path in ("/healthz", "/readyz"):
        assert (await call(keyed.url, path=path, method="GET")).status == 200


async def test_key_may_use_its_models_only(keyed: Stage) -> None:
    """A key sees and uses the models of its patterns; all others do not exist for it, by whatever name."""
    async with async_client(keyed.url, "key-for-quick") as client:
        assert [model.id async for model in client.models.list()] == ["quickchat"]
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        await client.chat.completions.create(model="quickchat", messages=messages)
        told_of = []
        for name in ("newoaks", "gpt-4o-mini", "quickchat-legacy", "nobody", "quick*t"):
            for stream in (False, True):
                with pytest.raises(openai.NotFoundError) as caught:
                    await client.chat.completions.create(model=name, messages=messages, stream=stream)
                assert caught.value.code == "model_not_found"
                told_of.append(told(caught.value)["message"].replace(name, "X"))
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve(name)
        assert len(set(told_of)) == 1, "whether it exists is not told"


async def test_large_body_is_refused(failing: Stage) -> None:
    """A body over `max_body_bytes` is a 413 with the envelope, told in advance or not, and the client can read it."""
    text = "x" * 3_000_000
    for _ in range(3):
        async with async_client(failing.url) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="newoaks", messages=[{"role": "user", "content": text}])
        assert caught.value.status_code == 413
        assert (caught.value.code, told(caught.value)["type"]) == ("request_too_large", "invalid_request_error")
        assert caught.value.response.headers["x-should-retry"] == "false"
    head = request_bytes("/v1/chat/completions", b"", headers=["transfer-encoding: chunked"])
    async with asyncio.timeout(5), calling(failing.url, path="/healthz", method="GET") as line:
        assert (await line.answer()).status == 200
        line.writer.write(head.replace(b"content-length: 0\r\n", b""))
        line.writer.write(b"112a88\r\n" + b"x" * 0x112A88 + b"\r\n0\r\n\r\n")
        assert (await line.answer()).status == 413
    within = question("newoaks", "x" * 999_000)
    assert (await call(failing.url, within)).status in (200, 502), "the vendor has a limit of its own"


async def test_body_must_be_json(failing: Stage) -> None:
    """A body of another type is refused with a word about it; JSON with parameters or of a kind of its own is read."""
    for kind, status in (
        ("text/plain", 400),
        ("multipart/form-data; boundary=x", 400),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("Application/JSON", 200),
    ):
        answer = await call(failing.url, body_with(), headers=[f"content-type: {kind}"])
        assert answer.status == status
        if status == 400:
            assert "Content-Type" in answer.json["error"]["message"]


# --- nothing of anybody's in an error


SECRETS = ("demo-secret-key", "demo-api-key", "demo.jwt.token", "key-for-all", "my dark secret")


@pytest.mark.parametrize("fault", ["failed", "refused", "garbled", "html", "limited", "unauthorized", "empty"])
@pytest.mark.parametrize("model", MODELS)
async def test_errors_tell_no_secrets(failing: Stage, model: str, fault: str) -> None:
    """No error holds a credential, the user's text or the vendor's own words."""
    vendor = failing.simulator.vendors[model]
    vendor.fail(fault)
    answer = await call(failing.url, question(model, "my dark secret", stream=True))
    assert answer.status >= 400
    shown = answer.body.decode() + repr(answer.lines)
    assert not [secret for secret in SECRETS if secret in shown]
    for words in ("Internal server error", "The message was refused", "We will be back", "Too many requests"):
        assert words not in shown


async def test_browsers_may_read_errors() -> None:
    """With `cors_origins` errors and answers carry what a browser needs to read them, and preflights need no key."""
    with stage(server={"cors_origins": ["http://localhost:3000"]}, keys=KEYS) as built:
        origin = "origin: http://localhost:3000"
        key = "authorization: Bearer key-for-all"
        for headers, status in (([origin], 401), ([origin, key], 200)):
            answer = await call(built.url, body_with(), headers=headers)
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
            exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
            assert {"x-request-id", "x-parley-conversation", "x-parley-reason", "x-should-retry"} <= exposed
        preflight = [origin, "access-control-request-method: POST", "access-control-request-headers: authorization"]
        answer = await call(built.url, method="OPTIONS", headers=preflight)
        assert answer.status == 200
        stranger = await call(built.url, body_with(), headers=["origin: http://evil.example", key])
        assert "access-control-allow-origin" not in stranger.headers


def turns(vendor: Vendor) -> Counter[str]:
    """How often each question stands in one and the same vendor conversation, at most."""
    most: Counter[str] = Counter()
    for texts in heard_by(vendor):
        most |= Counter(text.rpartition("\n\n")[2] for text in texts)
    return most


async def test_sdk_retries_never_double_a_turn(failing: Stage, person: str) -> None:
    """The SDK with its retries on, against a failing vendor: no vendor conversation ever holds a turn twice."""
    vendor = failing.simulator.newoaks
    messages: list[Any] = []
    async with async_client(failing.url) as client:
        patient = client.with_options(max_retries=2)
        for number, fault in enumerate(["", "limited", "failed", "limited", "cut-off", "garbled", "unauthorized"]):
            messages.append({"role": "user", "content": f"Turn {number}"})
            if fault:
                vendor.fail(fault, seconds=0)
            try:
                completion = await patient.chat.completions.create(model="newoaks", messages=messages, user=person)
            except openai.InternalServerError:
                completion = await patient.chat.completions.create(model="newoaks", messages=messages, user=person)
            messages.append(completion.choices[0].message)
    assert set(turns(vendor).values()) == {1}
    assert len(turns(vendor)) == 7
