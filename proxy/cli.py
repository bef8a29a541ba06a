"""The commands. `parley demo` is the one to begin with."""

import argparse
import asyncio
import functools
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from proxy import __version__, vendors
from proxy.app import create_app
from proxy.config import Config, ConfigError, Key, ModelOptions, check_exposure, load, read, schema, without_effect
from proxy.errors import ProxyError
from proxy.messages import Delta, Message, Turn
from proxy.ports import ConversationStore
from proxy.server import LOOPBACK, AddressTaken, Backstage, Server, Worker, address, listen, raise_file_limit
from proxy.stores import open_store
from proxy.telemetry import start_logging
from proxy.vendors.base import Answer, HttpBot, calling
from proxy.workers import NotStarted, Workers

if TYPE_CHECKING:
    from proxy.simulator import Simulator

DEMO_LATENCY = 0.4  # seconds before a simulated bot speaks
DEMO_GAP = 0.03  # seconds between the pieces of its reply


class Vendors(Mapping[str, type[ModelOptions]]):
    """The options class of each vendor, imported when it is asked for."""

    def __getitem__(self, name: str) -> type[ModelOptions]:
        try:
            return vendors.load(name).Options
        except vendors.UnknownVendor:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(vendors.names())

    def __len__(self) -> int:
        return len(vendors.names())


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The `parley` command. Exits 0 when all went well, 1 for what the user can mend, 2 for a wrong call."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except (ConfigError, AddressTaken, NotStarted) as fault:
        sys.exit(str(fault))
    except ProxyError as fault:
        sys.exit(fault.message)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parley", description="Your hosted chatbots, spoken to in OpenAI's tongue. Begin with `parley demo`."
    )
    parser.add_argument("--version", action="version", version=f"parley {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], summary: str, *options: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.strip("_"), help=summary, description=f"{summary.capitalize()}.")
        added.set_defaults(command=run)
        if "config" in options:
            added.add_argument("--config", type=Path, metavar="FILE", help="default: $PARLEY_CONFIG, then config.yaml")
        if "address" in options:
            added.add_argument("--host", metavar="H", help=f"address to listen on (default: {LOOPBACK})")
            added.add_argument("--port", type=int, metavar="P", help="0 picks a free one (default: 8080)")
        return added

    command(_demo, "a proxy with simulated bots: no account, no configuration, no network", "address")
    serve = command(_serve, "the proxy, as its configuration says", "config", "address")
    serve.add_argument("--workers", type=_count, default=1, metavar="N", help="processes (default: 1)")
    check = command(_check, "look for faults in the configuration, and show what it makes", "config")
    check.add_argument("--live", action="store_true", help="also reach the store, and send each bot a message")
    command(_models, "the models of the configuration", "config")
    chat = command(_chat, "talk to a bot in this terminal, and see how each reply was continued", "config")
    chat.add_argument("model", metavar="MODEL")
    chat.add_argument("--base-url", metavar="URL", help="a running proxy, e.g. http://127.0.0.1:8080/v1")
    chat.add_argument("--key", default="", metavar="KEY", help="the key for it (default: $PARLEY_KEY)")
    simulate = command(_simulate, "only the simulated vendors, to test a configuration against", "address")
    simulate.add_argument("--latency", type=float, default=DEMO_LATENCY, metavar="S", help="seconds before they speak")
    setup = command(_setup, "what a vendor needs once, outside of chatting: see the README's vendors", "config")
    setup.add_argument("model", metavar="MODEL")
    setup.add_argument("--create", metavar="NAME", help="make a new assistant and print its id")
    setup.add_argument("--description", default="", metavar="TEXT", help="what the new assistant is for")
    command(_schema, "the JSON Schema of the configuration file, for editors")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: 1 or more")
    return int(text)


def _config(arguments: argparse.Namespace, *, serving: bool = False) -> Config:
    path = arguments.config or Path(os.environ.get("PARLEY_CONFIG") or "config.yaml")
    config = read(path, vendors=Vendors(), environ=os.environ)
    try:
        if not serving and (file := _unmade(config)):
            _check_place(file)
        else:
            asyncio.run(_open(config).aclose())
    except ValueError as fault:
        raise ConfigError(str(path), [f"store: {fault}"]) from None
    for place in without_effect(config):
        print(f"{path}: {place} has no effect in this version", file=sys.stderr)
    return config


def _open(config: Config) -> ConversationStore:
    return open_store(config.store, max_parked=config.conversation.max_parked)


def _unmade(config: Config) -> Path | None:
    """The store's file that is not there yet. To open the store would make it, which is for those who serve."""
    scheme, _, name = config.store.partition(":///")
    return Path(name).absolute() if scheme == "sqlite" and not Path(name).exists() else None


def _check_place(file: Path) -> None:
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"{file} cannot be made: name a file in a folder that exists and that this process may write to"
        )


