"""All that the proxy says, against OpenAI's own schemas, our stricter ones, and the rules that no schema tells."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.conftest import Stage, stage
from tests.end_to_end.callers import MODELS, Answer, call, fresh, question
from tests.suites.document import SCHEMAS, document, faults

KEY = "authorization: Bearer key-for-all"
HEARTBEAT = 0.1
CONVERSATIONS = {"opened", "continued", "caught-up", "rebuilt", "utility"}

Faults = Callable[[str, Any], list[str]]

TEXTS = (
    "Hello",
    "recite \n\n# Title\n\n- <b>one</b> &amp; two\n",
    'say é e\u0301 \U0001f469\u200d\U0001f4bb \u2028 \x7f " \\',
    "unanswerable",
    "recite " + "word " * 800,
)
WAYS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True},
    "usage": {"stream": True, "stream_options": {"include_usage": True}},
}
VENDOR_FAULTS = (
    "limited", "unauthorized", "refused", "failed", "unavailable", "request-timeout", "gateway-timeout", "garbled",
    "html", "redirect", "empty", "null", "blank",
)  # fmt: skip
BROKEN = [("newoaks", "truncated"), ("newoaks", "error-in-stream"), ("newoaks", "huge"), ("misterturing", "cut-off")]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Stage]:
    """Bots that are asked again however often they fail; one has a second name and a description."""
    models: dict[str, dict[str, Any]] = {
        model: {"breaker": {"failures": 0}, "max_reply_bytes": 80_000} for model in MODELS
    }
    models["newoaks"] |= {"aliases": ["gpt-4o-mini", "team/gpt"], "description": "Knows the shop"}
    keys = [{"name": "all", "key": "key-for-all"}, {"name": "quick", "key": "key-for-quick", "models": ["quick*"]}]
    with stage(models=models, keys=keys, server={"max_body_bytes": 50_000}) as built:
        yield built


@pytest.fixture(scope="module")
def hearty() -> Iterator[Stage]:
    """Bots whose silences are bridged soon."""
    with stage(server={"heartbeat": HEARTBEAT}) as built:
        yield built


@pytest.fixture
def silent(hearty: Stage) -> Iterator[Stage]:
    yield from fresh(hearty)


@pytest.fixture
def proxy(keyed: Stage) -> Iterator[Stage]:
    yield from fresh(keyed)


@pytest.fixture(params=SCHEMAS)
def wrong(request: pytest.FixtureRequest) -> Faults:
    """What is wrong with a value, by ours or by OpenAI's schema of a name."""
    return faults(request.param)


async def ask(proxy: Stage, model: str, *texts: str, **more: Any) -> Answer:
    return await call(proxy.url, question(model, *texts, **more), headers=[KEY])


def test_schemas_see_what_is_wrong(wrong: Faults) -> None:
    """The schemas of both origins refuse an answer, a chunk, a list and an error that lack what OpenAI requires."""
    message = {"role": "assistant", "content": ""}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": f"chatcmpl-{0:032x}", "created": 1_800_000_000, "model": "m"}
    assert wrong("CreateChatCompletionResponse", {**head, "object": "chat.completion", "choices": [choice]})
    unfinished = {"index": 0, "delta": {}}
    assert wrong("CreateChatCompletionStreamResponse", {**head, "object": "chat.completion.chunk", "choices": []}) == []
    assert wrong(
        "CreateChatCompletionStreamResponse", {**head, "object": "chat.completion.chunk", "choices": [unfinished]}
    )
    assert wrong("ListModelsResponse", {"object": "list", "data": [{"id": "m", "object": "model"}]})
    assert wrong("ErrorResponse", {"error": {"message": "No. (parley: no)", "type": "api_error", "code": "no"}})


# --- replies


def plain_is_right(answer: Answer, model: str) -> bool:
    """What no schema tells of a plain answer."""
    body = answer.json
    usage = body["usage"]
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert body["model"] == model, "the name that the client asked for"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer.headers["x-parley-usage"] in ("vendor", "estimated")
    assert answer.headers["x-parley-conversation"] in CONVERSATIONS
    return [choice["index"] for choice in body["choices"]] == list(range(len(body["choices"])))


