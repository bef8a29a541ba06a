"""What tests of whole processes share."""

from collections.abc import Iterator

import pytest

from proxy.simulator import Simulator
from tests.conftest import served


@pytest.fixture
def backstage() -> Iterator[tuple[Simulator, str]]:
    """Simulated vendors, which must not see anything that their documents forbid, and their address."""
    simulator = Simulator()
    with served(simulator.app) as url:
        yield simulator, url
    assert [violation for vendor in simulator.vendors.values() for violation in vendor.violations] == []
