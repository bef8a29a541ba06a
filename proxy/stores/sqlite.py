"""Parked handles in a SQLite file, for the processes of one machine; it outlives them all.

One thread does all the work and gathers what is waiting into one transaction, since flushing the disk is what costs.
A copy of the file put back later would bring back what was taken since: start with a new file instead.
"""

import os
import sqlite3
import time
from asyncio import to_thread, wrap_future
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from secrets import token_bytes
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import orjson

from proxy.errors import StoreUnavailable
from proxy.messages import Handle, Parked
from proxy.ports import FOUND, PER_HEAD

GATHERED = 64  # calls in one transaction at most: others wait for the lock meanwhile
SWEPT = 100  # entries that are over, or too many, which one put removes at most
BUSY = 0.4  # seconds to wait for the lock of another process
APPLICATION = int.from_bytes(b"Prly", "big")
VERSION = 1
FOREIGN = "{} belongs to another program: give the store a file of its own"

READ, WRITE, FLUSH = 0, 1, 2  # what a call needs; the latter two are PRAGMA synchronous NORMAL and FULL

SCHEMA = (
    "CREATE TABLE parked (at INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, ends REAL NOT NULL,"
    " spoken_at REAL NOT NULL, entry BLOB NOT NULL)",
    "CREATE TABLE labels (label TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (label, at)) WITHOUT ROWID",
    "CREATE TABLE meta (secret BLOB NOT NULL, parked INTEGER NOT NULL)",
    "CREATE INDEX parked_ends ON parked (ends)",
    "CREATE INDEX labels_at ON labels (at)",
    "CREATE TRIGGER come AFTER INSERT ON parked BEGIN UPDATE meta SET parked = parked + 1; END",
    "CREATE TRIGGER gone AFTER DELETE ON parked BEGIN"
    " UPDATE meta SET parked = parked - 1; DELETE FROM labels WHERE at = OLD.at; END",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)
FIND = (
    "SELECT entry FROM parked WHERE ends > ? AND at IN (SELECT at FROM json_each(?) CROSS JOIN labels ON label = value"
    " AND at > coalesce((SELECT at FROM labels WHERE label = value ORDER BY at DESC LIMIT 1 OFFSET ?), -1))"
    " ORDER BY spoken_at DESC, at DESC"
)
TAKE = "DELETE FROM parked WHERE id = ? RETURNING ends, entry"
TAKE_NEWEST = (
    "DELETE FROM parked WHERE at = (SELECT at FROM labels JOIN parked USING (at) WHERE label = ? AND ends > ?"
    " ORDER BY spoken_at DESC, at DESC LIMIT 1) RETURNING entry"
)
SWEEP = "DELETE FROM parked WHERE at IN (SELECT at FROM parked WHERE ends <= ? LIMIT ?)"
PUT = "INSERT INTO parked (id, ends, spoken_at, entry) VALUES (?, ?, ?, ?)"
TRIM_HEAD = "DELETE FROM parked WHERE at IN (SELECT at FROM labels WHERE label = ? ORDER BY at DESC LIMIT ? OFFSET ?)"
TRIM = (
    "DELETE FROM parked WHERE at IN"
    " (SELECT at FROM parked ORDER BY at LIMIT (SELECT max(0, min(?, parked - ?)) FROM meta))"
)

T = TypeVar("T")


class _Call(NamedTuple):
    needs: int
    do: Callable[[sqlite3.Connection], Any]
    answer: Future[Any]


