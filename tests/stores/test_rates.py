"""Requests a minute: by name, by process, and by all who share a Redis."""

from collections.abc import AsyncIterator

import pytest

from proxy.stores import open_rates
from proxy.stores.rates import Rates
from tests.stores.entries import Clock
from tests.stores.servers import RedisServer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def rates(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Rates]:
    url = "memory://"
    if request.param == "redis":
        url = f"{request.getfixturevalue('shared_redis').url}?prefix={request.getfixturevalue('prefix')}"
    made = open_rates(url, share=1)
    made._clock = clock
    yield made
    await made.aclose()


async def test_a_name_gets_what_it_may_and_then_waits(rates: Rates, clock: Clock) -> None:
    """So many requests go at once, then they come free one by one; other names do not count."""
    assert [await rates.wait("a", 6) for _ in range(6)] == [0] * 6
    assert await rates.wait("a", 6) == pytest.approx(10)
    assert await rates.wait("b", 6) == 0

    clock.now += 10
    assert await rates.wait("a", 6) == 0
    assert await rates.wait("a", 6) == pytest.approx(10)
    clock.now += 60
    assert [await rates.wait("a", 6) for _ in range(6)] == [0] * 6


async def test_processes_get_a_share_each() -> None:
    """Without a common counter each of n processes lets through its part, and never nothing at all."""
    rates = Rates(share=4)

    assert [await rates.wait("a", 10) > 0 for _ in range(3)] == [False, False, True]
    assert [await rates.wait("b", 3) > 0 for _ in range(2)] == [False, True]


async def test_redis_is_counted_in_by_all(shared_redis: RedisServer, prefix: str) -> None:
    """Two processes on one Redis share what a name may ask for, and leave nothing there for ever."""
    one, other = (open_rates(f"{shared_redis.url}?prefix={prefix}", share=9) for _ in range(2))

    assert [await each.wait("a", 4) > 0 for each in (one, other, one, other, one)] == [False] * 4 + [True]
    with shared_redis.client() as operator:
        keys = list(operator.scan_iter(f"{prefix}*"))
        assert keys
        assert all(operator.pttl(key) > 0 for key in keys)
    await one.aclose()
    await other.aclose()


async def test_without_redis_each_counts_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    """While Redis cannot be reached each process goes by its share, and says so once."""
    rates = open_rates("redis://127.0.0.1:1/0", share=2)

    assert [await rates.wait("a", 4) > 0 for _ in range(3)] == [False, False, True]
    assert [record.message for record in caplog.records] == ["rates are counted by each process"]
    await rates.aclose()
