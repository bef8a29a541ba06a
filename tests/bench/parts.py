"""What is measured, part by part. Each part leaves rows; `rounds` interleaves those who are compared."""

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.runs import Load, Row, Runs
from tests.bench.servers import BESIDE, OTHERS, SERVED, STREAMING, VENDORS, Server, Stage

CHUNKS = 100  # of every stream
CONNECTIONS = (1, 16, 64, 256)
BURSTS, PACED, OPEN = 16, 64, (256, 1000)  # streams at once
PACE, SLOW_PACE = 0.005, 0.1  # seconds between two chunks
STARTS = 7
HISTORIES = (10, 100, 1000)  # messages


@dataclass
class Bench:
    """A run of the suite: its stage, what it has measured, how many rounds, and which of the others take part."""

    stage: Stage
    runs: Runs
    rounds: int
    others: Sequence[str]
    parked: Sequence[int]
    connections: Sequence[int] = CONNECTIONS

    def everybody(self, vendors: Sequence[str], *, direct: bool = True) -> Sequence[Server]:
        """All who are compared, started: one Parley with a model for each vendor."""
        parley = self.stage.parley()
        found = [Server("direct", self.stage.vendor)] if direct else []
        found += [getattr(self.stage, name)() for name in OTHERS if name in self.others]
        return [*found, self.stage.bare(), *(parley.as_model(vendor) for vendor in vendors)]

    def interleaved(self, servers: Sequence[Server]) -> Iterator[tuple[int, Server]]:
        """Each server once in each round, in another order each time."""
        for number in range(self.rounds):
            turned = [*servers[number % len(servers) :], *servers[: number % len(servers)]]
            for server in turned[:: -1 if number % 2 else 1]:
                yield number, server


def plain(bench: Bench) -> None:
    """Whole answers, at several numbers of connections."""
    bench.runs.set_vendor()
    servers = bench.everybody(VENDORS)
    _warm_up(bench, servers, 0)
    for connections in bench.connections:
        slower = connections / 256  # so that each connection is answered more than once
        for number, server in bench.interleaved(servers):
            load = Load(connections, seconds=1 + slower, warm=0.3 + slower)
            bench.runs.run("plain", server, load, more={"round": number})
    _end(bench, servers)


def streams(bench: Bench) -> None:
    """Streams of 100 chunks: as fast as they come, and one every 5 ms. What no vendor streams is left out."""
    bench.runs.set_vendor(CHUNKS)
    servers = bench.everybody(STREAMING)
    _warm_up(bench, servers, CHUNKS)
    for number, server in bench.interleaved(servers):
        bench.runs.run("burst", server, Load(BURSTS, words=CHUNKS), more={"round": number})
    bench.runs.set_vendor(CHUNKS, PACE)
    paced = Load(PACED, seconds=2, ramp=CHUNKS * PACE, warm=CHUNKS * PACE, words=CHUNKS)
    for number, server in bench.interleaved(servers):
        bench.runs.run("paced", server, paced, more={"round": number})
    _end(bench, servers)


def many(bench: Bench) -> None:
    """Many open streams, ten chunks a second each: is all delivered, and what does it take? Each server is fresh."""
    stage = bench.stage
    makers: list[Callable[[], Server]] = [getattr(stage, name) for name in OTHERS if name in bench.others]
    makers += [stage.bare, *(functools.partial(stage.parley, model=vendor) for vendor in STREAMING)]
    for make in makers:
        server = make()
        bench.runs.set_vendor(CHUNKS, SLOW_PACE)
        bench.runs.bodies(server, Load(1, words=CHUNKS))  # asks once, so that all there is to load is loaded
        more = {"idle": server.rss(), "listening": round(server.listening, 3)}
        for connections in OPEN:
            bench.runs.run("open", server, Load(connections, 5, warm=1, ramp=3, words=CHUNKS), more=more)
        _end(bench, [server])


