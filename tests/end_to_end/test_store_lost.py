"""A proxy on a real socket whose Redis goes, comes back, or was never there."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import Stage, stage
from tests.end_to_end.callers import Chat, async_plain, async_stream, call, heard_by
from tests.stores.servers import DISKLESS, RedisServer, redis_server

LONG = 3.0  # seconds in which a proxy must have found its store again


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server(*DISKLESS) as server:
        yield server


@pytest.fixture
def built(redis: RedisServer) -> Iterator[Stage]:
    with stage(store=redis.url, server={"shutdown_grace": 0.2}) as built:
        yield built


async def ready(built: Stage) -> tuple[int, Any]:
    answer = await call(built.url, path="/readyz", method="GET")
    return answer.status, answer.json


async def found_again(built: Stage) -> None:
    for _ in range(round(LONG / 0.05)):
        if await ready(built) == (200, {"status": "ok"}):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the store is not found again")


@pytest.mark.parametrize("way", [async_plain, async_stream], ids=["plain", "stream"])
async def test_chats_outlive_the_loss_of_the_store(built: Stage, redis: RedisServer, way: Any) -> None:
    """While Redis is gone every request is answered, with its history as a recap; once it is back chats go on."""
    chat = Chat(built.url, "newoaks", way, more={"user": uuid4().hex})
    assert [(await chat.say(text)).how for text in ("My name is Ada.", "Hello")] == ["opened", "continued exact"]
    assert await ready(built) == (200, {"status": "ok"})

    redis.stop()
    lost = await chat.say("What is my name?")
    assert lost.how == "rebuilt store-unavailable"
    assert await ready(built) == (200, {"status": "ok", "store": "unreachable"})
    assert (await call(built.url, path="/healthz", method="GET")).status == 200

    redis.start()
    await found_again(built)
    assert (await chat.say("Still there?")).how == "rebuilt unknown-history"
    assert (await chat.say("Good.")).how == "continued exact"
    assert [len(texts) for texts in heard_by(built.simulator.newoaks)] == [2, 1, 2]


async def test_a_proxy_is_not_ready_before_its_store_was_reached(redis: RedisServer) -> None:
    """A proxy whose Redis is not there yet says so to its balancer, and answers who asks it all the same."""
    redis.stop()
    with stage(store=redis.url, server={"shutdown_grace": 0.2}) as built:
        assert await ready(built) == (503, {"status": "starting", "store": "unreachable"})
        chat = Chat(built.url, "quickchat", async_plain, more={"user": uuid4().hex})
        assert (await chat.say("Hello")).how == "opened"
        assert (await chat.say("Again")).how == "rebuilt store-unavailable"

        redis.start()
        await found_again(built)
        await chat.say("And again")
        assert (await chat.say("And on")).how == "continued exact"


async def test_a_redis_from_an_old_dump_gives_nothing_out_twice() -> None:
    """A Redis that comes back from a dump made before the last turns: no conversation is given out a second time."""
    with redis_server("--appendonly", "no") as redis, stage(store=redis.url, server={"shutdown_grace": 0.2}) as built:
        chats = [Chat(built.url, "newoaks", async_plain, more={"user": uuid4().hex}) for _ in range(5)]
        for chat in chats:
            await chat.say("My name is Ada.")
        with redis.client() as operator:
            operator.save()
        forks = [chat.back_to(1) for chat in chats]
        for chat in chats:
            assert (await chat.say("Hello")).how == "continued exact"

        redis.kill()
        redis.start()
        await found_again(built)
        for chat in (*forks, *chats):
            assert (await chat.say("Who am I?")).how == "rebuilt unknown-history"
        assert sorted(len(texts) for texts in heard_by(built.simulator.newoaks)) == [1] * 10 + [2] * 5
