"""What is peculiar to the store in Redis: a server that comes back with an old memory, or late, or not at all."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from proxy.errors import StoreUnavailable
from proxy.ports import ConversationStore
from proxy.stores import open_store
from proxy.stores.redis import CONNECTIONS
from tests.stores.entries import Clock, entry, ids
from tests.stores.servers import DISKLESS, RedisServer, black_hole, redis_server

Open = Callable[..., ConversationStore]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    stores = []

    def another(url: str, max_parked: int = 100, clock: Clock | None = None) -> ConversationStore:
        stores.append(open_store(url, max_parked=max_parked, clock=clock or Clock()))
        return stores[-1]

    yield another
    for store in stores:
        await store.aclose()


@pytest.fixture
def store(opened: Open, shared_redis: RedisServer, prefix: str) -> ConversationStore:
    return opened(f"{shared_redis.url}?prefix={prefix}")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


async def unavailable(store: ConversationStore) -> str:
    with pytest.raises(StoreUnavailable) as fault:
        await store.find(["label"])
    return fault.value.message


async def start_again(server: RedisServer) -> None:
    """Start it, and let the event loop see which connections are gone."""
    server.start()
    await asyncio.sleep(0.05)


async def test_an_old_dump_gives_nothing_out(opened: Open) -> None:
    """What a dump still holds although it was taken since is not found and not given out again; the secret stays."""
    with redis_server("--save", "", "--appendonly", "no") as server:
        store = opened(server.url)
        secret = await store.secret()
        await store.put(entry("taken"))
        await store.put(entry("left"))
        with server.client() as client:
            client.save()
        assert await store.take("taken") == entry("taken")
        server.kill()
        await start_again(server)

        with server.client() as client:
            back = list(client.scan_iter("parley:entry:*"))
            assert len(back) == 2  # the dump has come back
        assert await ids(store) == []
        assert await store.take("taken") is None
        assert await store.take("left") is None
        assert await store.secret() == secret
        await store.put(entry("taken"))
        assert await ids(store) == ["taken"]


async def test_a_key_names_the_run(store: ConversationStore, shared_redis: RedisServer, prefix: str) -> None:
    """The run of the server that it was put under is part of every entry's key."""
    await store.put(entry("a"))

    with shared_redis.client() as client:
        assert [client.info("server")["run_id"][:16] in key for key in client.keys(f"{prefix}*")] == [True] * 3


async def test_a_log_gives_nothing_out(opened: Open) -> None:
    """What an append-only file brings back is not found either, since its end may have been lost."""
    with redis_server("--save", "", "--appendonly", "yes", "--appendfsync", "always") as server:
        store = opened(server.url)
        await store.put(entry("a"))
        server.kill()
        await start_again(server)

        with server.client() as client:
            assert len(list(client.scan_iter("parley:entry:*"))) == 1
        assert await ids(store) == []
        assert await store.take("a") is None


async def test_a_master_that_returns_gives_nothing_out(opened: Open) -> None:
    """A master that was meanwhile a replica of one that had not heard of a take does not give it out again."""
    options = (*DISKLESS, "--repl-diskless-sync-delay", "0")
    with redis_server(*options) as first, redis_server(*options) as second:
        store = opened(first.url)
        await store.put(entry("before"))
        with first.client() as one, second.client() as two:
            two.replicaof("127.0.0.1", str(first.port))
            await eventually(lambda: two.keys("parley:entry:*"))
            await store.put(entry("a"))  # not found with what was put before: to have a replica is another term
            await eventually(lambda: len(list(two.scan_iter("parley:entry:*"))) == 2)
            two.replicaof("NO", "ONE")
            assert await store.take("a") == entry("a")
            one.replicaof("127.0.0.1", str(second.port))
            await eventually(lambda: len(list(one.scan_iter("parley:entry:*"))) == 2)
            assert "ReadOnly" in (await put_fault(store))
            one.replicaof("NO", "ONE")

        assert await store.take("a") is None
        assert await ids(store) == []


