"""The commands: `parley demo`, `parley serve`, `parley simulate`."""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from proxy import __version__, vendors
from proxy.app import create_app
from proxy.config import Config, ConfigError, ModelOptions, check_exposure, load, read
from proxy.simulator import Simulator
from proxy.telemetry import start_logging

LOOPBACK = "127.0.0.1"
KEEP_ALIVE = 75  # seconds an idle connection stays open: longer than clients and load balancers keep theirs
DEMO_LATENCY = 0.4  # seconds before a simulated bot speaks
DEMO_GAP = 0.03  # seconds between the pieces of its reply


class Server(uvicorn.Server):
    """uvicorn's server with a patient end: at a signal the port stays open until the running replies are parked."""

    def __init__(self, app: Any, listener: socket.socket, *, grace: float, greeting: str = "") -> None:
        super().__init__(_uvicorn_config(app))
        self._relay = app.state.relay
        self._listener = listener
        self._grace = grace
        self._greeting = greeting

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests at once; a second Ctrl-C does not wait."""
        self._relay.draining = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Start serving and say where, in the one line that a script can wait for."""
        await super().startup(sockets)
        print(f"parley listening on {address(self._listener)}", flush=True)
        if self._greeting:
            print(self._greeting, file=sys.stderr, flush=True)

    async def shutdown(self, sockets: Any = None) -> None:
        """Wait for the running replies, then close."""
        if not self.force_exit:
            await self._relay.drain(self._grace)
        await super().shutdown(sockets)


class Backstage(uvicorn.Server):
    """A server beside the main one, which has the signals."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # both are context managers
        """Leave them alone."""
        return nullcontext()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. An address that cannot be had is the user's to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as fault:
        raise ConfigError(f"{host}:{port}", [f"cannot listen there ({fault.strerror}): try another --port"]) from None


def address(listener: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=2,
    )


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
    """The `parley` command. Exits 0 when all went well, 1 for a user's fault, 2 for a wrong call."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except ConfigError as fault:
        sys.exit(str(fault))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parley", description="Your hosted chatbots, spoken to in OpenAI's tongue. Try `parley demo` first."
    )
    parser.add_argument("--version", action="version", version=f"parley {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = _command(commands, "demo", _demo, "a proxy with simulated bots: no account, no configuration, no network")
    _address(demo)
    serve = _command(commands, "serve", _serve, "the proxy")
    serve.add_argument("--config", type=Path, metavar="FILE", help="default: $PARLEY_CONFIG, then ./config.yaml")
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    _address(serve)
    simulate = _command(commands, "simulate", _simulate, "only the simulated vendors")
    simulate.add_argument("--latency", type=float, default=0.4, metavar="S", help="seconds before a bot speaks")
    _address(simulate)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"Runs {summary}.")
    parser.set_defaults(command=run)
    return parser


def _address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="P", help="0 picks a free one (default: 8080)")


def _serve(arguments: argparse.Namespace) -> None:
    path = arguments.config or Path(os.environ.get("PARLEY_CONFIG") or "config.yaml")
    config = read(path, vendors=Vendors(), environ=os.environ)
    host = arguments.host or config.server.host
    check_exposure(config, host)
    if arguments.workers != 1:
        raise ConfigError("--workers", [f"{arguments.workers} processes cannot share memory://; use one worker"])
    _start_logging(plain=config.server.log.format == "text")
    with listen(host, config.server.port if arguments.port is None else arguments.port) as listener:
        Server(create_app(config), listener, grace=config.server.shutdown_grace).run([listener])


def _simulate(arguments: argparse.Namespace) -> None:
    _start_logging(plain=True)
    with listen(arguments.host or LOOPBACK, _port(arguments)) as listener:
        print(f"parley simulates vendors on {address(listener)}", flush=True)
        uvicorn.Server(_uvicorn_config(Simulator(latency=arguments.latency, gap=DEMO_GAP).app)).run([listener])


def _demo(arguments: argparse.Namespace) -> None:
    host = arguments.host or LOOPBACK
    check_exposure(Config(), host)
    _start_logging(plain=True)
    with listen(host, _port(arguments)) as front, listen(LOOPBACK, 0) as back:
        asyncio.run(_demonstrate(front, back))


async def _demonstrate(front: socket.socket, back: socket.socket) -> None:
    simulator = Simulator(latency=DEMO_LATENCY, gap=DEMO_GAP)
    backstage = Backstage(_uvicorn_config(simulator.app))
    simulating = asyncio.create_task(backstage.serve([back]))
    config = load(_demo_config(address(back), simulator), vendors=Vendors(), environ={})
    greeting = _GREETING.format(url=address(front), models=", ".join(config.models))
    try:
        await Server(create_app(config), front, grace=config.server.shutdown_grace, greeting=greeting).serve([front])
    finally:
        backstage.should_exit = True
        await simulating


def _demo_config(url: str, bots: Simulator) -> str:
    """A configuration file, in JSON, for the simulated bots; its models have the names of the README."""
    models = {
        "newoaks-demo": {
            "vendor": "newoaks",
            "base_url": f"{url}/newoaks",
            "secret_key": bots.newoaks.secret_key,
            "chatbot_id": bots.newoaks.chatbot_id,
        },
        "quickchat-demo": {
            "vendor": "quickchat",
            "base_url": f"{url}/quickchat",
            "token": bots.quickchat.token,
            "scenario_id": bots.quickchat.scenario_id,
        },
    }
    return json.dumps({"models": models})


_GREETING = """
Simulated bots: {models}. They remember their conversation; nothing leaves this machine. Ctrl-C ends it. Try:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "newoaks-demo", "messages": [{{"role": "user", "content": "Hello, my name is Ada."}}]}}' -i

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


def _port(arguments: argparse.Namespace) -> int:
    return 8080 if arguments.port is None else int(arguments.port)


def _start_logging(*, plain: bool) -> None:
    """Our log, and the server's own complaints in the same form."""
    start_logging(plain=plain)
    logging.getLogger("uvicorn").handlers[:] = logging.getLogger("parley").handlers
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").propagate = False
