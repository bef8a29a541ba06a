"""What the tests of the stores share."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.stores.servers import RedisServer, redis_server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all tests that leave it running."""
    with redis_server() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """Keys of a test's own."""
    return f"test-{uuid4().hex}:"