def stream_is_right(answer: Answer, model: str, *, usage: bool) -> bool:
    """What no schema tells of a stream's chunks together."""
    *chunks, done = answer.data
    assert (answer.status, answer.whole, done) == (200, True, "[DONE]")
    assert answer.headers["x-parley-conversation"] in CONVERSATIONS
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], model)
    }
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(told) == usage
    assert all(one["total_tokens"] == one["prompt_tokens"] + one["completion_tokens"] for one in told)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    return [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


@pytest.mark.parametrize("model", [*MODELS, "gpt-4o-mini", "team/gpt"])
async def test_answers_are_valid(proxy: Stage, wrong: Faults, model: str) -> None:
    """Every plain answer, of a first turn and a later one, is what the schema says, and its numbers add up."""
    for text in TEXTS:
        answer = await ask(proxy, model, text, temperature=0.5, seed=None)
        assert wrong("CreateChatCompletionResponse", answer.json) == []
        assert plain_is_right(answer, model)
        later = await ask(proxy, model, text, answer.json["choices"][0]["message"]["content"], "And then?")
        assert wrong("CreateChatCompletionResponse", later.json) == []
        assert plain_is_right(later, model)


@pytest.mark.parametrize("way", ["stream", "usage"])
@pytest.mark.parametrize("model", [*MODELS, "gpt-4o-mini"])
async def test_chunks_are_valid(proxy: Stage, wrong: Faults, model: str, way: str) -> None:
    """Every chunk of every stream is what the schema says, and all of a stream have one id, time and model."""
    for text in TEXTS:
        answer = await ask(proxy, model, text, **WAYS[way])
        assert [
            fault for chunk in answer.data[:-1] for fault in wrong("CreateChatCompletionStreamResponse", chunk)
        ] == []
        assert stream_is_right(answer, model, usage=way == "usage")


@pytest.mark.parametrize("model", MODELS)
async def test_chunks_after_heartbeats_are_valid(silent: Stage, wrong: Faults, model: str) -> None:
    """A stream that began before its reply did has no other chunks than any."""
    silent.simulator.vendors[model].latency = 2.5 * HEARTBEAT
    answer = await ask(silent, model, "Hello", **WAYS["usage"])
    assert b": still thinking\n" in answer.body
    assert [fault for chunk in answer.data[:-1] for fault in wrong("CreateChatCompletionStreamResponse", chunk)] == []
    assert stream_is_right(answer, model, usage=True)


# --- models


async def test_models_are_valid(proxy: Stage, wrong: Faults) -> None:
    """The list of models and every model of it are what the schema says, and every one can be asked for by its id."""
    listed = await call(proxy.url, path="/v1/models", method="GET", headers=[KEY])
    assert wrong("ListModelsResponse", listed.json) == []
    assert {model["id"] for model in listed.json["data"]} == {*MODELS, "gpt-4o-mini", "team/gpt"}
    for model in listed.json["data"]:
        single = await call(proxy.url, path=f"/v1/models/{model['id']}", method="GET", headers=[KEY])
        assert wrong("Model", single.json) == []
        assert single.json == model


# --- errors


def error_is_right(answer: Answer) -> bool:
    """What no schema tells of an error."""
    error = answer.json["error"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert (answer.headers["x-should-retry"] == "true") <= (answer.status in (429, 502, 503))
    assert ("retry-after" in answer.headers) >= (answer.status == 429)
    assert error["message"].endswith(f" (parley: {error['code']})")
    kinds = {"4": "invalid_request_error", "5": "api_error"}
    return bool(error["type"] == ("rate_limit_error" if answer.status == 429 else kinds[str(answer.status)[0]]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
async def test_vendor_faults_are_valid(proxy: Stage, wrong: Faults, model: str, way: str) -> None:
    """Whatever goes wrong at a vendor before its first piece is an error that the schema knows, streaming or not."""
    for fault in VENDOR_FAULTS:
        proxy.simulator.vendors[model].fail(fault)
        answer = await ask(proxy, model, "Hello", **WAYS[way])
        assert answer.status in (429, 502, 504)
        assert wrong("ErrorResponse", answer.json) == []
        assert error_is_right(answer)


def body(**more: Any) -> bytes:
    return json.dumps({**question("newoaks", "Hello"), **more}).encode()


def content(*parts: Any) -> bytes:
    return body(messages=[{"role": "user", "content": list(parts)}])


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
REQUESTS: Mapping[int, list[dict[str, Any]]] = {
    400: [
        *({"body": sent} for sent in (b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"model": "newoaks"}')),
        *({"body": body(**{name: value})} for name, value in (
            ("messages", []), ("messages", "Hello"), ("messages", [1]),
            ("messages", [{"role": "robot", "content": ""}]), ("messages", [{"role": "user", "content": 1}]),
            ("model", 1), ("model", ""), ("stream", "yes"), ("stream_options", []),
            ("stream_options", {"include_usage": 1}), ("temperature", 9), ("top_p", "high"),
            ("max_tokens", 0), ("n", 0), ("stop", 5), ("user", 7), ("metadata", {"a": 1}), ("logprobs", True),
            ("top_logprobs", 2), ("audio", {"voice": "alloy", "format": "mp3"}), ("modalities", ["audio"]),
            ("tool_choice", "required"), ("tools", {}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "strict": True}}),
        )),
        *({"body": content(part)} for part in ({}, 1, {"type": "text"}, {"type": "video"}, IMAGE)),
        {"body": b"model=newoaks", "headers": [KEY, "content-type: application/x-www-form-urlencoded"]},
    ],
    401: [
        {"body": body(), "headers": ["authorization: Bearer nobodys"]},
        {"path": "/v1/nothing", "method": "GET", "headers": []},
        *(
            {"path": path, "method": method.upper(), "headers": []}
            for path, methods in document("ours")["paths"].items()
            for method in methods
        ),
    ],
    404: [
        {"body": body(model="nobody")},
        {"body": body(), "headers": ["authorization: Bearer key-for-quick"]},
        {"path": "/v1/models/nobody", "method": "GET"},
        {"path": "/v1/models/newoaks", "method": "GET", "headers": ["authorization: Bearer key-for-quick"]},
        *({"path": path} for path in ("/v1/embeddings", "/v1/chat/completions/", "/v1", "/", "/nothing")),
    ],
    405: [
        {"method": "GET"},
        {"method": "DELETE", "path": "/v1/models"},
        {"method": "PUT", "body": body()},
        {"method": "POST", "path": "/v1/models/newoaks"},
    ],
    413: [{"body": body(user="x" * 60_000)}],
}  # fmt: skip


@pytest.mark.parametrize("status", REQUESTS)
async def test_request_faults_are_valid(proxy: Stage, wrong: Faults, status: int) -> None:
    """Whatever is wrong with a request is an error that the schema knows, under the status that stands for it."""
    for request in REQUESTS[status]:
        answer = await call(proxy.url, **{"headers": [KEY], **request})
        assert (answer.status, request) == (status, request)
        assert wrong("ErrorResponse", answer.json) == []
        assert error_is_right(answer)


@pytest.mark.parametrize(("model", "fault"), BROKEN)
async def test_broken_streams_are_valid(proxy: Stage, wrong: Faults, model: str, fault: str) -> None:
    """A stream that breaks off is chunks that the schema knows, then one error that it knows, and no `[DONE]`."""
    proxy.simulator.vendors[model].fail(fault, megabytes=0.5)
    answer = await ask(proxy, model, "say one two three four", **WAYS["usage"])
    *chunks, error = answer.data
    assert (answer.status, answer.whole) == (200, True)
    assert chunks
    assert [fault for chunk in chunks for fault in wrong("CreateChatCompletionStreamResponse", chunk)] == []
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert wrong("ErrorResponse", error) == []
    assert not any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])


async def test_late_faults_are_valid(silent: Stage, wrong: Faults) -> None:
    """A fault after heartbeats is the one object of its stream that is no chunk, and one that the schema knows."""
    for model in MODELS:
        silent.simulator.vendors[model].latency = 1.5 * HEARTBEAT
        silent.simulator.vendors[model].fail("failed")
    answers = await asyncio.gather(*(ask(silent, model, "Hello", **WAYS["stream"]) for model in MODELS))
    for answer in answers:
        opening, error = answer.data
        assert wrong("CreateChatCompletionStreamResponse", opening) == []
        assert wrong("ErrorResponse", error) == []
