"""Clients that come back over a real socket while their last reply is still being spoken, or was never heard."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import openai
import pytest

from tests.conftest import Stage, stage
from tests.end_to_end.callers import SSL, Answer, call, calling, fresh, heard_by, question, soon

LINES = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def patient_stage() -> Iterator[Stage]:
    """An unheard reply may run on for long."""
    with stage(conversation={"linger": 20}, server={"shutdown_grace": 0.2}) as built:
        yield built


@pytest.fixture
def patient(patient_stage: Stage) -> Iterator[Stage]:
    yield from fresh(patient_stage)


def body(*texts: str, **more: Any) -> dict[str, Any]:
    """A request of somebody who has never asked before."""
    return question("newoaks", *texts, **{"user": f"person-{uuid4().hex}", **more})


def how(answer: Answer) -> str:
    return " ".join(filter(None, map(answer.headers.get, ("x-parley-conversation", "x-parley-reason"))))


async def test_voice_barge_in_goes_on_in_the_same_conversation(patient: Stage) -> None:
    """A speaker who interrupts the bot and goes on at once, on a new connection, stays in the same conversation."""
    vendor = patient.simulator.newoaks
    vendor.gap = 0.08
    request = body(f"say {LINES}", stream=True)
    async with calling(patient.url, request) as line:
        answer = await line.begin()
        async for piece in line.pieces(answer):
            answer.pieces.append(piece)
            if b"three" in piece:
                break
        line.leave()
        chat = [f"say {LINES}", "one two three", "Stop, what is my name?"]
        again = await call(patient.url, {**body(*chat), "user": request["user"]})

    assert how(again) == "continued interrupted"
    assert heard_by(vendor) == [[f"say {LINES}", "Stop, what is my name?"]]
    reply = again.json["choices"][0]["message"]["content"]
    after = await call(patient.url, {**body(*chat, reply, "Go on"), "user": request["user"]})
    assert how(after) == "continued exact"


@pytest.mark.parametrize("stream", [False, True])
async def test_sdk_retry_after_its_own_timeout_finds_the_running_reply(patient: Stage, stream: bool) -> None:
    """The official SDK's retry after a timeout of its own hears the reply to its first try: the bot is asked once."""
    vendor = patient.simulator.newoaks
    vendor.latency = 0.9
    http = openai.DefaultAsyncHttpxClient(verify=SSL)
    async with openai.AsyncOpenAI(
        base_url=f"{patient.url}/v1", api_key="none", timeout=0.6, max_retries=2, http_client=http
    ) as client:
        request: dict[str, Any] = body(f"say {LINES}")
        if stream:
            chunks = await client.chat.completions.create(**request, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
        else:
            text = (await client.chat.completions.create(**request)).choices[0].message.content or ""

    assert text == LINES
    assert heard_by(vendor) == [[f"say {LINES}"]]
    vendor.latency = 0
    after = await call(patient.url, {**body(f"say {LINES}", text, "Thanks"), "user": request["user"]})
    assert how(after) == "continued exact"


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        (["x-stainless-retry-count: 1"], 1),
        (["idempotency-key: {}"], 1),
        (["x-stainless-retry-count: 0"], 2),
        (["idempotency-key: other"], 2),
        ([], 2),
    ],
)
async def test_reply_whose_end_nobody_heard_is_told_again(patient: Stage, headers: list[str], asked: int) -> None:
    """A client that left before the end gets the whole reply by asking again within a minute, streamed or not."""
    vendor = patient.simulator.newoaks
    fault, key = vendor.fail("slow"), uuid4().hex
    headers = [header.format(key) for header in headers]
    request = body(f"say {LINES}", stream=True)
    async with calling(patient.url, request, headers=[f"Idempotency-Key: {key}"]) as line:
        await soon(lambda: len(heard_by(vendor)) == 1)
        line.leave()
    await asyncio.sleep(0.1)
    fault.release()
    await asyncio.sleep(0.3)
    again = await call(patient.url, {**request, "stream": False}, headers=headers)

    assert again.json["choices"][0]["message"]["content"] == LINES
    assert len(heard_by(vendor)) == asked
    third = await call(patient.url, {**request, "stream": False}, headers=headers)
    assert third.status == 200
    assert len(heard_by(vendor)) == asked + 1, "what was heard is not told a third time"


async def test_two_connections_hear_one_reply(patient: Stage) -> None:
    """While both listen, a request repeated under its idempotency key and its first hear the same reply."""
    vendor = patient.simulator.newoaks
    vendor.gap = 0.03
    request = body(f"say {LINES}", stream=True)
    key = [f"Idempotency-Key: {uuid4().hex}"]
    async with calling(patient.url, request, headers=key) as line:
        first = asyncio.create_task(line.answer())
        await asyncio.sleep(0.1)
        second = await call(patient.url, request, headers=key)
        texts = [
            "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer.data[:-1])
            for answer in (await first, second)
        ]

    assert texts == [LINES, LINES]
    assert heard_by(vendor) == [[f"say {LINES}"]]
    reused = await call(patient.url, body("Hello"), headers=key)
    assert (reused.status, reused.json["error"]["code"]) == (400, "idempotency_key_reused")
    assert reused.headers["x-should-retry"] == "false"
