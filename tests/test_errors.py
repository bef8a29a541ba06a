"""The tree of errors."""

import pytest

from proxy import errors
from proxy.errors import ProxyError, VendorError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ProxyError)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawing_shows_every_error(kind: type[ProxyError]) -> None:
    """Each class stands in the tree on top of the file."""
    assert kind.__name__ in (errors.__doc__ or "")


def test_delivery_is_a_matter_of_kind_unless_told() -> None:
    """An error knows whether the turn may have arrived, and an adapter that knows better says so."""
    assert errors.VendorFailed("x").delivered
    assert not errors.VendorRateLimited("x").delivered
    assert not errors.VendorFailed("x", delivered=False).delivered
    assert VendorError("x", delivered=True).delivered
    assert not errors.InvalidRequest("x").delivered


def test_a_code_may_be_narrower_than_its_class() -> None:
    """An error's code is its class's unless it is given."""
    assert errors.RateLimited("x").code == "rate_limit_exceeded"
    assert errors.RateLimited("x", code="bot_busy").code == "bot_busy"
    assert errors.RateLimited.code == "rate_limit_exceeded"
