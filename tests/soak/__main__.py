"""The soak: `python -m tests.soak [--minutes 5] [--store redis]`. The exit code is 0 if all that must hold held.

Three kinds of processes on real sockets: the vendors (`vendors.py`), `parley serve` with a configuration file and a
Redis, and here the clients (`crowd.py`). First the counts at rest are taken; then comes all of it, to warm up; then by
turns calm, with neither faults nor leaving, and the mixture, so that whatever else this machine does falls on both. In
the second mixture Redis is restarted with its data, in the third it is killed and brought back with a copy that is
some seconds old. In the end the counts are taken again.
"""

import argparse
import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from tests.end_to_end.callers import call, question
from tests.end_to_end.test_commands import ROOT, Running, started
from tests.soak.crowd import ANSWERED_WITHIN, KEY, Client, Ledger, Row
from tests.soak.vendors import FAULTS, MODELS
from tests.soak.watch import gauges, held_open, quantile, rss, slope, stalls
from tests.stores.servers import RedisServer

WARM_UP, CALM, MIXED = 0.2, 0.2 / 3, 0.6 / 3  # shares of the whole; the latter two come three times
PARKED = 500  # so few that this bound is reached while warming up
BACK_WITHIN = 5.0  # seconds until all counts are at base
KEPT_OPEN = 4.0  # seconds that the proxy keeps a vendor's connection for the next turn
POOL = 32  # connections to Redis at most
LONG = 30  # minutes from which on the slope can be told from noise
MOST_SLOPE, MOST_GROWTH = 1.0, 8.0  # MiB an hour; MiB in a shorter run
AS_CALM = 2.0
MOST_STILL = 0.05  # of the run
COPY_AGE = 8.0  # seconds that the old dump is older than the restart, at most
DOWN = 0.5  # seconds that Redis is away
ERROR = re.compile(r'"level": "(error|critical)"')
CALLER = (f"authorization: Bearer {KEY}", "connection: close")


@dataclass(frozen=True)
class Counts:
    """What a proxy holds when nobody asks it anything, and how long it took to get there."""

    seconds: float
    gauges: Mapping[str, float]
    held: Counter[str]

    def beyond(self, base: "Counts") -> list[str]:
        """What is more than it was. Pools may differ: of connections to a vendor one is kept, to Redis `POOL`.

        Redis resets connections as it is killed; they stay in the pool until it is their turn.
        """
        most = {**base.held, "vendors": len(MODELS), "redis": POOL, "closed": POOL - self.held["redis"]}
        over = [f"{name}: {n} open, not {most.get(name, 0)}" for name, n in self.held.items() if n > most.get(name, 0)]
        return over + [f"{k}: {v:g}, not {base.gauges[k]:g}" for k, v in self.gauges.items() if v > base.gauges[k]]

    def __str__(self) -> str:
        told = {**self.gauges, **{f"files: {name}": number for name, number in sorted(self.held.items())}}
        return ", ".join(f"{name} {number:g}" for name, number in told.items())


