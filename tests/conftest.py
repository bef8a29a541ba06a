"""What many tests need: servers on real sockets, in threads with loops of their own."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

from proxy.app import create_app
from proxy.cli import Vendors
from proxy.config import Config, load
from proxy.server import Backstage, address, listen
from proxy.simulator import Simulator
from tests.doors import Doors, open_doors

settings.register_profile("parley", deadline=None)  # how long an example takes says more of the machine than of us
settings.load_profile("parley")


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An ASGI application on a free loopback port, in a thread of its own; yields its URL."""
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    server = Backstage(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(10)


def demo_models(url: str, simulator: Simulator) -> dict[str, dict[str, Any]]:
    """A model for every simulated vendor, as a configuration would have it."""
    return {
        "askhandle": {
            "vendor": "askhandle",
            "base_url": f"{url}/askhandle/api/v1",
            "token": simulator.askhandle.token,
            "poll_interval": 0.05,
            "poll_timeout": 0.15,
        },
        "misterturing": {
            "vendor": "misterturing",
            "base_url": f"{url}/misterturing/v4.0",
            "api_key": simulator.misterturing.api_key,
            "assistant_id": simulator.misterturing.assistant_id,
        },
        "newoaks": {
            "vendor": "newoaks",
            "base_url": f"{url}/newoaks",
            "secret_key": simulator.newoaks.secret_key,
            "chatbot_id": simulator.newoaks.chatbot_id,
        },
        "quickchat": {
            "vendor": "quickchat",
            "base_url": f"{url}/quickchat",
            "token": simulator.quickchat.token,
            "scenario_id": simulator.quickchat.scenario_id,
        },
        "quickchat-legacy": {
            "vendor": "quickchat",
            "base_url": f"{url}/quickchat-legacy",
            "api_key": simulator.quickchat_legacy.api_key,
            "scenario_id": simulator.quickchat_legacy.scenario_id,
        },
    }


@dataclass(frozen=True)
class Stage:
    """A proxy on a real socket before simulated vendors on another; `url` ends without /v1."""

    url: str
    simulator: Simulator
    simulator_url: str
    config: Config


@contextmanager
def stage(*, models: dict[str, dict[str, Any]] | None = None, **sections: Any) -> Iterator[Stage]:
    """A whole stage. `models` adds keys to the entries of `demo_models`, `sections` are others of the configuration."""
    simulator = Simulator()
    with served(simulator.app) as simulator_url:
        entries = demo_models(simulator_url, simulator)
        for entry in entries.values():
            entry["breaker"] = {"failures": 0}  # tests make vendors fail by the dozen
        for name, more in (models or {}).items():
            entries[name] = {**entries.get(name, {}), **more}
        config = load(json.dumps({"models": entries, **sections}), vendors=Vendors(), environ={})
        with served(create_app(config)) as url:
            yield Stage(url, simulator, simulator_url, config)


@pytest.fixture(scope="session")
def shared_stage() -> Iterator[Stage]:
    """One stage for all tests that leave it as it was."""
    with stage() as built:
        yield built


@pytest.fixture
def on_stage(shared_stage: Stage) -> Iterator[Stage]:
    """The shared stage with fresh vendors, which must not have seen anything that their documents forbid."""
    vendors = shared_stage.simulator.vendors.values()
    for vendor in vendors:
        vendor.reset()
    yield shared_stage
    assert [violation for vendor in vendors for violation in vendor.violations] == []


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    """The doors before a scripted bot, in process."""
    async with open_doors() as opened:
        yield opened
