"""What is peculiar to the store in a file: other processes, other files, and being killed."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores import open_store
from proxy.stores.sqlite import FIND, READ, SqliteStore
from tests.stores.entries import entry, ids

ROOT = Path(__file__).parent.parent.parent

# What runs in another process; `said` is a line on its stdout, seen at once.
PROCESS = """
import asyncio, sys
from proxy.stores.sqlite import SqliteStore
from tests.stores.entries import entry

def said(line):
    print(line, flush=True)

async def main(url):
    store = SqliteStore(url, max_parked=10_000, clock=lambda: 1000)
    await store.secret()
    said("ready")
    sys.stdin.readline()
{work}
    await store.aclose()

asyncio.run(main(sys.argv[1]))
"""
TAKE_ALL = """
    async def take(i):
        if await store.take(str(i)):
            said(i)
    await asyncio.gather(*map(take, range(500)))
"""
WORK_ON = """
    for start in range(0, 1_000_000, 20):
        names = [str(i) for i in range(start, start + 20)]
        await asyncio.gather(*(store.put(entry(name)) for name in names))
        for parked in await asyncio.gather(*map(store.take, names[::2])):
            said(parked.id if parked else "missing")
"""


def process(url: str, work: str) -> subprocess.Popen[str]:
    script = PROCESS.format(work=work)
    return subprocess.Popen(
        [sys.executable, "-c", script, url], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def heard(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def go(*running: subprocess.Popen[str]) -> None:
    """Let processes loose that have all come up."""
    for each in running:
        assert heard(each.stdout) == "ready"
    for each in running:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(f"sqlite:///{path}", max_parked=100, clock=lambda: 1000)
    yield made
    await made.aclose()


async def test_two_processes_never_take_the_same(path: Path) -> None:
    """Of two processes that take the same 500 entries at once, each entry goes to one."""
    url = f"sqlite:///{path}"
    store = SqliteStore(url, max_parked=1000, clock=lambda: 1000)
    await asyncio.gather(*(store.put(entry(str(i), f"label {i}")) for i in range(500)))
    await store.aclose()

    with process(url, TAKE_ALL) as one, process(url, TAKE_ALL) as other:
        go(one, other)
        outputs = [each.communicate()[0].split() for each in (one, other)]

    assert sorted(map(int, outputs[0] + outputs[1])) == list(range(500))
    assert one.returncode == other.returncode == 0


async def test_what_was_taken_stays_taken_when_a_process_is_killed(path: Path) -> None:
    """After kill -9 in the midst of work the file opens at once, and nothing that was given out is in it."""
    url = f"sqlite:///{path}"
    with process(url, WORK_ON) as killed:
        go(killed)
        given = [heard(killed.stdout) for _ in range(200)]
        killed.send_signal(signal.SIGKILL)
        given += (killed.stdout.read() if killed.stdout else "").split()

    assert path.with_name("store.db-wal").stat().st_size > 0  # it had no time to put its things in order
    store = SqliteStore(url, max_parked=10_000, clock=lambda: 1000)
    found = await ids(store)
    back = [id for id in given if await store.take(id)]
    await store.aclose()

    assert "missing" not in given
    assert found  # the others are still there
    assert not set(found) & set(given)
    assert back == []


async def test_many_processes_may_open_a_new_file(path: Path) -> None:
    """Processes that open a file at the same time which is not there yet share one secret."""
    url = f"sqlite:///{path}"
    running = [process(url, "    said((await store.secret()).hex())\n") for _ in range(4)]
    go(*running)
    secrets = {each.communicate()[0].strip() for each in running}

    assert len(secrets) == 1
    assert [each.returncode for each in running] == [0] * 4


async def test_nobody_else_may_read_it(store: SqliteStore, path: Path) -> None:
    """The file and its companions are for their owner only."""
    await store.put(entry("a"))

    files = sorted(path.parent.glob("store.db*"))
    assert [file.name for file in files] == ["store.db", "store.db-shm", "store.db-wal"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3


async def test_a_closed_store_leaves_one_file(path: Path) -> None:
    """To open and close a store leaves the file alone, and a closed store says so when asked."""
    store = SqliteStore(f"sqlite:///{path}", max_parked=1)
    await store.aclose()

    assert [file.name for file in path.parent.iterdir()] == ["store.db"]
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.secret()


def test_a_relative_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file stands in the folder the process was in when it opened it, wherever it goes later."""
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    monkeypatch.chdir(path.parent)
    store = SqliteStore("sqlite:///store.db", max_parked=1, clock=lambda: 1000)
    monkeypatch.chdir(elsewhere)
    asyncio.run(store.put(entry("a")))
    asyncio.run(store.aclose())

    assert list(elsewhere.iterdir()) == []
    assert sorted(file.name for file in path.parent.iterdir()) == ["elsewhere", "store.db"]


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")


