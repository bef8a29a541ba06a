"""Sockets and servers, as far as they can be seen in process; signals and draining are in end_to_end/."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvloop
from starlette.routing import Router

from proxy.server import AddressTaken, Backstage, Server, Worker, address, listen, raise_file_limit
from proxy.workers import DRAIN, HANG_UP, READY


def test_a_socket_knows_its_address() -> None:
    """A listening socket tells its URL, with the port it was given."""
    with listen("127.0.0.1", 0) as listener:
        assert address(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address_is_bracketed() -> None:
    """A URL of an IPv6 address has brackets."""
    with listen("::1", 0) as listener:
        assert address(listener).startswith("http://[::1]:")


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("192.0.2.1", 0), ("no such host", 0)])
def test_an_address_that_cannot_be_had(host: str, port: int | None) -> None:
    """A taken port, another machine's address and a name of nobody are told as such, with what to try."""
    with listen("127.0.0.1", 0) as taken, pytest.raises(AddressTaken, match="try another --port"):
        listen(host, taken.getsockname()[1] if port is None else port)


def test_a_process_may_open_what_its_system_allows() -> None:
    """The soft limit of open files goes up to the hard one."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_start_that_fails_is_not_announced() -> None:
    """An application that does not come up is not said to listen."""

    @asynccontextmanager
    async def failing(app: object) -> AsyncIterator[None]:
        if app is None:
            raise RuntimeError("no")
        yield

    app: Any = Router(lifespan=failing)
    app.relay = None
    announced: list[str] = []
    with listen("127.0.0.1", 0) as listener, pytest.raises(SystemExit) as ended:
        Server(app, grace=0, announce=lambda: announced.append("listening")).run([listener])

    assert ended.value.code
    assert announced == []


class Replies:
    """As much of a relay as a server knows."""

    def __init__(self) -> None:
        self.draining = False
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        self.stopped.set()

    async def drain(self, grace: float) -> None:
        self.draining = True
        async with asyncio.timeout(grace):
            await self.stopped.wait()


def test_a_crowd_is_let_in_at_once() -> None:
    """Many that connect at the same moment are let in within a few rounds of the loop, and not one in each."""

    async def rounds() -> int:
        app: Any = Router()
        app.relay = replies = Replies()
        announced = asyncio.Event()
        with listen("127.0.0.1", 0) as listener, ExitStack() as crowd:
            server = Server(app, grace=5, announce=announced.set)
            serving = asyncio.create_task(server.serve([listener]))
            await announced.wait()
            for _ in range(64):
                crowd.enter_context(socket.create_connection(listener.getsockname()))
            taken = 0
            while len(server.server_state.connections) < 64 and taken < 100:
                await asyncio.sleep(0)
                taken += 1
            server.should_exit = True
            replies.stop()
            await serving
        return taken

    assert uvloop.run(rounds()) <= 16


@asynccontextmanager
async def working() -> AsyncIterator[tuple[Worker, Replies, socket.socket]]:
    """A worker that serves, its replies, and its parent's end of the line."""
    app: Any = Router()
    app.relay = replies = Replies()
    line, far_end = socket.socketpair()
    with line, far_end, listen("127.0.0.1", 0) as listener:
        worker = Worker(app, grace=5, line=far_end)
        serving = asyncio.create_task(worker.serve([listener]))
        assert await asyncio.to_thread(line.recv, 1) == READY
        yield worker, replies, line
        await serving


async def test_a_worker_obeys_its_parent() -> None:
    """A worker drains and hangs up when it is told to, even if both words come at once."""
    async with asyncio.timeout(3), working() as (worker, replies, line):
        line.send(DRAIN + HANG_UP)
        await replies.stopped.wait()
        assert replies.draining
        assert worker.should_exit


async def test_a_worker_leaves_ctrl_c_to_its_parent() -> None:
    """What a terminal sends to all is not counted beside what the parent says; SIGTERM is for whom it reaches."""
    async with asyncio.timeout(3), working() as (worker, replies, line):
        for _ in range(2):
            worker.handle_exit(signal.SIGINT, None)
        await asyncio.sleep(0.1)
        assert not worker.should_exit
        worker.handle_exit(signal.SIGTERM, None)
        assert replies.draining
        line.send(DRAIN)
        await asyncio.sleep(0.1)
        worker.handle_exit(signal.SIGINT, None)
        await asyncio.sleep(0.1)
        assert not replies.stopped.is_set()
        line.send(HANG_UP)
        await replies.stopped.wait()


async def test_a_worker_drains_when_its_parent_is_dead() -> None:
    """The end of the line is the end of a worker: it drains."""
    async with asyncio.timeout(3), working() as (worker, replies, line):
        line.close()
        await asyncio.sleep(0.2)
        assert worker.should_exit
        assert replies.draining
        assert not replies.stopped.is_set()
        replies.stop()


async def test_a_server_beside_another_ends_with_its_context() -> None:
    """An application is served while the context lasts, and no longer."""
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    async with httpx2.AsyncClient() as http:
        async with Backstage(Router()).beside([listener]):
            assert (await http.get(url)).status_code == 404
        with pytest.raises(httpx2.ConnectError):
            await http.get(url)
