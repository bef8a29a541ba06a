"""The bytes of an answer on a raw socket: order of chunks, headers, heartbeats, late statuses, ends and broken ends."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Stage, stage
from tests.end_to_end.callers import MODELS, Answer, call, calling, question, request_bytes, soon

HEARTBEAT = 0.15


@pytest.fixture(scope="module")
def hearty() -> Iterator[Stage]:
    """A stage with a fast heartbeat and a small limit for replies."""
    models = {model: {"max_reply_bytes": 180_000, "breaker": {"failures": 0}} for model in MODELS}
    with stage(models=models, server={"heartbeat": HEARTBEAT}) as built:
        yield built


@pytest.fixture
def slowly(hearty: Stage) -> Iterator[Stage]:
    """The stage with the fast heartbeat; its vendors are as new and at full speed afterwards."""
    yield hearty
    for vendor in hearty.simulator.vendors.values():
        assert vendor.violations == []
        vendor.reset()
        vendor.latency = vendor.gap = 0


async def streamed(url: str, model: str, *texts: str, **more: Any) -> Answer:
    return await call(url, question(model, *texts, stream=True, **more), headers=["connection: close"])


def text_of(answer: Answer) -> str:
    """A stream's deltas, joined."""
    chunks = [chunk for chunk in answer.data if isinstance(chunk, dict) and chunk.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def is_well_formed(body: bytes) -> bool:
    """Whether an event stream holds nothing but whole `data:` events and comment lines of a single newline."""
    return re.fullmatch(rb"(: [^\n]*\n|data: [^\n]+\n\n)+", body) is not None


# --- the order of things


@pytest.mark.parametrize("model", MODELS)
async def test_chunks_come_in_order(on_stage: Stage, model: str) -> None:
    """A stream is: the role, deltas, one finish without content, `[DONE]`; one id, created and model in all."""
    answer = await streamed(on_stage.url, model, "Hello")
    assert answer.status == 200
    assert answer.whole
    assert is_well_formed(answer.body)
    *chunks, done = answer.data
    assert done == "[DONE]"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert {tuple(chunk) for chunk in chunks} == {("id", "object", "created", "model", "choices")}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert chunks[0]["model"] == model
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks)
    assert {choice["index"] for choice in choices} == {0}
    first, *deltas, last = choices
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert deltas
    assert all(list(choice["delta"]) == ["content"] and choice["delta"]["content"] for choice in deltas)
    assert last["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


@pytest.mark.parametrize("model", MODELS)
async def test_usage_chunk_comes_only_when_asked_for(on_stage: Stage, model: str) -> None:
    """With `include_usage` one chunk without choices follows the finish; without it there is no word of usage."""
    asked = await streamed(on_stage.url, model, "Hello", stream_options={"include_usage": True})
    *_, finish, usage, done = asked.data
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert set(usage["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert {usage[key] for key in ("id", "model")} == {finish[key] for key in ("id", "model")}
    assert done == "[DONE]"
    for options in ({"include_usage": False}, {}, None):
        unasked = await streamed(on_stage.url, model, "Hello", stream_options=options)
        assert b'"usage"' not in unasked.body


async def test_stream_headers(on_stage: Stage) -> None:
    """A stream says that it is one, that nobody should keep or buffer it, and how it came about."""
    answer = await streamed(on_stage.url, "newoaks", "Hello", temperature=0.5)
    headers = answer.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert headers["x-parley-conversation"] == "opened"
    assert headers["x-parley-ignored"] == "temperature"
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["openai-processing-ms"].isdigit()
    names = [name for name, _ in answer.lines]
    assert len(names) == len(set(names)), "no header is sent twice"
    assert "server" not in names or "uvicorn" in headers["server"]


@pytest.mark.parametrize("model", MODELS)
async def test_plain_answer_has_exactly_its_fields(on_stage: Stage, model: str) -> None:
    """A plain answer has the fields of OpenAI's, no more and no less."""
    answer = await call(on_stage.url, question(model, "Hello"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    body = answer.json
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert (body["object"], body["model"]) == ("chat.completion", model)
    assert isinstance(body["created"], int)
    (choice,) = body["choices"]
    text = choice["message"]["content"]
    assert text
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    assert choice == {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert sorted(body["usage"]) == ["completion_tokens", "prompt_tokens", "total_tokens"]
    assert answer.headers["x-parley-conversation"] == "opened"
    assert answer.headers["x-parley-usage"] == ("vendor" if model == "newoaks" else "estimated")


TEXTS = (
    "Hello",
    "recite \n\n  # Title\n\n- one\n- two\n\n```python\nif a < b:\n    print('&lt;')\n```\n\n  ",
    'say "quoted" \\ back\\slash \u2028 \u00e9 e\u0301 \U0001f469\u200d\U0001f4bb \ufeff \x7f',
    "recite <p>One &amp; two<br/>three</p>\n<ul><li>a</li><li>b</li></ul> 1 < 2 <b>bold</b>",
    "recite " + "word " * 1500,
)


@pytest.mark.parametrize("text", TEXTS, ids=["plain", "markdown", "unicode", "html", "long"])
@pytest.mark.parametrize("model", MODELS)
async def test_plain_text_equals_the_folded_stream(on_stage: Stage, model: str, text: str) -> None:
    """The text of a plain answer and the joined deltas of a stream are the same, to the letter."""
    plain, stream = await asyncio.gather(call(on_stage.url, question(model, text)), streamed(on_stage.url, model, text))
    said = plain.json["choices"][0]["message"]["content"]
    assert text_of(stream) == said
    if text.startswith(("say ", "recite ")) and model == "newoaks":
        assert said == text.partition(" ")[2]


@pytest.mark.parametrize("framing", ["lines", "sse"])
@pytest.mark.parametrize("cuts", [1, 7])
async def test_vendor_stream_may_be_cut_anywhere(slowly: Stage, framing: Any, cuts: int) -> None:
    """A vendor's stream in pieces of a few bytes, characters cut apart, gives the same text."""
    vendor = slowly.simulator.newoaks
    vendor.framing, vendor.cuts = framing, cuts
    try:
        answer = await streamed(slowly.url, "newoaks", 'say \u00e9\U0001f469\u200d\U0001f4bb "x" \\n {}[] \u2028 end')
    finally:
        vendor.framing, vendor.cuts = "lines", None
    assert is_well_formed(answer.body)
    assert text_of(answer) == '\u00e9\U0001f469\u200d\U0001f4bb "x" \\n {}[] \u2028 end'


async def test_pieces_are_passed_on_as_they_come(slowly: Stage) -> None:
    """Deltas go out while the vendor still speaks; `[DONE]` and the end of the body come with the finish."""
    slowly.simulator.newoaks.gap = 0.03
    answer = await streamed(slowly.url, "newoaks", "say one two three four five six")
    texts = [piece for piece in answer.pieces if b'"content":' in piece]
    assert len(texts) >= 5
    assert answer.times[-1] - answer.times[0] > 0.1
    assert b'"finish_reason":"stop"' in answer.pieces[-1]
    assert answer.pieces[-1].endswith(b"data: [DONE]\n\n")


async def test_connection_serves_one_stream_after_another(on_stage: Stage) -> None:
    """A connection that is kept open carries a stream, a plain answer, an error and a stream one after the other."""
    bodies = [question("newoaks", "Hello", stream=True), question("newoaks", "Hello"), question("nobody", "Hello")]
    statuses = []
    async with asyncio.timeout(5), calling(on_stage.url, bodies[0]) as line:
        statuses.append((await line.answer()).status)
        for body in (*bodies[1:], bodies[0]):
            line.writer.write(request_bytes("/v1/chat/completions", json.dumps(body).encode()))
            answer = await line.answer()
            statuses.append(answer.status)
    assert statuses == [200, 200, 404, 200]
    assert answer.data[-1] == "[DONE]"


# --- late statuses and heartbeats


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("fault", "status"), [("limited", 429), ("failed", 502), ("empty", 502), ("html", 502)])
async def test_fault_before_the_first_delta_has_its_status(
    on_stage: Stage, model: str, fault: str, status: int
) -> None:
    """A stream that fails before its first delta is an error with its own status, not a 200."""
    on_stage.simulator.vendors[model].fail(fault)
    answer = await streamed(on_stage.url, model, "Hello")
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("model", MODELS)
async def test_heartbeats_bridge_a_silence(slowly: Stage, model: str) -> None:
    """A slow vendor: after a heartbeat's silence the 200 and the role go out, then comments, then the reply."""
    slowly.simulator.vendors[model].latency = 4.5 * HEARTBEAT
    answer = await streamed(slowly.url, model, "Hello")
    assert answer.status == 200
    assert answer.headers["x-parley-conversation"] == "opened"
    assert "x-parley-usage" not in answer.headers
    assert is_well_formed(answer.body)
    first, *rest = answer.pieces
    assert first.startswith(b"data: ")
    assert b'"role":"assistant"' in first
    beats = [piece for piece in (first.partition(b"\n\n")[2], *rest) if piece.startswith(b":")]
    assert 2 <= len(beats) <= 6
    assert all(re.fullmatch(rb": [^\n]+\n", beat) for beat in beats)
    assert answer.data[-1] == "[DONE]"
    assert "Hello" in text_of(answer)
    assert sum(b'"role"' in piece for piece in answer.pieces) == 1


async def test_heartbeats_bridge_a_pause_in_the_midst(slowly: Stage) -> None:
    """A vendor that pauses in the midst of its reply: comments fill the pause, the text is whole."""
    slowly.simulator.newoaks.fail("stall", seconds=3.5 * HEARTBEAT)
    answer = await streamed(slowly.url, "newoaks", "say one two three four")
    assert is_well_formed(answer.body)
    assert answer.body.count(b"\n: ") + answer.body.startswith(b": ") >= 2
    assert text_of(answer) == "one two three four"


async def test_plain_answers_have_no_heartbeat(slowly: Stage) -> None:
    """A plain call of a slow vendor waits, and its late fault has its status."""
    vendor = slowly.simulator.newoaks
    vendor.latency = 3 * HEARTBEAT
    answer = await call(slowly.url, question("newoaks", "Hello"))
    assert (answer.status, len(answer.pieces)) == (200, 1)
    vendor.fail("failed")
    assert (await call(slowly.url, question("newoaks", "Hello"))).status == 502


# --- ends that are none


def is_error_end(answer: Answer, code: str) -> bool:
    """The stream ends in one whole error event, and without `[DONE]`."""
    last = answer.data[-1]
    errors = [chunk for chunk in answer.data if "error" in chunk]
    assert b"[DONE]" not in answer.body
    assert answer.body.endswith(b"\n\n")
    assert is_well_formed(answer.body)
    assert errors == [last]
    assert list(last) == ["error"]
    assert list(last["error"]) == ["message", "type", "param", "code"]
    assert last["error"]["message"].endswith(f" (parley: {code})")
    assert not any(b'"finish_reason":"' in piece for piece in answer.pieces)
    return bool(last["error"]["code"] == code)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("fault", "code"),
    [("failed", "vendor_failed"), ("limited", "vendor_rate_limited"), ("empty", "vendor_no_answer")],
)
async def test_fault_after_heartbeats_is_an_event(slowly: Stage, model: str, fault: str, code: str) -> None:
    """A fault after the 200 has gone out is one `data:` event with the error, and no `[DONE]`."""
    vendor = slowly.simulator.vendors[model]
    vendor.latency = 1.7 * HEARTBEAT
    vendor.fail(fault)
    answer = await streamed(slowly.url, model, "Hello")
    assert (answer.status, answer.whole) == (200, True)
    assert is_error_end(answer, code)
    assert text_of(answer) == ""


@pytest.mark.parametrize("fault", ["cut-off", "truncated", "error-in-stream", "huge"])
async def test_fault_in_the_midst_is_an_event(slowly: Stage, fault: str) -> None:
    """A reply that breaks off keeps its beginning and ends in one error event, without a finish and `[DONE]`."""
    vendor = slowly.simulator.newoaks
    vendor.gap = 0.002
    vendor.fail(fault, megabytes=1)
    answer = await streamed(slowly.url, "newoaks", "say one two three four")
    assert (answer.status, answer.whole) == (200, True)
    assert is_error_end(answer, "vendor_failed")
    assert text_of(answer).startswith("blah" if fault == "huge" else "one")


async def test_endless_reply_is_stopped() -> None:
    """A reply without end is cut at `max_reply_bytes` with an error event, and the vendor is hung up on."""
    with stage(models={"newoaks": {"max_reply_bytes": 20_000}}) as built:
        built.simulator.newoaks.fail("endless")
        answer = await streamed(built.url, "newoaks", "say one two three four")
        assert (answer.status, answer.whole) == (200, True)
        assert is_error_end(answer, "vendor_failed")
        assert len(answer.body) < 1_000_000
        await soon(lambda: built.simulator.newoaks.hung_up == 1)


@pytest.mark.parametrize("fault", ["summary-extends", "summary-differs", "summary-missing"])
async def test_odd_summaries_are_ends(slowly: Stage, fault: str) -> None:
    """A summary that says more adds it, one that differs or is missing changes nothing; the stream ends well."""
    slowly.simulator.newoaks.fail(fault)
    answer = await streamed(slowly.url, "newoaks", "say one two three four")
    assert answer.data[-1] == "[DONE]"
    assert text_of(answer) == "one two three four"
    following = await streamed(slowly.url, "newoaks", "say one two three four", text_of(answer), "Next")
    assert following.headers["x-parley-conversation"] == "continued"


# --- odd requests on the wire


async def test_body_may_come_in_pieces(on_stage: Stage) -> None:
    """A request whose body trickles in, chunked, is read whole."""
    body = json.dumps(question("newoaks", "say it came through")).encode()
    head = request_bytes("/v1/chat/completions", b"", headers=["transfer-encoding: chunked"])
    async with asyncio.timeout(5), calling(on_stage.url) as line:
        assert (await line.answer()).status == 400, "an empty body"
        line.writer.write(head.replace(b"content-length: 0\r\n", b""))
        for at in range(0, len(body), 20):
            part = body[at : at + 20]
            line.writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await asyncio.sleep(0.005)
        line.writer.write(b"0\r\n\r\n")
        answer = await line.answer()
    assert answer.json["choices"][0]["message"]["content"] == "it came through"


async def test_many_messages_cost_no_more_than_their_number(hearty: Stage) -> None:
    """Six times the messages, all of one role, take about six times the work: nobody can stop the proxy by them."""
    spent = []
    for count in (3_000, 18_000):
        messages = [{"role": "user", "content": "some words"}] * count
        messages += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "Well?"}]
        body = json.dumps({"model": "newoaks", "messages": messages}).encode()
        times = []
        for _ in range(3):  # the best of three: what else happens meanwhile is not ours
            began = time.process_time()
            assert (await call(hearty.url, body)).status == 200
            times.append(time.process_time() - began)
        spent.append(min(times))
    assert spent[1] < 10 * spent[0]


async def test_slow_reader_gets_everything(slowly: Stage) -> None:
    """A client that reads slowly gets a long reply whole, while others are served."""
    text = "say " + "word " * 5000 + "end"
    async with asyncio.timeout(15), calling(slowly.url, question("newoaks", text, stream=True), buffer=4096) as line:
        await asyncio.sleep(0.5)
        assert (await call(slowly.url, question("newoaks", "Hello"))).status == 200
        answer = await line.answer()
    assert answer.data[-1] == "[DONE]"
    assert text_of(answer) == text.removeprefix("say ")
