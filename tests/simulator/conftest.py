"""A simulator, in process or behind a real socket, and callers with the credentials each vendor wants."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
import uvicorn

from proxy.simulator import Simulator

from .callers import Soon


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(simulator.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://simulator", trust_env=False) as client:
        yield client


@pytest.fixture
async def wire(simulator: Simulator) -> AsyncIterator[httpx2.AsyncClient]:
    """A client over a real socket: timing, hang-ups and broken connections show only there."""
    config = uvicorn.Config(simulator.app, port=0, log_level="critical", lifespan="off", ws="none")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Without its main loop, which only ever looks at the clock ten times a second.
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=5, verify=False, trust_env=False
    ) as client:
        yield client
    server.force_exit = True
    await server.shutdown()


@pytest.fixture
def soon() -> Soon:
    """Waits until something holds, for a second at most."""

    async def wait(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(1):
            while not holds():  # noqa: ASYNC110 (the thing waited for happens in the server)
                await asyncio.sleep(0.005)

    return wait