def _serve(arguments: argparse.Namespace) -> None:
    config = _config(arguments, serving=True)
    host = arguments.host or config.server.host
    check_exposure(config, host)
    config = config.model_copy(update={"server": config.server.model_copy(update={"host": host})})
    if arguments.workers > 1:
        _check_shareable(config)
    start_logging(plain=config.server.log.format == "text")
    raise_file_limit()
    with listen(host, config.server.port if arguments.port is None else arguments.port) as listener:
        announce = functools.partial(_announce, listener)
        if arguments.workers > 1:
            work = functools.partial(_work, config, arguments.workers, listener)
            with TemporaryDirectory(prefix="parley-") as folder:
                os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where workers count: read by proxy/metrics.py
                Workers(listener, arguments.workers, work, announce).run()
        else:
            Server(create_app(config), grace=config.server.shutdown_grace, announce=announce).run([listener])


def _check_shareable(config: Config) -> None:
    """Whether several processes could serve this."""
    if config.store == "memory://":
        remedy = "set `store: sqlite:///parley.db` or a redis:// URL"
        sys.exit(f"--workers: processes cannot share memory://, so {remedy}, or use one worker")
    if not hasattr(os, "fork"):
        sys.exit("--workers: this system cannot fork processes; use one worker")


def _work(config: Config, workers: int, listener: socket.socket, line: socket.socket) -> None:
    """What each worker process does: event loop, bots and store are its own."""
    Worker(create_app(config, workers=workers), grace=config.server.shutdown_grace, line=line).run([listener])


def _announce(listener: socket.socket, greeting: str = "") -> None:
    """The one line that a script can wait for; what is for eyes goes to stderr."""
    print(f"parley listening on {address(listener)}", flush=True)
    if greeting:
        print(greeting, file=sys.stderr, flush=True)


def _simulate(arguments: argparse.Namespace) -> None:
    start_logging(plain=True)
    simulator = _simulator(latency=arguments.latency)
    with listen(arguments.host or LOOPBACK, _port(arguments)) as listener:
        print(f"parley simulates vendors on {address(listener)}", flush=True)
        print(json.dumps({"models": _simulated(address(listener), simulator)}, indent=2), file=sys.stderr)
        Backstage(simulator.app).run([listener])


def _demo(arguments: argparse.Namespace) -> None:
    host = arguments.host or LOOPBACK
    check_exposure(Config(), host)
    start_logging(plain=True)
    with listen(host, _port(arguments)) as front, listen(LOOPBACK, 0) as back:
        asyncio.run(_demonstrate(front, back))


async def _demonstrate(front: socket.socket, back: socket.socket) -> None:
    simulator = _simulator(latency=DEMO_LATENCY)
    text = json.dumps({"models": _simulated(address(back), simulator)})
    config = load(text, vendors=Vendors(), environ={})
    greeting = _GREETING.format(url=address(front), models=", ".join(config.models))
    async with Backstage(simulator.app).beside([back]):
        announce = functools.partial(_announce, front, greeting)
        await Server(create_app(config), grace=config.server.shutdown_grace, announce=announce).serve([front])


def _simulator(*, latency: float) -> "Simulator":
    from proxy.simulator import Simulator  # noqa: PLC0415 - whoever serves has no use for it

    return Simulator(latency=latency, gap=DEMO_GAP)


def _simulated(url: str, bots: "Simulator") -> dict[str, dict[str, str]]:
    """Models for the simulated bots; they have the names of the README."""
    return {
        "newoaks-demo": {
            "vendor": "newoaks",
            "base_url": f"{url}/newoaks",
            "secret_key": bots.newoaks.secret_key,
            "chatbot_id": bots.newoaks.chatbot_id,
        },
        "askhandle-demo": {
            "vendor": "askhandle",
            "base_url": f"{url}/askhandle/api/v1",
            "username": bots.askhandle.username,
            "password": bots.askhandle.password,
        },
        "misterturing-demo": {
            "vendor": "misterturing",
            "base_url": f"{url}/misterturing/v4.0",
            "api_key": bots.misterturing.api_key,
            "assistant_id": bots.misterturing.assistant_id,
        },
        "quickchat-demo": {
            "vendor": "quickchat",
            "base_url": f"{url}/quickchat",
            "token": bots.quickchat.token,
            "scenario_id": bots.quickchat.scenario_id,
        },
    }


_GREETING = """
Simulated bots: {models}. They remember their conversation; nothing leaves this machine. Ctrl-C ends it. Try:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "newoaks-demo", "messages": [{{"role": "user", "content": "Hello!"}}]}}' -i

or, with `pip install openai`:

  from openai import OpenAI

  client = OpenAI(base_url="{url}/v1", api_key="none")
  messages = []
  for text in ["Hello, my name is Ada.", "What is my name?"]:
      messages.append({{"role": "user", "content": text}})
      answer = client.chat.completions.create(model="newoaks-demo", messages=messages)
      messages.append(answer.choices[0].message)
      print(answer.choices[0].message.content)
"""


def _models(arguments: argparse.Namespace) -> None:
    _print_table(_model_rows(_config(arguments)))


