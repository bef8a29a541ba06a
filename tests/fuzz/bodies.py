"""Request bodies: refused with a message and the field at fault, or taken in words that all that follows can carry."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import orjson

from proxy.conversation import Conversation, Terms
from proxy.errors import InvalidRequest
from proxy.messages import Turn
from proxy.openai.delivery import ignored_names
from proxy.openai.errors import envelope, headers
from proxy.openai.request import ChatRequest, parse, parse_completion
from proxy.transcript import Chain, canonical, compose, cut, fields_digest, recap, says_nothing
from tests.fuzz.target import CANARY, Target

CHAIN = Chain(b"key", b"partition")
TERMS = Terms(idle_ttl=3600, scoped=True)
PARAM = re.compile(r"[a-z_]+(\[\d+\])?(\.[a-z_]+(\[\d+\])?)*")


def bodies(parser: Callable[[bytes], ChatRequest]) -> Callable[[bytes], None]:
    """The check of one of the two shapes."""

    def check(data: bytes) -> None:
        try:
            request = parser(data)
        except InvalidRequest as fault:
            refused(fault)
            return
        taken(request)
        fields = orjson.loads(data)
        again = dict(reversed([*fields.items(), ("stream", not request.stream)]))
        again.pop("stream_options", None)  # which may hold what could not be written again
        assert parser(data).digest() == request.digest(), "a digest is another one when it is made anew"
        with suppress(TypeError):  # nested more deeply than can be written
            same, other = orjson.dumps(again), orjson.dumps({**again, "user": f"{request.user}+"})
            assert parser(same).digest() == request.digest(), "a digest depends on more than what is asked"
            assert parser(other).digest() != request.digest(), "two requests have one digest"

    return check


def refused(fault: InvalidRequest) -> None:
    """A refusal says what is wrong, names the field (unless the body is no object at all) and quotes nothing."""
    headers(fault)
    told = orjson.loads(envelope(fault))["error"]
    assert told["message"]
    assert CANARY not in told["message"]
    assert (fault.param is None) == (fault.code == "invalid_json")
    assert fault.param is None or PARAM.fullmatch(fault.param)


def taken(request: ChatRequest) -> None:
    """All that is said or compared later can be: digests, canonical form, recap, question, headers."""
    assert request.model
    assert len(request.digest()) == 16
    assert 1 <= request.n <= 8
    assert all(request.stop)
    assert request.max_tokens is None or (request.max_tokens >= 1 and request.limit)
    assert request.prompt_tokens >= 0
    for name in ("stream", "include_usage"):
        assert isinstance(getattr(request, name), bool)
    for text in (request.model, request.user, request.end_user, *request.stop, *request.ignored):
        text.encode()
    assert re.fullmatch(r"[!-~ ]*", ignored_names(request.ignored))
    fields_digest(request.metadata)
    chat = cut(request.messages)
    for message in request.messages:
        says_nothing(message)
    entries = tuple(canonical(request.messages))
    assert len(list(CHAIN.heads(entries))) == len(entries)
    CHAIN.digests(entries)
    conversation = Conversation(chat, CHAIN, TERMS, priming=chat.priming)
    for stage in conversation.stages():
        assert all(isinstance(label, str) for label in stage.labels)
    told = recap(chat.history, max_chars=100)
    assert len(told) < 200
    orjson.dumps(compose(Turn(chat.turn, chat.history, priming=chat.priming, recap=told), priming=True))


TEXTS: Sequence[str] = [
    "Hi",
    "",
    " ",
    CANARY,
    "é🙂",
    "e\u0301",
    "\u200b",
    "a\n b",
    "<think>x</think> y",
    "(parley: vendor_failed)",
]
TEXTS = [
    *TEXTS,
    "x (parley: a)\n",
    "<think>",
    "\x00",
    "2024-01-01",
    "user",
    "\u2028",
    "Hi there, what is it?",
    "\U0010ffff",
]
NESTED = json.loads("[" * 300 + "]" * 300)  # more than is written again
SCALARS: Sequence[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    1.5,
    8,
    9,
    21,
    2**53,
    2**64 - 1,
    -(2**63),
    1e308,
    "",
    "x",
    [],
    {},
    NESTED,
]
ROLES = ["system", "developer", "user", "user", "user", "assistant", "assistant", "tool", "function", "User", None, 1]
URLS = [
    "https://h/p?sig=x&a=b",
    "http://[",
    "data:image/png;base64,aGk=",
    "data:,x",
    "data:;base64,!",
    "https://h/é?%ff=%zz",
    "ftp://x",
]
ARGUMENTS = ['{"b": 1, "a": [1.0]}', "{", "[" * 2000, '"\\ud800"', "1" * 5000, "NaN", CANARY, "1e999", '{"a":1,"a":2}']
PLAIN = [
    "model",
    "stream",
    "user",
    "safety_identifier",
    "n",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "service_tier",
]
PLAIN += ["max_completion_tokens", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "store", "echo"]
PLAIN += ["verbosity", "reasoning_effort", "parallel_tool_calls", "prompt_cache_key", "x-ünknown", "suffix", "a\nb"]
DEEP = ["messages", "prompt", "stream_options", "metadata", "logit_bias", "tools", "functions", "tool_choice", "audio"]
DEEP += ["function_call", "response_format", "modalities", "prediction", "stop", "web_search_options"]
INNER = ["include_usage", "type", "json_schema", "strict", "function", "name", "text", "conversation_id", "user"]
SOUND: Mapping[str, Sequence[Any]] = {
    "model": ["m", "shop"],
    "stream": [True, False],
    "user": ["ada"],
    "n": [1, 2],
    "stop": ["END", ["a", "b"]],
    "max_tokens": [1, 100],
    "metadata": [{"kb_topic": "x"}, {}],
    "stream_options": [{"include_usage": True}],
    "temperature": [0, 1.0],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}]],
    "response_format": [{"type": "text"}, {"type": "json_schema", "json_schema": {"strict": True}}],
}


def value(rng: Random, depth: int = 2) -> Any:
    kind = rng.random()
    if not depth or kind < 0.6:
        return rng.choice(SCALARS if kind < 0.4 else TEXTS)
    if kind < 0.8:
        return {rng.choice(INNER): value(rng, depth - 1) for _ in range(int(rng.random() * 3))}
    return [value(rng, depth - 1) for _ in range(int(rng.random() * 3))]


def mostly(rng: Random, sound: Any) -> Any:
    """What is meant, and now and then anything else."""
    return sound if rng.random() < 0.985 else value(rng)


def part(rng: Random) -> Any:
    kind = rng.choice(["text", "text", "refusal", "image_url", "input_audio", "file", "video"])
    content: Any = mostly(rng, rng.choice(TEXTS))
    if kind == "image_url":
        content = mostly(rng, {"url": mostly(rng, rng.choice(URLS))})
    elif kind == "input_audio":
        content = {"data": mostly(rng, rng.choice(["aGk=", "a", "é"])), "format": mostly(rng, "wav")}
    elif kind == "file":
        content = rng.choice(
            [{"file_id": CANARY}, {"file_data": "data:text/plain;base64,aGk="}, {"file_data": "aGk="}, {}]
        )
    return mostly(rng, {"type": mostly(rng, kind), kind: content})


def call(rng: Random) -> Any:
    function = {"name": mostly(rng, rng.choice(TEXTS)), "arguments": mostly(rng, rng.choice(ARGUMENTS))}
    if rng.random() < 0.2:
        return {"type": "custom", "custom": mostly(rng, {"name": "f", "input": rng.choice(TEXTS)})}
    return mostly(rng, {"id": "1", "type": "function", "function": mostly(rng, function)})


def message(rng: Random) -> Any:
    content: Any = rng.choice(TEXTS)
    if rng.random() < 0.3:
        content = [part(rng) for _ in range(int(rng.random() * 4))]
    made = {"role": mostly(rng, rng.choice(ROLES[:-3])), "content": mostly(rng, content)}
    if rng.random() < 0.1:
        made["role"] = rng.choice(ROLES)
    if rng.random() < 0.15:
        made["tool_calls"] = mostly(rng, [call(rng) for _ in range(int(rng.random() * 3))])
    if rng.random() < 0.05:
        made |= rng.choice(
            [{"function_call": call(rng)}, {"refusal": rng.choice(TEXTS), "content": None}, {"name": "n"}]
        )
    return mostly(rng, made)


def body(rng: Random) -> dict[str, Any]:
    made: dict[str, Any] = {"model": mostly(rng, "m")}
    for name in rng.sample([*SOUND], k=int(rng.random() * 4)):
        made[name] = mostly(rng, rng.choice(SOUND[name]))
    if rng.random() < 0.2:
        name = rng.choice([*PLAIN, *DEEP])
        made[name] = value(rng)
    return made


def chat(rng: Random) -> bytes:
    messages = [message(rng) for _ in range(int(rng.random() * 5))]
    return written(rng, {**body(rng), "messages": mostly(rng, messages)})


def completion(rng: Random) -> bytes:
    prompt = rng.choice(TEXTS)
    return written(rng, {**body(rng), "prompt": mostly(rng, [prompt] if rng.random() < 0.2 else prompt)})


def written(rng: Random, made: dict[str, Any]) -> bytes:
    data = json.dumps(made, ensure_ascii=rng.random() < 0.3).encode()
    if rng.random() < 0.05:
        at = int(rng.random() * len(data))
        data = data[:at] + rng.choice(TOKENS) + data[at + int(rng.random() * 3) :]
    return data


TOKENS = [json.dumps(found).encode() for found in (*SCALARS, *TEXTS, *ROLES, *URLS, *ARGUMENTS)]
TOKENS += [b'"%b": ' % name.encode() for name in (*PLAIN, *DEEP, *INNER, "role", "content", "tool_calls", "url")]
TOKENS += [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b'"\\ud800"',
    b'"\\ud83d\\ude42"',
    b"\xff",
    b"[" * 300,
    b'{"a":' * 300,
]
_WATCHED = ["proxy/openai/request.py", "proxy/transcript.py", "proxy/conversation.py"]
TARGETS = [
    Target("chat", bodies(parse), chat, TOKENS, _WATCHED),
    Target("completion", bodies(parse_completion), completion, TOKENS, _WATCHED),
]
