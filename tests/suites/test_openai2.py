"""What only openai-python has, in the major before ours: raw responses, strict types, a cancelled task."""

from collections.abc import Callable

import pytest

from tests.suites.sdks import MODELS, Visit

pytestmark = pytest.mark.timeout(300)  # whoever comes first installs

Visits = Callable[[str], Visit]

NAME = "openai-python-2"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_raw_responses_have_our_headers(visits: Visits, model: str, way: str) -> None:
    """`with_raw_response` shows where the usage comes from and which request it was."""
    for told in visits(NAME).line(f"talk {model} {way}")["turns"]:
        assert told["headers"]["x-parley-usage"] == ("vendor" if model == "newoaks" else "estimated")
        assert told["request"] == told["headers"]["x-request-id"]
        assert told["headers"]["content-type"] == "application/json"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", ["sync-helper", "async-helper"])
def test_stream_helper_tells_the_end(visits: Visits, model: str, way: str) -> None:
    """The `.stream()` helper closes a reply with one event that holds all of it."""
    for told in visits(NAME).line(f"talk {model} {way}")["turns"]:
        assert told["done"] == [told["text"]]


@pytest.mark.parametrize(
    ("manner", "kind"),
    [("close", None), ("helper", None), ("cancel", None), ("early", "TimeoutError"), ("timeout", "APITimeoutError")],
)
def test_leaving_is_told_as_such(visits: Visits, manner: str, kind: str | None) -> None:
    """Only a client that ran out of time raises."""
    fault = visits(NAME).line(f"leave {manner}")["fault"]
    assert (fault and fault["class"]) == kind
