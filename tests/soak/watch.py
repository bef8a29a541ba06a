"""What can be seen of a running proxy from outside: its memory, what it holds open, and what it says it is doing.

And of the machine below it: when it stood still.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import linear_regression
from threading import Thread
from typing import IO

from tests.end_to_end.callers import call

STILL = 0.1  # seconds that a processor gave nobody, of a machine that shares it with others
_WATCH = f"""
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
while True:
    slept = time.monotonic()
    time.sleep(0.02)
    if (woke := time.monotonic()) > slept + 0.02 + {STILL}:
        print(slept, woke, flush=True)
"""

GAUGES = ("parley_tasks", "parley_turns_running", "parley_turns_waiting")


def rss(pid: int) -> float:
    """Resident memory in MiB."""
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kilobytes) / 1024


def held_open(pid: int, ports: Mapping[int, str]) -> Counter[str]:
    """Open files by what they are: connections by the name of the port at either end, all else as `other`.

    `closed`: connections that the other end has reset, so that the system does not know any more whose they were.
    """
    ends = {row[6]: [0, 0] for row in _table(pid, "unix")}
    ends |= {row[9]: [int(end.rpartition(":")[2], 16) for end in row[1:3]] for row in _table(pid, "tcp")}
    found: Counter[str] = Counter()
    for held in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inode = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(held))
            found[_kind(inode[1], ends, ports) if inode else "other"] += 1
    return found


def _table(pid: int, family: str) -> list[list[str]]:
    return [row.split() for row in Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]]


def _kind(inode: str, ends: Mapping[str, Sequence[int]], ports: Mapping[int, str]) -> str:
    if inode not in ends:
        return "closed"
    local, remote = ends[inode]
    return (ports.get(local) or ports.get(remote) or "other") if remote else "other"  # it listens


async def gauges(url: str) -> dict[str, float]:
    """What `GET /metrics` says of the gauges, summed over their labels."""
    text = (await call(url, path="/metrics", method="GET", headers=["connection: close"])).body.decode()
    found = {name: re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE) for name in GAUGES}
    if missing := [name for name, values in found.items() if not values]:
        raise LookupError(f"/metrics has no {', '.join(missing)}")
    return {name.removeprefix("parley_"): sum(map(float, values)) for name, values in found.items()}


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """How much an hour, by least squares through (seconds, value)."""
    return 3600 * linear_regression(*zip(*samples, strict=True)).slope


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed; NaN for none."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


@contextmanager
def stalls() -> Iterator[list[tuple[float, float]]]:
    """When this machine stood still meanwhile, by the monotonic clock: a process on each processor sleeps and looks."""
    seen: list[tuple[float, float]] = []

    def read(told: IO[str]) -> None:
        for line in told:
            since, until = map(float, line.split())
            seen.append((since, until))

    with ExitStack() as stack:
        for processor in sorted(os.sched_getaffinity(0)):
            watcher = subprocess.Popen(
                [sys.executable, "-c", _WATCH, str(processor)], stdout=subprocess.PIPE, text=True
            )
            assert watcher.stdout is not None
            reader = Thread(target=read, args=(watcher.stdout,), daemon=True)
            reader.start()
            stack.enter_context(watcher)
            stack.callback(reader.join)
            stack.callback(watcher.kill)
        yield seen
