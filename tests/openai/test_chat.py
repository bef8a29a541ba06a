"""The chat dialect: choices."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from proxy.errors import VendorFailed
from tests.doors import Doors
from tests.scripted import Cue


def told(text: str) -> list[Any]:
    return [orjson.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")]


def cue(doors: Doors, *texts: str) -> None:
    doors.bot.cues.extend(Cue(pieces=(text[:2], text[2:])) for text in texts)


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_are_conversations_side_by_side(doors: Doors, stream: bool) -> None:
    """Each of n choices comes from a conversation of its own, and any of them may be gone on from."""
    cue(doors, "one reply", "other reply", "third reply")
    answer = await doors.ask("hello", n=3, stream=stream, stream_options={"include_usage": True} if stream else None)

    assert answer.headers["x-parley-conversation"] == "opened, opened, opened"
    if stream:
        chunks = told(answer.text)
        texts = ["", "", ""]
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["delta"].get("content", "")
        ends = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        assert sorted(ends) == [0, 1, 2]
        usage = chunks[-1]["usage"]
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        body = answer.json()
        texts = [choice["message"]["content"] for choice in body["choices"]]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        usage = body["usage"]
    assert texts == ["one reply", "other reply", "third reply"]
    assert usage["completion_tokens"] == 9
    for text in texts:
        chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": text}]
        next_turn = await doors.ask(messages=[*chat, {"role": "user", "content": "go on"}])
        assert next_turn.headers["x-parley-conversation"] == "continued"
    assert [len(heard) for heard in doors.bot.conversations.values()] == [4, 4, 4]


async def test_the_first_choice_may_continue(doors: Doors) -> None:
    """Of several choices the first goes on in the conversation there is, the others are told the history."""
    first = (await doors.ask("hello")).json()["choices"][0]["message"]
    answer = await doors.ask(
        messages=[{"role": "user", "content": "hello"}, first, {"role": "user", "content": "b"}], n=2
    )

    assert answer.headers["x-parley-conversation"] == "continued, rebuilt"
    assert answer.headers["x-parley-reason"] == "exact, in-use"
    assert len(answer.json()["choices"]) == 2


async def test_if_one_choice_fails_the_request_fails(doors: Doors) -> None:
    """A fault of one choice is the answer, and the others are treated as left by their client."""
    doors.bot.cues += [Cue(pieces=("a", "b"), wait=asyncio.Event()), Cue(fault=VendorFailed("It broke off"))]
    answer = await doors.ask("hello", n=2)

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "vendor_failed")


async def test_a_repeated_request_hears_all_its_choices(doors: Doors) -> None:
    """A client that asks for several choices once more is told the same ones, each in its place."""
    cue(doors, "one reply", "other reply")
    gates = [asyncio.Event(), asyncio.Event()]
    for waiting, gate in zip(doors.bot.cues, gates, strict=True):
        waiting.wait = gate
    body = b'{"model": "shop", "n": 2, "messages": [{"role": "user", "content": "hi"}]}'
    first = asyncio.create_task(doors.send(body, authorization="Bearer sk-all"))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(doors.send(body, authorization="Bearer sk-all", x_stainless_retry_count="1"))
    await asyncio.sleep(0.01)
    for gate in gates:
        gate.set()

    def texts(answer: Any) -> Sequence[str]:
        return [choice["message"]["content"] for choice in answer.json()["choices"]]

    assert texts(await first) == texts(await second) == ["one reply", "other reply"]
    assert len(doors.bot.turns) == 2


async def test_a_repeated_request_is_told_what_had_ended_already(doors: Doors) -> None:
    """Of several choices one may have ended when the request is repeated: it is not asked for again."""
    cue(doors, "one reply", "other reply")
    doors.bot.cues[1].wait = gate = asyncio.Event()
    body = b'{"model": "shop", "n": 2, "messages": [{"role": "user", "content": "hi"}]}'
    first = asyncio.create_task(doors.send(body, authorization="Bearer sk-all"))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(doors.send(body, authorization="Bearer sk-all", x_stainless_retry_count="1"))
    await asyncio.sleep(0.02)
    gate.set()

    assert (await first).json()["choices"] == (await second).json()["choices"]
    assert len(doors.bot.turns) == 2
