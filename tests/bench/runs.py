"""One run of the load generator against one server: what it sends, and whether others disturbed it."""

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from tests.bench.servers import BESIDE, TICKS, Server, Stage, cpu

MARK = "N" * 16  # in a chat's first message: what tells it from every other chat
TURNS = 4  # of a chat, before its connection begins another
FOREIGN = 0.06  # of a core: more than that, used by others, disturbs a run
TRIES = 4
LINGER = 12.0  # seconds to wait at most until all is quiet between two runs
QUESTION = "May I bring my dog along, and until when is the kitchen open on a day like that? "

Row = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """What is sent: so many connections, for so many seconds after `warm`; `words` in a streamed answer, 0: plain.

    `ramp` is over how many seconds the connections begin, `history` how many messages a chat has before its first turn.
    """

    connections: int
    seconds: float = 1.0
    warm: float = 0.3
    ramp: float = 0.0
    words: int = 0
    history: int = 0
    turns: int = TURNS


@dataclass
class Runs:
    """All runs so far, each a row that is also written to `out` as a line of JSON."""

    stage: Stage
    load: Path
    out: TextIO
    patience: float  # seconds that may go into repeating what was disturbed
    rows: list[Row] = field(default_factory=list)
    _replies: dict[tuple[int, str, int], str] = field(default_factory=dict)
    _chunks: int = 0

    def set_vendor(self, chunks: int = 100, gap: float = 0.0, latency: float = 0.0) -> None:
        """How the vendor answers from now on; times are seconds."""
        asked(self.stage.vendor, "GET", f"/set/{round(latency * 1e6)}/{chunks}/{round(gap * 1e6)}")
        self._chunks = chunks

    def record(self, part: str, name: str, **figures: Any) -> Row:
        """Keep a row."""
        row = {"part": part, "name": name, **figures}
        self.rows.append(row)
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()
        return row

    def run(
        self,
        part: str,
        server: Server,
        load: Load,
        *,
        beside: Iterable[int] = (),
        tries: int = TRIES,
        more: Mapping[str, Any] | None = None,
    ) -> Row:
        """One run, repeated while others disturb it and there is patience; the least disturbed one counts."""
        command = self._command(server, load, beside)
        best: Row = {}
        for _ in range(tries):
            began = time.monotonic()
            tried = self._once(command, server, load)
            if not best or tried["foreign"] < best["foreign"]:
                best = tried
            if best["foreign"] <= FOREIGN or self.patience <= 0:
                break
            self.patience -= time.monotonic() - began
        best["disturbed"] = best["foreign"] > FOREIGN
        return self.record(part, server.name, connections=load.connections, **best, **(more or {}))

    def _once(self, command: Sequence[str], server: Server, load: Load) -> Row:
        self._settle()
        pids = [*self.stage.pids(), os.getpid()]
        busy, ours, began = _busy(), sum(map(cpu, pids)) + _children(), time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loading:
            time.sleep(load.ramp + (load.warm + load.seconds) * server.patience - 0.2)
            rss = server.rss()
            told, _ = loading.communicate()
        if loading.returncode:
            raise RuntimeError(f"the load on {server.name} ended with {loading.returncode}")
        spent = sum(map(cpu, pids)) + _children() - ours
        foreign = max(0.0, _busy() - busy - spent) / (time.monotonic() - began)
        return {**json.loads(told), "rss": round(rss, 1), "foreign": round(foreign, 3)}

    def _settle(self) -> None:
        """Wait until nobody works off what the run before left behind: Parley hears a reply out that nobody hears."""
        until = time.monotonic() + LINGER
        while time.monotonic() < until:
            pids = self.stage.pids()
            used = sum(map(cpu, pids))
            time.sleep(0.15)
            if sum(map(cpu, pids)) - used < 2.5 / TICKS:
                return

    def _command(self, server: Server, load: Load, beside: Iterable[int]) -> Sequence[str]:
        options: dict[str, Any] = {
            "-c": load.connections,
            "-s": load.seconds * server.patience,
            "-w": load.warm * server.patience,
        }
        options |= {"-r": load.ramp, "-k": load.words, "-n": MARK}
        words = [str(word) for option in options.items() for word in option]
        words += [word for name, value in server.headers.items() for word in ("-H", f"{name}: {value}")]
        words += [word for pid in server.pids for word in ("-p", str(pid))]
        words += [word for pid in beside for word in ("-q", str(pid))]
        return ["taskset", "-c", BESIDE, str(self.load), str(server.port), *words, *map(str, self.bodies(server, load))]

    def bodies(self, server: Server, load: Load) -> Sequence[Path]:
        """The requests of one chat, in files: each holds the reply that the one before was given."""
        key = (server.port, server.model, self._chunks if load.words else 0)
        if key not in self._replies:
            self._replies[key] = reply(server, stream=bool(load.words))
        said = self._replies[key]
        messages = [_message(number, said) for number in range(load.history)]
        paths = []
        for turn in range(load.turns):
            messages.append(_message(len(messages), said))
            body = {"model": server.model, "messages": messages, **({"stream": True} if load.words else {})}
            path = self.stage.folder / f"body-{server.port}-{server.model}-{load.words}-{load.history}-{turn}.json"
            path.write_text(json.dumps(body, separators=(",", ":")), encoding="utf-8")
            paths.append(path)
            messages.append(_message(len(messages), said))
        return paths


def _message(number: int, reply: str) -> Mapping[str, str]:
    if number % 2:
        return {"role": "assistant", "content": reply}
    return {"role": "user", "content": f"{MARK if number == 0 else number}: {QUESTION * 2}"}


def _busy() -> float:
    """Seconds that the cores have worked, or were taken away, since this machine started."""
    user, nice, system, _, _, _, _, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, steal))) / TICKS


def _children() -> float:
    """Seconds of CPU of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def asked(port: int, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer. Raises RuntimeError unless it is a success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        content = None if body is None else json.dumps(body, separators=(",", ":"))
        connection.request(method, path, content, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        told = answer.read()
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise RuntimeError(f"port {port} answered {answer.status}: {told[:300].decode(errors='replace')}")
    return told


def reply(server: Server, *, stream: bool) -> str:
    """What this server gives as its answer, which is the same for every question."""
    body = {"model": server.model, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    told = asked(server.port, "POST", "/v1/chat/completions", body, server.headers)
    if not stream:
        return str(json.loads(told)["choices"][0]["message"]["content"])
    events = [line.removeprefix(b"data: ") for line in told.splitlines() if line.startswith(b"data: {")]
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def middle(rows: Iterable[Row], key: str) -> tuple[float, bool]:
    """The median over the undisturbed rows, or over all if there is none; and whether that is so."""
    found = [row for row in rows if key in row]
    quiet = [row[key] for row in found if not row.get("disturbed")]
    values = quiet or [row[key] for row in found]
    return (median(values) if values else float("nan")), not quiet