async def eventually(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def put_fault(store: ConversationStore) -> str:
    with pytest.raises(StoreUnavailable) as fault:
        await store.put(entry("b"))
    return fault.value.message


async def test_it_reconnects_by_itself(opened: Open, server: RedisServer) -> None:
    """A server that is away makes the store unavailable at once, and when it is back the store works again."""
    store = opened(server.url)
    await store.put(entry("a"))
    server.stop()
    assert await unavailable(store) == "Redis does not serve (ConnectionError)"
    await start_again(server)

    await store.put(entry("b"))

    assert await ids(store) == ["b"]


async def test_a_restart_between_calls_is_not_noticed(opened: Open, server: RedisServer) -> None:
    """Connections that a restart broke while nobody used them fail no call."""
    store = opened(server.url)
    await asyncio.gather(*(store.put(entry(str(i))) for i in range(20)))
    server.stop()
    await start_again(server)

    assert await asyncio.gather(*(ids(store) for _ in range(20))) == [[]] * 20


async def test_the_secret_is_put_back(opened: Open, server: RedisServer) -> None:
    """A secret that the server has lost is put back by the next put, and by the next who asks for it."""
    store, other = opened(server.url), opened(server.url)
    secret = await store.secret()
    for remember in (lambda: store.put(entry("a")), store.secret):
        with server.client() as client:
            client.flushall()
        await remember()

        assert await other.secret() == secret


async def test_a_flushed_script_is_sent_again(store: ConversationStore, shared_redis: RedisServer) -> None:
    """A server that has forgotten the scripts is told them again."""
    await store.put(entry("a"))
    with shared_redis.client() as client:
        client.script_flush()

    assert await ids(store) == ["a"]
    assert await store.take("a") == entry("a")


async def test_one_round_trip(opened: Open, server: RedisServer) -> None:
    """Each call is one command, once the server knows the scripts."""
    store = opened(server.url)
    calls = (store.secret, lambda: store.put(entry("a")), lambda: store.find(["label"]), lambda: store.take("a"))
    for call in calls:
        await call()
    with server.client() as client:
        client.config_resetstat()
        for call in calls:
            await call()
        counted = {name: stat["calls"] for name, stat in client.info("commandstats").items()}

    assert counted.pop("cmdstat_evalsha") == len(calls)
    assert not {name for name in counted if "script" in name or "eval" in name or "multi" in name}


async def test_every_key_runs_out(shared_redis: RedisServer, prefix: str, opened: Open) -> None:
    """Every key but the secret has a time to live, no shorter than the entries it is about."""
    store = opened(f"{shared_redis.url}?prefix={prefix}")
    await store.secret()
    await store.put(entry("long", "label", "one", ttl=500))
    await store.put(entry("short", "label", "two", ttl=50))

    with shared_redis.client() as client:
        lives = {key.removeprefix(prefix): client.pttl(key) for key in client.scan_iter(f"{prefix}*")}
    assert lives.pop("secret") == -1
    named = {(key.partition(":")[0], key.rpartition(":")[2]): life for key, life in lives.items()}

    assert {name: round(life, -4) for name, life in named.items()} == {
        ("entry", "long"): 500_000,
        ("entry", "short"): 50_000,
        ("label", "label"): 500_000,
        ("label", "one"): 500_000,
        ("label", "two"): 50_000,
        ("index", ""): 500_000,
    }


async def test_nothing_is_left(shared_redis: RedisServer, prefix: str, opened: Open) -> None:
    """What was taken, pushed out, put again or has run out leaves no key but the secret."""
    clock = Clock(time.time())
    store = opened(f"{shared_redis.url}?prefix={prefix}", max_parked=5, clock=clock)
    await store.secret()
    for i in range(40):
        await store.put(entry(str(i), f"label {i % 7}", f"own {i}", spoken_at=clock.now + i / 100, ttl=50))
    await store.put(entry("39", "label 4", spoken_at=clock.now + 1, ttl=50))
    with shared_redis.client() as client:
        keys = client.keys(f"{prefix}entry*")
        assert len(keys) == 5
        labels = client.keys(f"{prefix}label*")
        assert len(labels) == len({f"label {i % 7}" for i in range(35, 40)}) + 4
        clock.now += 60  # a clock that is ahead: their keys are still there
        await store.put(entry("last", spoken_at=clock.now, ttl=50))
        await store.take("last")

        assert client.keys(f"{prefix}*") == [f"{prefix}secret"]


async def test_what_the_server_dropped_is_forgotten(shared_redis: RedisServer, prefix: str, opened: Open) -> None:
    """Names of entries that ran out, or that a server short of memory has dropped, do not pile up."""
    store = opened(f"{shared_redis.url}?prefix={prefix}", clock=(clock := Clock(time.time())))
    with shared_redis.client() as client:
        await store.put(entry("long", spoken_at=clock.now, ttl=90))
        await store.put(entry("brief", spoken_at=clock.now, ttl=0.05))
        await asyncio.sleep(0.1)
        clock.now += 0.1
        await store.put(entry("next", spoken_at=clock.now, ttl=50))
        sets = client.keys(f"{prefix}label*") + client.keys(f"{prefix}index*")
        assert [client.zcard(name) for name in sets] == [2, 2]

        for i in range(40):
            await store.put(entry(str(i), spoken_at=clock.now + 1 + i / 100, ttl=50))
            client.delete(*client.keys(f"{prefix}entry*"))
        assert [client.zcard(name) for name in sets] == [32, 32]


async def test_nothing_is_sent_twice(opened: Open) -> None:
    """A command whose answer was lost is not sent again, or a put might bring back what was taken in between."""
    sent = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()) and b"EVALSHA" not in line:
            if b"SETINFO" in line:  # a greeting
                writer.write(b"+OK\r\n")
        sent.append(line)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        store = opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        assert await put_fault(store) == "Redis does not serve (ConnectionError)"

    assert len(sent) == 1


