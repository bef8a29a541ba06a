"""All vendors under one roof."""

import threading

import httpx2
import pytest

from proxy.simulator import Simulator

from .callers import EVERYBODY, Speak


async def test_all_vendors(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Every vendor answers under its own prefix, and a correct caller violates nothing."""
    for speak in EVERYBODY:
        reply = await speak(client, "say We are all here")
        assert "We are all here" in reply.text
    assert [vendor.violations for vendor in simulator.vendors.values()] == [[]] * 5
    assert [len(vendor.conversations) for vendor in simulator.vendors.values()] == [1] * 5


def test_pace() -> None:
    """Latency and gap are those of every vendor."""
    simulator = Simulator(latency=1, gap=2)
    assert {(vendor.latency, vendor.gap) for vendor in simulator.vendors.values()} == {(1, 2)}


async def test_elsewhere(client: httpx2.AsyncClient) -> None:
    """Outside the prefixes there is nothing."""
    assert (await client.post("/chat", json={})).status_code == 404


@pytest.mark.parametrize("speak", EVERYBODY)
async def test_released_from_another_thread(wire: httpx2.AsyncClient, simulator: Simulator, speak: Speak) -> None:
    """A waiting reply can be released by a test that runs in another thread."""
    for vendor in simulator.vendors.values():
        vendor.fail("slow")

    def release() -> None:
        for vendor in simulator.vendors.values():
            vendor.release()

    threading.Timer(0.02, release).start()
    assert (await speak(wire)).status_code in (200, 201)