@dataclass
class Soak:
    """A run: who takes part, and what was seen."""

    seconds: float
    clients: Sequence[Client]
    ledger: Ledger
    proxy: Running
    vendors: str
    redis: RedisServer | None
    folder: Path
    began: float = field(default_factory=time.monotonic)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _pokes: "count[int]" = field(default_factory=count)

    @property
    def pid(self) -> int:
        """The proxy's."""
        return self.proxy.process.pid

    async def run(self) -> tuple[Counts, Counts]:
        """All phases; returns the counts at rest before them and after."""
        watching = [asyncio.create_task(self._sample()), asyncio.create_task(self._tell())]
        await self._ask_each()
        base = await self._at_rest()
        await self._phase("warm-up", WARM_UP)
        for trouble in (asyncio.sleep(0), self._restart(), self._bring_back()):
            await self._phase("calm", CALM)
            await asyncio.gather(self._phase("mixed", MIXED), trouble)
        end = await self._at_rest(base)
        for task in watching:
            task.cancel()
        return base, end

    async def _phase(self, name: str, share: float) -> None:
        self.ledger.phase = name
        until = time.monotonic() + share * self.seconds
        await asyncio.gather(*(client.live(until) for client in self.clients))

    async def _restart(self) -> None:
        """Redis ends in order, and has its data when it comes back."""
        await asyncio.sleep(MIXED / 3 * self.seconds)
        if self.redis is not None:
            await self._away(self.redis, self.redis.stop)

    async def _bring_back(self) -> None:
        """Redis dies, and what it has when it comes back was true some seconds ago."""
        await asyncio.sleep(MIXED / 3 * self.seconds)
        if (redis := self.redis) is None:
            return
        with redis.client() as client:
            client.save()
        shutil.copy(self.folder / "dump.rdb", self.folder / "old.rdb")
        for one in self.clients:
            one.mark()
        await asyncio.sleep(min(COPY_AGE, MIXED / 4 * self.seconds))

        def power_cut() -> None:
            redis.kill()
            shutil.copy(self.folder / "old.rdb", self.folder / "dump.rdb")

        await self._away(redis, power_cut)
        for one in self.clients:
            one.go_back()

    async def _away(self, redis: RedisServer, end: Callable[[], None]) -> None:
        outage = [time.monotonic(), float("inf")]
        self.ledger.outages.append(outage)
        await asyncio.to_thread(end)
        await asyncio.sleep(DOWN)
        await asyncio.to_thread(redis.start)
        outage[1] = time.monotonic()

    async def _at_rest(self, base: Counts | None = None) -> Counts:
        """The counts once nobody asks anything, or as they are when it is too late.

        Pools let go of what they kept too long when they are used next, so each bot is asked once before files are
        counted; that is not part of what has to be over in time.
        """
        began, ports = time.monotonic(), self._ports()
        while True:
            seen = await gauges(self.proxy.url)
            busy = [held_open(self.pid, ports)["clients"], seen["turns_running"], seen["turns_waiting"]]
            busy += [seen["tasks"] > base.gauges["tasks"]] if base else []
            took = time.monotonic() - began
            if not any(busy) or took > BACK_WITHIN:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(max(KEPT_OPEN + 0.5 - took, 0))
        await self._ask_each()
        await asyncio.sleep(0.1)
        seen = await gauges(self.proxy.url)
        await asyncio.sleep(0.1)
        return Counts(took, seen, held_open(self.pid, ports))

    async def _ask_each(self) -> None:
        for model in MODELS:
            text = f"soak 0.{next(self._pokes)} after - words 1 fault none;"
            await call(self.proxy.url, question(model, text), headers=CALLER)

    def _ports(self) -> Mapping[int, str]:
        ports = {urlsplit(self.proxy.url).port or 0: "clients", urlsplit(self.vendors).port or 0: "vendors"}
        return ports | ({self.redis.port: "redis"} if self.redis else {})

    async def _sample(self) -> None:
        while True:
            now = time.monotonic()
            self.memory.setdefault(self.ledger.phase, []).append((now - self.began, rss(self.pid)))
            await asyncio.sleep(1)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(30)
            rows, found = self.ledger.rows.values(), self.ledger
            told = f"{sum(row.turns for row in rows)} turns, RSS {rss(self.pid):.1f} MiB"
            print(f"{time.monotonic() - self.began:6.0f} s  {found.phase:8} {told}, {found.wrong} wrong", flush=True)


@dataclass
class Verdicts:
    """What must hold, one line each."""

    failed: int = 0

    def add(self, holds: bool, what: str, *more: str) -> None:
        """Print whether it does; `more`: what speaks against it."""
        self.failed += not holds
        print("PASS" if holds else "FAIL", what)
        for line in () if holds else more:
            print("    ", line)


def judge(soak: Soak, books: Mapping[str, Any], log: Sequence[str], base: Counts, end: Counts) -> int:
    """Print the report; returns how many criteria failed."""
    found, rows, verdicts = soak.ledger, soak.ledger.rows, Verdicts()
    print_table(rows)
    print(f"vendors: {books['tally']}")
    print(f"at rest before: {base}\nat rest after:  {end}\n")
    unexpected = [*found.unexpected, *log]
    verdicts.add(
        not unexpected, f"no unexpected failure ({sum(row.turns for row in rows.values())} turns)", *unexpected
    )
    verdicts.add(
        not found.garbled, f"replies are complete and in order ({found.checked} counted word by word)", *found.garbled
    )
    twice = [(name, at) for name, at in books["again"] if not found.is_out(at - ANSWERED_WITHIN, at)]
    again = [f"{name} was delivered twice; asked again it was {found.retried.get(name)!r}" for name, _ in twice]
    verdicts.add(
        not (again or books["wrong"]),
        f"each turn is delivered at most once, and where it belongs ({books['tally']['asked']} heard by the vendors)",
        *again,
        *books["wrong"],
    )
    beyond = end.beyond(base)
    verdicts.add(
        not beyond and end.seconds < BACK_WITHIN,
        f"counts are back at base within {BACK_WITHIN:g} s (tasks, turns and clients after {end.seconds:.2f} s)",
        *beyond,
    )
    judge_memory(soak, verdicts)
    calm, mixed = (quantile(rows[phase].added, 0.99) for phase in ("calm", "mixed"))
    verdicts.add(
        mixed <= AS_CALM * calm,
        f"the p99 of what Parley adds under faults, {mixed:.1f} ms, is at most {AS_CALM:g} times calm's {calm:.1f} ms",
    )
    met = {told.split(":")[0] for row in rows.values() for told in row.faults}
    lacking = [kind for kind in FAULTS if kind not in met]
    restarts = 2 if soak.redis else 0
    verdicts.add(
        not lacking and len(rows["mixed"].left) == 3 and len(found.outages) == restarts,
        f"the mixture held all faults, leaving in three ways, and {restarts} restarts of the store",
        *lacking,
    )
    still = [until - since for since, until in found.stalls]
    stalled = sum(row.stalled for row in rows.values())
    verdicts.add(
        sum(still) < MOST_STILL * soak.seconds,
        f"this machine had time for it: a processor stood still {len(still)} times, {max(still, default=0):.2f} s at "
        f"most, {sum(still):.1f} s in all; the times of {stalled} turns that met that are left out",
        "this run says little about times",
    )
    return verdicts.failed