async def test_prefixes_are_apart(store: ConversationStore, shared_redis: RedisServer, opened: Open) -> None:
    """Stores with different prefixes on one server share neither entries nor secret; without one it is `parley:`."""
    plain = opened(shared_redis.url)
    await store.put(entry("a"))
    await plain.put(entry("b"))

    assert await ids(plain) == ["b"]
    assert await store.take("b") is None
    assert await store.secret() != await plain.secret()
    assert await plain.take("b") == entry("b")
    with shared_redis.client() as client:
        assert client.exists("parley:secret")


async def test_a_slow_server_is_not_waited_for(opened: Open, server: RedisServer) -> None:
    """A server that hangs makes the store unavailable after half a second; afterwards it works."""
    store = opened(server.url)
    await store.put(entry("a"))
    with server.client() as client:
        sleeping = asyncio.create_task(asyncio.to_thread(client.execute_command, "DEBUG", "SLEEP", "1.2"))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        assert "within 0.5 s" in await unavailable(store)
        assert 0.4 < time.monotonic() - started < 0.9
        await sleeping

    assert await ids(store) == ["a"]


async def test_a_server_that_says_nothing(opened: Open) -> None:
    """A host that takes connections and is silent costs half a second, however many ask."""
    with black_hole() as port:
        store = opened(f"redis://127.0.0.1:{port}/0")
        started = time.monotonic()
        messages = await asyncio.gather(*(unavailable(store) for _ in range(3 * CONNECTIONS)))

        assert time.monotonic() - started < 1.5
        assert set(messages) == {"the store did not answer within 0.5 s"}


