"""What the tests of the stores share."""

from collections.abc import Iterator

import pytest

from tests.stores.servers import RedisServer, redis_server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all tests that leave it running."""
    with redis_server() as server:
        yield server
