"""Sockets and servers, as far as they can be seen in process; signals and draining are in end_to_end/."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from starlette.applications import Starlette

from proxy.server import AddressTaken, Backstage, Server, address, listen


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


def test_a_start_that_fails_is_not_announced() -> None:
    """An application that does not come up is not said to listen."""

    @asynccontextmanager
    async def failing(app: Starlette) -> AsyncIterator[None]:
        if app.routes == []:
            raise RuntimeError("no")
        yield

    app = Starlette(lifespan=failing)
    app.state.relay = None
    announced: list[str] = []
    with listen("127.0.0.1", 0) as listener, pytest.raises(SystemExit) as ended:
        Server(app, grace=0, announce=lambda: announced.append("listening")).run([listener])

    assert ended.value.code
    assert announced == []


async def test_a_server_beside_another_ends_with_its_context() -> None:
    """An application is served while the context lasts, and no longer."""
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    async with httpx2.AsyncClient() as http:
        async with Backstage(Starlette()).beside([listener]):
            assert (await http.get(url)).status_code == 404
        with pytest.raises(httpx2.ConnectError):
            await http.get(url)
