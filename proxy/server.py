"""Serving: sockets and uvicorn, with a patient end. Knows of the application only that it has a relay to wait for."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn

from proxy.telemetry import log
from proxy.workers import HANG_UP, READY

LOOPBACK = "127.0.0.1"
KEEP_ALIVE = 75  # seconds an idle connection stays open: longer than clients and load balancers keep theirs
TAKEN_AT_ONCE = 8  # new connections: libuv takes one of a listening socket in each round of the loop, so it has copies


class AddressTaken(Exception):
    """There is no listening there."""


class Server(uvicorn.Server):
    """uvicorn's server with a patient end: at a signal the port stays open until the running replies are parked."""

    def __init__(self, app: Any, *, grace: float, announce: Callable[[], None]) -> None:
        super().__init__(uvicorn_config(app))
        self._relay = app.relay
        self._grace = grace
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these listening sockets until told to end; newcomers are let in also where many are being served."""
        with ExitStack() as stack:
            copies = [stack.enter_context(listener.dup()) for listener in (sockets or []) * (TAKEN_AT_ONCE - 1)]
            await super().serve([*(sockets or ()), *copies])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests at once; a second Ctrl-C does not wait."""
        self._relay.draining = True
        if self.should_exit and sig == signal.SIGINT and self._loop is not None:
            self._loop.call_soon_threadsafe(self._relay.stop)
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Start serving, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again and again while turns run
        gc.set_threshold(10_000)  # more objects than before: Python's 700 are made by a few turns at once
        if not self.should_exit:
            self._announce()

    async def shutdown(self, sockets: Any = None) -> None:
        """Wait for the running replies, then close."""
        await self._relay.drain(self._grace)
        await super().shutdown(sockets)


class Worker(Server):
    """One of several servers on one socket: its parent says over their line when to end, and hears when it serves."""

    def __init__(self, app: Any, *, grace: float, line: socket.socket) -> None:
        super().__init__(app, grace=grace, announce=self._report)
        self._line = line

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A terminal's Ctrl-C reaches the whole family; what it means is for the parent to say."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: Any = None) -> None:
        """Listen to the parent, then to the world."""
        self._line.setblocking(False)
        asyncio.get_running_loop().add_reader(self._line, self._obey)
        await super().startup(sockets)

    async def shutdown(self, sockets: Any = None) -> None:
        """As any server, and leave a line in the log."""
        await super().shutdown(sockets)
        told = {"pid": os.getpid(), "requests": self.server_state.total_requests}
        log.info("a worker ended", extra={"parley": told})

    def _obey(self) -> None:
        try:
            told = self._line.recv(64)
        except OSError:
            told = b""
        if not told:  # the parent is dead: without it, nobody would ever end this process
            asyncio.get_running_loop().remove_reader(self._line)
        super().handle_exit(signal.SIGTERM, None)
        if HANG_UP in told:
            super().handle_exit(signal.SIGINT, None)

    def _report(self) -> None:
        with suppress(OSError):  # a dead parent is noticed by `_obey`
            self._line.send(READY)


class Backstage(uvicorn.Server):
    """Any application, alone or beside the main server."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn_config(app))

    @asynccontextmanager
    async def beside(self, sockets: list[socket.socket]) -> AsyncIterator[None]:
        """Serve while the context lasts, and leave the signals to the main server."""
        serving = asyncio.create_task(self._serve(sockets))
        try:
            yield
        finally:
            self.should_exit = True
            await serving


def raise_file_limit() -> None:
    """Let this process open as many files as it may: each stream takes two, and the usual limit is for 500 of them."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not on every system

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. An address that cannot be had is the user's to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as fault:
        reason = (getattr(fault, "strerror", "") or str(fault)).partition(" (")[0]
        raise AddressTaken(f"cannot listen on {host}:{port} ({reason}): try another --port") from None
    # Inherited by what is accepted. Event loops see to it only for sockets that were made with the protocol's number.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address(listener: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_config(app: Any) -> uvicorn.Config:
    """How any application is served here: quietly, and without a lid on what the application bounds itself."""
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