async def test_answers_belong_to_their_questions(opened: Open, server: RedisServer) -> None:
    """After callers left and deadlines passed in the midst of exchanges, no answer goes to another question."""
    store = opened(server.url)
    for i in range(100):
        await store.put(entry(str(i), f"label {i}"))
    with server.client() as client:
        sleeping = asyncio.create_task(asyncio.to_thread(client.execute_command, "DEBUG", "SLEEP", "0.9"))
        await asyncio.sleep(0.05)
        late = [asyncio.create_task(store.take(str(i))) for i in range(40)]
        await asyncio.sleep(0.05)
        for task in late[:20]:
            task.cancel()
        gone = await asyncio.gather(*late, return_exceptions=True)
        await sleeping

    assert {type(answer) for answer in gone[:20]} == {asyncio.CancelledError}
    assert {type(answer) for answer in gone[20:]} == {StoreUnavailable}
    for _ in range(5):
        found = await asyncio.gather(*(ids(store, f"label {i}") for i in range(40, 100)))
        assert found == [[str(i)] for i in range(40, 100)]
    taken = [parked for i in range(40) for _ in range(2) if (parked := await store.take(str(i)))]
    assert len({parked.id for parked in taken}) == len(taken)


async def test_two_raw_cancels_do_not_tear_the_pool(server: RedisServer) -> None:
    """The driver itself gives its connections back in order when commands are cancelled."""
    from proxy.stores.redis import RedisStore

    store = RedisStore(server.url, max_parked=100, clock=Clock())
    for i in range(100):
        await store.put(entry(str(i), f"label {i}"))
    for wait in (0, 0.0001, 0.0005, 0.001, 0.002):
        leaving = [asyncio.create_task(store.find([f"label {i}"])) for i in range(50)]
        await asyncio.sleep(wait)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        found = await asyncio.gather(*(ids(store, f"label {i}") for i in range(50, 100)))
        assert found == [[str(i)] for i in range(50, 100)]
    await store.aclose()


@pytest.mark.parametrize("command", ["GETDEL", "INFO"])
async def test_an_older_server_is_told_apart(opened: Open, command: str) -> None:
    """A server without GETDEL or INFO is named as the reason, and nothing is parked there."""
    with redis_server(*DISKLESS, "--rename-command", command, "") as server:
        store = opened(server.url)

        assert await put_fault(store) == "Redis 6.2 or newer is needed, with INFO and GETDEL"


async def test_a_full_server(opened: Open) -> None:
    """A server without memory makes the store unavailable, and no text of anybody's is told."""
    with redis_server(*DISKLESS, "--maxmemory", "1") as server:
        assert await put_fault(opened(server.url)) == "Redis does not serve (OutOfMemoryError)"


async def test_a_wrong_password_is_not_repeated(opened: Open) -> None:
    """A server that wants another password is unavailable, and the one that was tried is not told."""
    with redis_server(*DISKLESS) as server:
        with server.client() as client:
            client.config_set("requirepass", "right")
        assert await unavailable(opened(f"redis://:hunter2@127.0.0.1:{server.port}/0")) == (
            "Redis does not serve (AuthenticationError)"
        )
        with_it = opened(f"redis://:right@127.0.0.1:{server.port}/3")
        await with_it.put(entry("a"))
        assert await ids(with_it) == ["a"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///0",
        "redis://:hunter2/x@host:6379/0",
        "redis://:hunter2@host:port/0",
        "redis://:hunter2@host:6379/zero",
        "redis://:hunter2@host:99999/0",
        "redis://:hunter2@[::1/0",
        "redis://:hunter2@host/0?retry_on_timeout=yes",
        "redis://:hunter2@host/0?prefix",
        "rediss://:hunter2@host:6379/0/1",
    ],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    """A URL that is not understood is a fault of the configuration, told without the password."""
    with pytest.raises(ValueError, match="Redis") as fault:
        open_store(url, max_parked=1)

    assert "hunter2" not in str(fault.value)
    assert fault.value.__cause__ is None


@pytest.mark.parametrize("url", ["redis://host", "redis://host:6379/", "rediss://u:p%40@h:1/2?ssl_cert_reqs=none"])
def test_a_url_may_be_short(url: str) -> None:
    """Port and database may be left out, options of TLS be added, and nobody need be there yet."""
    open_store(url, max_parked=1)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver one is told how to get it."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    monkeypatch.delitem(sys.modules, "proxy.stores.redis", raising=False)

    with pytest.raises(ValueError, match=r"pip install 'parley-proxy\[redis\]'"):
        open_store("redis://host", max_parked=1)