class SqliteStore:
    """A ConversationStore in the file that `sqlite:///relative.db` or `sqlite:////absolute/path.db` names.

    Raises ValueError when made, with what to do, if that file cannot be used. Entries parked longest ago go first.
    """

    def __init__(self, url: str, *, max_parked: int, clock: Callable[[], float] = time.time) -> None:
        name = url.removeprefix("sqlite:///")
        if name in (url, ""):
            raise ValueError("a file is written sqlite:///relative.db or sqlite:////absolute/path.db")
        if sqlite3.sqlite_version_info < (3, 38):
            raise ValueError(f"this Python has SQLite {sqlite3.sqlite_version}; the store needs 3.38 or newer")
        self._path = Path(name).absolute()
        self._max_parked = max_parked
        self._clock = clock
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()  # None: it is over
        self._thread: Thread | None = None
        self._connection: sqlite3.Connection | None = None  # the thread's own
        self._closed = False
        try:
            _open(self._path, patience=5).close()
        except (OSError, sqlite3.OperationalError) as error:
            advice = "name a file in a folder that exists and that this process may write to"
            raise ValueError(f"{self._path} cannot be used as a store ({_why(error)}): {advice}") from None
        except sqlite3.DatabaseError:
            raise ValueError(FOREIGN.format(self._path)) from None

    async def secret(self) -> bytes:
        """Made with the file and kept in it."""
        secret: bytes = (await self._ask(READ, lambda db: db.execute("SELECT secret FROM meta").fetchone()))[0]
        return secret

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        """Entries with any of these labels, newest first."""
        wanted = orjson.dumps(labels).decode()
        rows = await self._ask(READ, lambda db: db.execute(FIND, (self._clock(), wanted, FOUND)).fetchall())
        return [_parked(entry) for (entry,) in rows]

    async def take(self, id: str) -> Parked | None:
        """Remove an entry and return it, once that is on the disk for good."""
        rows = await self._ask(FLUSH, lambda db: db.execute(TAKE, (id,)).fetchall())
        return next((_parked(entry) for ends, entry in rows if ends > self._clock()), None)

    async def take_newest(self, label: str) -> Parked | None:
        """Remove the newest entry with a label and return it, once that is on the disk for good."""
        rows = await self._ask(FLUSH, lambda db: db.execute(TAKE_NEWEST, (label, self._clock())).fetchall())
        return next((_parked(entry) for (entry,) in rows), None)

    async def put(self, parked: Parked) -> None:
        """Park an entry in place of one of its id; those that are over or too many then go."""
        row = (parked.id, parked.spoken_at + parked.ttl, parked.spoken_at, orjson.dumps(parked, default=dict))

        def put(db: sqlite3.Connection) -> None:
            db.execute(TAKE, (parked.id,)).fetchall()
            at = db.execute(PUT, row).lastrowid
            db.executemany("INSERT OR IGNORE INTO labels VALUES (?, ?)", [(label, at) for label in parked.labels])
            db.execute(SWEEP, (self._clock(), SWEPT))
            db.execute(TRIM_HEAD, (parked.labels[0], SWEPT, PER_HEAD))
            db.execute(TRIM, (SWEPT, self._max_parked))

        await self._ask(WRITE, put)

    async def aclose(self) -> None:
        """Finish what was asked and close the file."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            await to_thread(thread.join)

    async def _ask(self, needs: int, do: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._thread is None:  # not before, since a process may fork after it has opened its store
            self._thread = Thread(target=self._work, name="sqlite", daemon=True)
            self._thread.start()
        answer: Future[T] = Future()
        self._calls.put(_Call(needs, do, answer))
        return await wrap_future(answer)

    def _work(self) -> None:
        calls: list[_Call | None] = []
        while None not in calls:
            calls = [self._calls.get()]
            while len(calls) < GATHERED and not self._calls.empty():
                calls.append(self._calls.get())
            self._answer([call for call in calls if call and call.answer.set_running_or_notify_cancel()])
        if self._connection is not None:
            self._connection.close()

    def _answer(self, calls: list[_Call]) -> None:
        """All in one transaction, and no answer before it is over."""
        needs = max((call.needs for call in calls), default=READ)
        try:
            db = self._connection = self._connection or _open(self._path, patience=BUSY)
            db.execute(f"PRAGMA synchronous = {max(needs, WRITE)}")
            db.execute("BEGIN IMMEDIATE" if needs else "BEGIN")
            answers = [call.do(db) for call in calls]
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever happens to one transaction
            if self._connection is not None:
                self._connection.close()  # rolls back; the next call opens the file anew
                self._connection = None
            for call in calls:
                call.answer.set_exception(StoreUnavailable(f"the store's file is not to be had ({_why(error)})"))
        else:
            for call, answer in zip(calls, answers, strict=True):
                call.answer.set_result(answer)


def _open(path: Path, *, patience: float) -> sqlite3.Connection:
    """A connection to a file that is ours, made if need be. Raises ValueError for a file of others."""
    with suppress(FileExistsError):  # nor opened then: closing it would drop the locks SQLite has on it here
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # -wal and -shm are given the same mode
    db = sqlite3.connect(path, timeout=patience, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        kind = "SELECT * FROM pragma_application_id, pragma_user_version, pragma_schema_version"
        application, version, schema = db.execute(kind).fetchone()
        if (application, version, schema) == (0, 0, 0):
            for statement in SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES (?, 0)", (token_bytes(32),))
        elif application != APPLICATION:
            raise ValueError(FOREIGN.format(path))
        elif version > VERSION:
            raise ValueError(f"{path} was written by a newer Parley: update this one or name another file")
        db.execute("COMMIT")
        if _share(db, time.monotonic() + patience) != "wal":
            raise ValueError(f"{path} is on a disk that processes cannot share it on: name a file on a local disk")
    except BaseException:
        db.close()
        raise
    return db


def _share(db: sqlite3.Connection, until: float) -> str:
    """Turn on what lets many read while one writes. SQLite itself does not wait here for others who do the same."""
    while True:
        try:
            mode: str = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.005)
        else:
            return mode


def _parked(entry: bytes) -> Parked:
    fields = orjson.loads(entry)
    return Parked(**fields | {"handle": Handle(**fields["handle"]), "labels": tuple(fields["labels"])})


def _why(error: Exception) -> str:
    """What went wrong, without a word of anybody's."""
    return getattr(error, "sqlite_errorname", "") or getattr(error, "strerror", "") or type(error).__name__