def start(bench: Bench) -> None:
    """From the start of `parley serve` to the line that says it listens."""
    for number in range(STARTS):
        command = [sys.executable, "-m", "proxy", "serve", "--config", bench.stage.config(0)]
        began = time.monotonic()
        process = subprocess.Popen(
            ["taskset", "-c", SERVED, *map(str, command)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            line = process.stdout.readline()
            took = time.monotonic() - began
            process.terminate()
        assert "listening" in line, line
        bench.runs.record("start", "parley", seconds_to_listen=round(took, 4), round=number)


def growth(bench: Bench) -> None:
    """Turns behind long histories, beside what it costs only to parse their bodies, on the same core."""
    bench.runs.set_vendor()
    server = bench.stage.parley()
    for number in range(bench.rounds):
        for history in HISTORIES:
            load = Load(4, seconds=1.5, history=history, turns=20)
            row = bench.runs.run("growth", server, load, more={"history": history, "round": number})
            parse = _parse(bench.runs.bodies(server, load)[load.turns // 2])
            bench.runs.record("parse", "orjson", history=history, parse=parse, turn=row["cpu_request"], round=number)
    _end(bench, [server])


def _parse(body: Path) -> float:
    """Microseconds that orjson takes for a body, in a process of its own."""
    code = (
        "import sys, time, orjson; body = open(sys.argv[1], 'rb').read(); began = time.process_time(); n = 0\n"
        "while (spent := time.process_time() - began) < 0.3: orjson.loads(body); n += 1\n"
        "print(spent / n * 1e6)"
    )
    command = ["taskset", "-c", SERVED, sys.executable, "-c", code, str(body)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def parked(bench: Bench) -> None:
    """Turns while many other conversations wait, in each store."""
    bench.runs.set_vendor()
    for store in ("memory", "sqlite", "redis"):
        found: list[tuple[int, Server, Sequence[int]]] = []
        for count in bench.parked:
            began = time.monotonic()
            server, beside = _with_parked(bench, store, count)
            bench.runs.record("filled", store, parked=count, seconds=round(time.monotonic() - began, 1))
            bench.runs.run("warm", server, Load(16), tries=1)
            found.append((count, server, beside))
        for number in range(bench.rounds):
            for count, server, beside in found[:: -1 if number % 2 else 1]:
                more = {"store": store, "parked": count, "round": number}
                bench.runs.run("parked", server, Load(16, seconds=1.5), beside=beside, more=more)
        _end(bench, [server for _, server, _ in found])


def _with_parked(bench: Bench, store: str, count: int) -> tuple[Server, Sequence[int]]:
    """A Parley on a store with so many entries, and the pids of the store."""
    if store == "memory":
        return bench.stage.parley(filled=count), ()
    url, beside = _store(bench, store, f"parked-{count}")
    cores = (SERVED, BESIDE) if store == "redis" else (f"{SERVED},{BESIDE}",)  # SQLite has one writer
    code = (
        f"import asyncio; from tests.bench.parked import fill_at; asyncio.run(fill_at({url!r}, {count // len(cores)}))"
    )
    filling = [bench.stage.start(sys.executable, "-c", code, core=core) for core in cores]
    codes = [process.wait() for process in filling]
    if any(codes):
        raise RuntimeError(f"{url} could not be filled")
    return bench.stage.parley(store=url), beside


def _store(bench: Bench, store: str, name: str) -> tuple[str, Sequence[int]]:
    if store == "sqlite":
        return f"sqlite:///{bench.stage.folder}/{name}.db", ()
    process, url = bench.stage.redis()
    return url, [process.pid]


def workers(bench: Bench) -> None:
    """One and two workers on a shared store. Two share the second core with the vendor, the load and Redis."""
    bench.runs.set_vendor()
    for store in ("sqlite", "redis"):
        url, beside = _store(bench, store, "workers")
        cores: Mapping[int, str] = {1: SERVED, 2: f"{SERVED},{BESIDE}"}
        for number in range(bench.rounds):
            for count, core in cores.items():
                server = bench.stage.parley(store=url, workers=count, core=core)
                load = Load(64, seconds=2, warm=0.5)
                more = {"store": store, "workers": count, "round": number}
                bench.runs.run("workers", server, load, beside=beside, more=more)
                _end(bench, [server])


def _warm_up(bench: Bench, servers: Sequence[Server], words: int) -> None:
    """Compilers, caches and pools settle; nothing of it counts."""
    for server in servers:
        row: Row = bench.runs.run("warm", server, Load(32, seconds=3, words=words), tries=1)
        if row["failed"]:
            print(f"! {server.name}: {row['failed']} failed while warming up", file=sys.stderr)


def _end(bench: Bench, servers: Sequence[Server]) -> None:
    processes: dict[int, Any] = {server.process.pid: server.process for server in servers if server.process}
    if processes:
        bench.stage.end(*processes.values())


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "plain": plain,
    "streams": streams,
    "open": many,
    "start": start,
    "growth": growth,
    "parked": parked,
    "workers": workers,
}