def newer(path: Path) -> None:
    SqliteStore(f"sqlite:///{path}", max_parked=1)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")


def locked_away(path: Path) -> None:
    path.touch(0o400)
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize(
    ("spoil", "advice"),
    [
        (foreign, "belongs to another program: give the store a file of its own"),
        (lambda path: path.write_text("no database at all\n" * 100), "a file of its own"),
        (newer, "newer Parley: update this one"),
        (Path.mkdir, "name a file in a folder that exists"),
        (lambda path: path.parent.rmdir(), "name a file in a folder that exists"),
        (locked_away, "that this process may write to"),
    ],
)
def test_a_file_that_will_not_do(path: Path, spoil: Callable[[Path], object], advice: str) -> None:
    """A file that cannot be a store is a fault of the configuration, told with what to do and left as it was."""
    user = os.geteuid()
    try:
        spoil(path)
        before = path.read_bytes() if user == os.geteuid() and path.is_file() else b""
        with pytest.raises(ValueError, match=advice):
            open_store(f"sqlite:///{path}", max_parked=1)
    finally:
        os.seteuid(user)

    assert not before or path.read_bytes() == before


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://store.db", "sqlite://host/store.db"])
def test_a_url_without_a_file(url: str) -> None:
    """A URL that names no file is refused with how to write one."""
    with pytest.raises(ValueError, match=r"sqlite:///relative\.db or sqlite:////absolute"):
        open_store(url, max_parked=1)


async def test_a_lock_that_is_held_too_long(store: SqliteStore, path: Path) -> None:
    """While another process keeps the file locked it is unavailable in under half a second, then it works."""
    await store.put(entry("a"))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
            await store.take("a")
        assert time.monotonic() - started < 0.5
        db.execute("ROLLBACK")

    assert await store.take("a") == entry("a")


async def test_a_full_disk(store: SqliteStore) -> None:
    """What the disk has no room for is undone as a whole and changes nothing, and later the store works again."""
    large = entry("a", "x" * 100_000)
    await store.put(entry("a"))
    await store._ask(READ, lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())

    with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
        await store.put(large)

    assert await ids(store) == ["a"]
    await store.put(large)
    assert await ids(store, large.labels[0]) == ["a"]


async def test_waiting_calls_share_a_flush(store: SqliteStore) -> None:
    """Calls that wait for each other are done in far fewer transactions than calls."""
    await store.put(entry("a"))
    statements: list[str] = []
    await store._ask(READ, lambda db: db.set_trace_callback(statements.append))

    await asyncio.gather(*(store.put(entry(str(i))) for i in range(100)))

    assert 1 <= statements.count("COMMIT") <= 20


async def test_a_take_is_flushed(store: SqliteStore) -> None:
    """A transaction that takes goes to the disk for good; one that parks need not, and a look-up takes no lock."""
    await store.put(entry("a"))
    statements: list[str] = []
    await store._ask(READ, lambda db: db.set_trace_callback(statements.append))

    await store.take("a")
    await store.put(entry("b"))
    await store.find(["label"])

    told = [line for line in statements if line.startswith(("PRAGMA", "BEGIN", "COMMIT"))][1:]
    assert told == [
        *("PRAGMA synchronous = 2", "BEGIN IMMEDIATE", "COMMIT"),
        *("PRAGMA synchronous = 1", "BEGIN IMMEDIATE", "COMMIT"),
        *("PRAGMA synchronous = 1", "BEGIN", "COMMIT"),
    ]


async def test_nothing_scans(store: SqliteStore, path: Path) -> None:
    """A look-up goes from labels to entries by index, however many there are."""
    await store.put(entry("a"))
    with closing(sqlite3.connect(path)) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {FIND}", (1000, '["label"]', 33))]

    assert [step for step in plan if step.startswith("SCAN") and "json_each" not in step] == []


async def test_what_is_over_leaves_the_file(path: Path) -> None:
    """Entries that are over are removed by later ones, with their labels, a bounded number each time."""
    now = 1000.0
    store = SqliteStore(f"sqlite:///{path}", max_parked=1000, clock=lambda: now)
    await asyncio.gather(*(store.put(entry(str(i), f"label {i}")) for i in range(150)))
    now = 2000.0
    left = []
    with closing(sqlite3.connect(path)) as db:
        for id in "ab":
            await store.put(entry(id, spoken_at=2000))
            left.append(db.execute("SELECT (SELECT count(*) FROM parked), (SELECT count(*) FROM labels)").fetchone())
        counted = db.execute("SELECT parked FROM meta").fetchone()
    await store.aclose()

    assert left == [(51, 51), (2, 2)]
    assert counted == (2,)
