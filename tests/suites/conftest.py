"""The clients of this folder, each run once for all tests."""

import os
from collections.abc import Callable
from functools import cache

import pytest

from tests.suites.sdks import Visit, visited


@pytest.fixture(scope="session")
def visits(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Visit]:
    """What a client told, by its name. Skips where it cannot be installed, but fails in CI."""
    base = tmp_path_factory.getbasetemp()  # of one worker; what is above it is of all
    notes = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    kept = getattr(pytestconfig, "cache", None)
    installs = kept.mkdir("suites") if kept else notes

    @cache
    def visits(name: str) -> Visit:
        found = visited(name, installs, notes)
        if isinstance(found, str):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(found)
        return found

    return visits