def judge_memory(soak: Soak, verdicts: Verdicts) -> None:
    """By its slope where the run is long enough to tell one, else by what it grew."""
    warm = [*soak.memory["calm"], *soak.memory["mixed"]]
    tenth = max(len(warm) // 10, 1)
    growth = quantile([v for _, v in warm[-tenth:]], 0.5) - quantile([v for _, v in warm[:tenth]], 0.5)
    each = ", ".join(f"{name} {s[0][1]:.1f} to {s[-1][1]:.1f}" for name, s in soak.memory.items())
    hourly = slope(warm)
    what = f"memory after warming up: {hourly:+.2f} MiB an hour, grown by {growth:+.2f} MiB ({each})"
    if soak.seconds >= 60 * LONG:
        verdicts.add(hourly < MOST_SLOPE, f"{what}; at most {MOST_SLOPE:g} an hour")
    else:
        verdicts.add(growth < MOST_GROWTH, f"{what}; at most {MOST_GROWTH:g} in so short a run")


def print_table(rows: Mapping[str, Row]) -> None:
    """What came of each phase."""
    heads = ("phase", "turns", "streams", "left", "faults", "added p50", "added p99", "ms of")
    print("\n" + "".join(f"{head:>10}" for head in heads))
    for name in ("warm-up", "calm", "mixed", "outage"):
        row = rows.get(name, Row())
        counts = (name, row.turns, row.streams, row.left.total(), row.faults.total())
        added = [f"{quantile(row.added, share):.1f}" for share in (0.5, 0.99)]
        print("".join(f"{cell:>10}" for cell in (*counts, *added, len(row.added))))
    for name, row in rows.items():
        for title, found in (("left", row.left), ("faults", row.faults), ("continued", row.ways)):
            shares = (f"{key} {number / found.total():.1%}" if title == "continued" else f"{key} x{number}"
                      for key, number in found.most_common())  # fmt: skip
            if found:
                print(f"{name:>10} {title}: {', '.join(shares)}")


def complaints(proxy: Running) -> list[str]:
    """End the proxy. Lines of its log that are errors, or no lines of a log; and an end that is not in order."""
    early = proxy.process.poll()
    proxy.signal(signal.SIGTERM)
    code = proxy.process.wait(40)
    with proxy.err.open() as lines:
        wrong = [line.strip() for line in lines if not line.startswith("{") or ERROR.search(line)]
    return wrong[:20] + ([] if (early, code) == (None, 0) else [f"it ended too early, or not well: {early}, {code}"])


@contextmanager
def vendors_at(seed: int) -> Iterator[str]:
    """The vendors' process; yields its URL."""
    command = [sys.executable, "-m", "tests.soak.vendors", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def configuration(vendors: str, store: str) -> str:
    """The proxy's configuration file; JSON is YAML."""
    models: dict[str, dict[str, object]] = {
        "askhandle": {"token": "made-up", "poll_interval": 0.05, "poll_timeout": 5},
        "misterturing": {"api_key": "made-up", "assistant_id": "made-up"},
        "newoaks": {"secret_key": "made-up", "chatbot_id": "made-up"},
        "quickchat": {"token": "made-up", "scenario_id": "made-up"},
    }
    for name, model in models.items():
        model |= {"vendor": name, "base_url": f"{vendors}/{name}", "idle_timeout": 3}
    keys = [{"name": "soak", "key": KEY}]
    return json.dumps({"store": store, "keys": keys, "conversation": {"max_parked": PARKED}, "models": models})


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5, help="5 in its short form, 60 for the README")
    parser.add_argument("--store", choices=("redis", "memory"), default="redis")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--clients", type=int, default=45, help="each takes about two turns in three seconds")
    given = parser.parse_args()
    print(f"{given.minutes:g} minutes, {given.clients} clients, {given.store}, --seed {given.seed}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        redis = RedisServer(folder, "--save", "3600 1", "--appendonly", "no") if given.store == "redis" else None
        if redis is not None:
            redis.start()
            stack.callback(redis.kill)
        vendors = stack.enter_context(vendors_at(given.seed))
        config = folder / "config.yaml"
        config.write_text(configuration(vendors, redis.url if redis else "memory://"))
        proxy = stack.enter_context(started("serve", "--config", str(config), "--port", "0", at=folder))
        ledger, chats = Ledger(stalls=stack.enter_context(stalls())), count(1)
        clients = [Client(proxy.url, ledger, chats, given.seed + number) for number in range(given.clients)]
        soak = Soak(60 * given.minutes, clients, ledger, proxy, vendors, redis, folder)

        async def run() -> tuple[Counts, Counts, Any]:
            return *await soak.run(), (await call(vendors, path="/report", method="GET")).json

        base, end, books = asyncio.run(run())
        return judge(soak, books, complaints(proxy), base, end)


if __name__ == "__main__":
    sys.exit(bool(main()))