def _check(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    check_exposure(config, config.server.host)
    _print_table(_model_rows(config))
    print(f"\nstore: {config.store_shown}   keys: {len(config.keys) or 'none (open)'}   no faults")
    if arguments.live and not asyncio.run(_check_live(config)):
        sys.exit(1)


def _model_rows(config: Config) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("MODEL", "ALIASES", "VENDOR", "BASE URL", "CREDENTIAL")]
    for name, options in config.models.items():
        credential = ", ".join(getattr(options, "credential", {}))
        rows.append((name, ", ".join(options.aliases) or "-", options.vendor, options.base_url, credential))
    return rows


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


async def _check_live(config: Config) -> bool:
    """A sign of life from the store and one message to each bot; True if all of them answered."""
    print()
    well = [await _answers(f"store {config.store_shown}", _reached(config))]
    for name, options in config.models.items():
        bot: HttpBot[Any] = vendors.load(options.vendor)(options)
        well.append(await _answers(name, _first_words(bot)))
        await bot.aclose()
    return all(well)


async def _answers(name: str, answer: Awaitable[str]) -> bool:
    """Print what is said, and how long it took."""
    began = time.monotonic()
    well = True
    try:
        said = await answer
    except Exception as fault:  # noqa: BLE001 - whatever is wrong with one, the others are asked too
        well = False
        said = f"FAILED: {fault.message if isinstance(fault, ProxyError) else type(fault).__name__}"
    print(f"{name}: {time.monotonic() - began:.2f} s  {said}", flush=True)
    return well


async def _reached(config: Config) -> str:
    if _unmade(config):
        return "is made by `parley serve`"
    store = _open(config)
    try:
        await store.secret()
    finally:
        await store.aclose()
    return "reached"


async def _first_words(bot: HttpBot[Any]) -> str:
    turn = Turn(new=[Message("user", "Hello")])
    async with aclosing(bot.reply(turn)) as events:
        said = "".join([event.text async for event in events if isinstance(event, Delta)])
    line = " ".join(said.split())
    return line if len(line) <= 100 else f"{line[:99]}…"


def _setup(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    options = _named(config, arguments.model)
    print(asyncio.run(_set_up(vendors.load(options.vendor)(options), arguments)))


def _named(config: Config, model: str) -> ModelOptions:
    for name, options in config.models.items():
        if model in (name, *options.aliases):
            return options
    raise ConfigError("MODEL", [f"there is no model {model}; there are: {', '.join(config.models)}"])


async def _set_up(bot: HttpBot[Any], arguments: argparse.Namespace) -> str:
    try:
        return await bot.setup(arguments.create, arguments.description)
    finally:
        await bot.aclose()


def _schema(arguments: argparse.Namespace) -> None:
    print(json.dumps(schema(Vendors()), indent=2))


def _chat(arguments: argparse.Namespace) -> None:
    if arguments.base_url:
        key = arguments.key or os.environ.get("PARLEY_KEY", "")
        asyncio.run(_converse(arguments.base_url.rstrip("/"), arguments.model, key))
        return
    config = _config(arguments, serving=True)
    _named(config, arguments.model)
    with listen(LOOPBACK, 0) as listener:
        asyncio.run(_converse_alone(config, listener, arguments.model))


async def _converse_alone(config: Config, listener: socket.socket, model: str) -> None:
    """A chat through a proxy of one's own, which lives as long as the chat and has a key that nobody else knows."""
    key = secrets.token_urlsafe(32)
    own = config.model_copy(update={"keys": (Key.model_validate({"name": "terminal", "key": key}),)})
    async with Backstage(create_app(own)).beside([listener]):
        await _converse(f"{address(listener)}/v1", model, key)


async def _converse(base_url: str, model: str, key: str) -> None:
    print(f"Talking to {model}. An empty line or Ctrl-D ends it.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while text := (await asyncio.to_thread(_line)).strip():
        messages.append({"role": "user", "content": text})
        body = {"model": model, "messages": messages, "stream": True}
        async with calling(f"{base_url}/chat/completions", body, key=key) as (answer, events):
            reply = await _shown(answer, events)
        if reply is None:
            messages.pop()  # it may be said again
        else:
            messages.append({"role": "assistant", "content": reply})


def _line() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""


async def _shown(answer: Answer, events: AsyncIterator[str]) -> str | None:
    """Print a reply as it comes and how it was continued; return its text, or None if there was a fault."""
    if answer.status != 200:
        print(_fault(answer.body.decode(errors="replace")), file=sys.stderr)
        return None
    pieces: list[str] = []
    async for data in events:
        if data == "[DONE]":
            break
        chunk = json.loads(data)
        if "error" in chunk:
            print(f"\n{_fault(data)}", file=sys.stderr)
            return None
        for choice in chunk["choices"]:
            pieces.append(choice["delta"].get("content") or "")
            print(pieces[-1], end="", flush=True)
    told = [answer.headers.get(f"x-parley-{name}", "") for name in ("conversation", "reason")]
    print(f"\n  [{' '.join(filter(None, told))}]", flush=True)
    return "".join(pieces)


def _fault(text: str) -> str:
    try:
        return f"! {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return "! no answer that a chat server gives: is this the base URL, with /v1?"


def _port(arguments: argparse.Namespace) -> int:
    return 8080 if arguments.port is None else int(arguments.port)
