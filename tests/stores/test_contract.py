"""What every store promises; a new one joins by a line in `STORES`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from proxy.messages import Handle, Parked
from proxy.ports import ConversationStore
from proxy.stores import open_store
from proxy.stores.punctual import Punctual
from tests.stores.entries import Clock, entry, ids
from tests.stores.servers import RedisServer

Open = Callable[[], ConversationStore]  # another one at the same place each time, as another process would
MAX_PARKED = 50
STORES = ("memory", "sqlite", "redis")
SHARED = pytest.mark.parametrize("opened", [name for name in STORES if name != "memory"], indirect=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def opened(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Open]:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("shared_redis")
        url = f"{server.url}?prefix={uuid4()}:"
    else:
        url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/store.db"}[request.param]
    async with AsyncExitStack() as stack:

        def another() -> ConversationStore:
            store = open_store(url, max_parked=MAX_PARKED, clock=clock)
            if isinstance(store, Punctual):
                store._deadline = 20  # a crowded machine is no fault of a store's
            stack.push_async_callback(store.aclose)
            return store

        yield another


@pytest.fixture
def store(opened: Open) -> ConversationStore:
    return opened()


@pytest.fixture
def two(opened: Open) -> tuple[ConversationStore, ConversationStore]:
    return opened(), opened()


async def test_what_is_put_is_found_and_taken_as_it_was(store: ConversationStore) -> None:
    """An entry comes back with everything in it, and only once."""
    await store.put(entry("a"))

    assert list(await store.find(["label"])) == [entry("a")]
    assert await store.take("a") == entry("a")
    assert await store.take("a") is None
    assert await ids(store) == []


async def test_any_text_comes_back_to_the_letter(store: ConversationStore) -> None:
    """Handles, marks, ids and labels of any script, with control characters and line ends, come back as they were."""
    text = "héllo\r\n\t\"'\\ \x00\x1f\u2028 Здравствуйте 你好 🤖\U0010ffff " + "x" * 40_000
    odd = Parked("i:d ü\n", Handle({"ключ\n": text, "n": 2**63}), ("l:ü \"'", "two\n"), {"sent": text}, 999.125, 1.5)

    await store.put(odd)

    assert list(await store.find(["two\n"])) == [odd]
    assert await store.take(odd.id) == odd
    assert await ids(store, *odd.labels) == []


async def test_of_many_takers_one_wins(store: ConversationStore) -> None:
    """An entry wanted by many at once is given to one."""
    await store.put(entry("a"))

    taken = await asyncio.gather(*(store.take("a") for _ in range(50)))

    assert [parked for parked in taken if parked] == [entry("a")]


async def test_newest_first(store: ConversationStore) -> None:
    """Entries under one label are found newest first, which is not who was parked last."""
    for id, spoken_at in (("b", 1001), ("a", 1003), ("c", 1002)):
        await store.put(entry(id, spoken_at=spoken_at))

    assert await ids(store) == ["a", "c", "b"]


async def test_the_newest_is_taken(store: ConversationStore) -> None:
    """Of the entries with a label the newest is removed and returned, until there is none."""
    for id, spoken_at in (("b", 1001), ("a", 1003), ("c", 1002)):
        await store.put(entry(id, spoken_at=spoken_at))
    await store.put(entry("d", "another", spoken_at=1004))

    taken = [await store.take_newest("label") for _ in range(4)]
    assert [parked and parked.id for parked in taken] == ["a", "c", "b", None]
    assert await store.take_newest("another") == entry("d", "another", spoken_at=1004)
    assert await ids(store, "label", "another") == []


async def test_many_who_take_the_newest(store: ConversationStore, clock: Clock) -> None:
    """Entries that many want by their label are given out once each, and none whose time is over."""
    for id, ttl in (("a", 10), ("b", 100), ("c", 100)):
        await store.put(entry(id, "label", "other", ttl=ttl))
    clock.now = 1050

    taken = await asyncio.gather(*(store.take_newest("label") for _ in range(20)))

    assert sorted(parked.id for parked in taken if parked) == ["b", "c"]
    assert await ids(store, "other") == []


async def test_any_label_will_do(store: ConversationStore) -> None:
    """An entry is found once under any of its labels, and gone from all when taken, were one of them told twice."""
    await store.put(entry("a", "one", "two", "one"))

    assert await ids(store, "two") == await ids(store, "one", "two", "three") == ["a"]

    await store.take("a")

    assert await ids(store, "one", "two") == []


async def test_nothing_to_look_for(store: ConversationStore) -> None:
    """Without labels nothing is found, and what was never put is not taken."""
    await store.put(entry("a"))

    assert list(await store.find([])) == []
    assert await store.take("b") is None


@pytest.mark.parametrize("many", [200, 20_000])
async def test_many_labels_at_once(store: ConversationStore, many: int) -> None:
    """A look-up may ask for as many labels as a long chat has."""
    await store.put(entry("a", "label 17"))
    await store.put(entry("b", "label 199", spoken_at=1001))

    assert await ids(store, *(f"label {i}" for i in range(many))) == ["b", "a"]


async def test_many_labels_of_one(store: ConversationStore) -> None:
    """An entry may stand under hundreds of labels."""
    labels = [f"label {i}" for i in range(300)]
    await store.put(entry("a", *labels))

    assert await ids(store, labels[-1]) == ["a"]
    assert await store.take("a") == entry("a", *labels)
    assert await ids(store, *labels) == []


async def test_time_runs_out(store: ConversationStore, clock: Clock) -> None:
    """An entry is gone once its time is over, counted from when the vendor spoke."""
    await store.put(entry("a", spoken_at=950))
    clock.now = 1049.9
    assert await ids(store) == ["a"]

    clock.now = 1050.1

    assert await ids(store) == []
    assert await store.take("a") is None


async def test_an_entry_already_over_is_not_parked(store: ConversationStore) -> None:
    """An entry whose time is over before it is put leaves no trace, nor does it leave an older one of its id."""
    await store.put(entry("a"))
    await store.put(entry("a", "label", "other", spoken_at=1))

    assert await ids(store, "label", "other") == []
    assert await store.take("a") is None


async def test_a_head_holds_at_most_32(store: ConversationStore) -> None:
    """Of many entries under one first label the oldest go."""
    for i in range(40):
        await store.put(entry(str(i), "label", f"own {i}", spoken_at=1000 + i))

    assert await ids(store) == [str(i) for i in range(39, 7, -1)]
    assert await store.take("0") is None
    assert await ids(store, "own 0") == []


async def test_other_labels_may_hold_more_than_are_found(store: ConversationStore) -> None:
    """Under a label that is not their first any number of entries lie, of which the 33 newest are found."""
    for i in range(48):
        await store.put(entry(str(i), f"own {i}", "label", spoken_at=1000 + i, ttl=10_000))

    assert await ids(store) == [str(i) for i in range(47, 47 - 33, -1)]
    assert await ids(store, "own 0", "own 47") == ["47", "0"]
    for i in range(47, 20, -1):
        assert await store.take(str(i))
    assert await ids(store) == [str(i) for i in range(20, -1, -1)]


async def test_it_is_bounded_in_all(store: ConversationStore) -> None:
    """Over `max_parked` the entries parked longest ago go first."""
    for i in range(60):
        await store.put(entry(str(i), f"label {i}", spoken_at=1000 + i / 100))

    assert [i for i in range(60) if await store.take(str(i))] == list(range(10, 60))


async def test_what_was_taken_does_not_count(store: ConversationStore) -> None:
    """What was taken or put again under its id makes room."""
    for i in range(200):
        await store.put(entry(f"passing {i}", f"label {i}", spoken_at=1010))
        await store.put(entry("again", spoken_at=1010))
        await store.take(f"passing {i}")
    for i in range(MAX_PARKED - 1):
        await store.put(entry(str(i), f"kept {i}", spoken_at=1020))

    assert await ids(store) == ["again"]


@pytest.mark.timeout(120)
async def test_ten_thousand_stay_under_the_bound(store: ConversationStore) -> None:
    """However many are parked, `max_parked` are left."""
    for start in range(0, 10_000, 100):
        many = (entry(str(i), f"label {i}", spoken_at=1000 + i / 1000) for i in range(start, start + 100))
        await asyncio.gather(*map(store.put, many))

    assert len(await store.find([f"label {i}" for i in range(10_000)])) == MAX_PARKED


async def test_an_id_is_parked_once(store: ConversationStore) -> None:
    """An entry put under an id that exists takes its place, its labels too."""
    await store.put(entry("a", "old", "both"))
    await store.put(entry("a", "both", "new", spoken_at=1001))

    assert await ids(store, "old") == []
    assert list(await store.find(["old", "both", "new"])) == [entry("a", "both", "new", spoken_at=1001)]

    assert await store.take("a") == entry("a", "both", "new", spoken_at=1001)
    assert await store.take("a") is None
    assert await ids(store, "old", "both", "new") == []


async def test_putting_back_keeps_the_clock(store: ConversationStore, clock: Clock) -> None:
    """An entry taken and put again ends when it would have ended."""
    await store.put(entry("a"))
    taken = await store.take("a")
    assert taken is not None
    clock.now = 1090
    await store.put(taken)
    assert await ids(store) == ["a"]
    clock.now = 1101

    assert await ids(store) == []


async def test_the_secret_stays(store: ConversationStore) -> None:
    """The secret is 32 bytes, the same each time, also for many who ask at once."""
    secrets = await asyncio.gather(*(store.secret() for _ in range(20)))

    assert set(secrets) == {await store.secret()}
    assert len(secrets[0]) == 32


@SHARED
async def test_two_share_what_is_parked(two: tuple[ConversationStore, ConversationStore]) -> None:
    """What one process parks another finds and takes, and then neither has it."""
    one, other = two
    assert await one.secret() == await other.secret()

    await one.put(entry("a"))

    assert await ids(other) == ["a"]
    assert await other.take("a") == entry("a")
    assert await one.take("a") is None
    assert await ids(one) == []


@SHARED
async def test_of_two_takers_one_wins(two: tuple[ConversationStore, ConversationStore]) -> None:
    """Each entry that two processes want at the same time goes to one of them."""
    names = [str(i) for i in range(MAX_PARKED)]
    await asyncio.gather(*(two[0].put(entry(name, name)) for name in names))

    taken = await asyncio.gather(*(store.take(name) for name in names for store in two))

    assert sorted(parked.id for parked in taken if parked) == sorted(names)


@SHARED
async def test_an_entry_outlives_its_store(opened: Open) -> None:
    """What is parked is still there when another process opens the same place later."""
    first = opened()
    secret = await first.secret()
    await first.put(entry("a"))
    await first.aclose()

    later = opened()

    assert await later.secret() == secret
    assert await later.take("a") == entry("a")


async def test_closing_twice(opened: Open) -> None:
    """A store may be closed at once, twice, and after work."""
    unused, used = opened(), opened()
    await used.put(entry("a"))

    for store in (unused, used, unused, used):
        await store.aclose()


async def test_a_caller_who_leaves_harms_nobody(store: ConversationStore) -> None:
    """Callers cancelled in the midst of a call leave a store that answers others with what is theirs."""
    for i in range(20):
        await store.put(entry(str(i), f"label {i}"))
    leaving = [asyncio.create_task(store.take(str(i))) for i in range(10)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()

    found = await asyncio.gather(*(ids(store, f"label {i}") for i in range(10, 20)))
    taken = await asyncio.gather(*(store.take(str(i)) for i in range(20)))

    assert found == [[str(i)] for i in range(10, 20)]
    assert taken[10:] == [entry(str(i), f"label {i}") for i in range(10, 20)]
    assert await ids(store, *(f"label {i}" for i in range(20))) == []
