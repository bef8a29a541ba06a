"""What only openai-node has: a runner with events, and its own ways of leaving."""

from collections.abc import Callable

import pytest

from tests.suites.sdks import MODELS, Visit

pytestmark = pytest.mark.timeout(300)  # whoever comes first installs

Visits = Callable[[str], Visit]

majors = pytest.mark.parametrize("name", ["openai-node-6", "openai-node-7"])


@majors
@pytest.mark.parametrize("model", MODELS)
def test_runner_tells_events(visits: Visits, name: str, model: str) -> None:
    """The `stream()` helper fires its events for every chunk, piece and message, and its promises agree."""
    for told in visits(name).line(f"talk {model} helper")["turns"]:
        events = told["events"]
        assert events["same"], "finalMessage, finalContent and finalChatCompletion hold one text"
        assert events["content"] == len(told["pieces"])
        assert events["chunk"] == events["content"] + 3, "the role, the finish and the usage have chunks of their own"
        assert (events["message"], events["error"], events["end"]) == (1, 0, 1)


@majors
@pytest.mark.parametrize("model", MODELS)
def test_final_message_can_be_sent_back(visits: Visits, name: str, model: str) -> None:
    """The runner's message, with the nulls that it adds, continues the conversation."""
    turns = visits(name).line(f"talk {model} helper")["turns"]
    assert {"role", "content", "refusal", "parsed"} == set(turns[0]["message"])
    assert [turn["headers"].get("x-parley-reason") for turn in turns] == [None, "exact", "exact"]


@majors
@pytest.mark.parametrize("fault", ["broken", "truncated", "told-in-stream", "broken-text"])
def test_runner_tells_a_break(visits: Visits, name: str, fault: str) -> None:
    """A stream that breaks off is the runner's one error, after which there is no message."""
    events = visits(name).line(f"fault {fault} helper")["fault"]["events"]
    assert events["content"] > 5
    assert (events["message"], events["error"], events["end"]) == (0, 1, 1)


@majors
@pytest.mark.parametrize(
    ("manner", "kind"),
    [
        ("break", None),
        ("controller", None),
        ("signal", None),
        ("helper", "APIUserAbortError"),
        ("early", "APIUserAbortError"),
        ("timeout", "APIConnectionTimeoutError"),
    ],
)
def test_leaving_is_told_as_such(visits: Visits, name: str, manner: str, kind: str | None) -> None:
    """A stream that its reader has aborted ends, a runner or a plain call that was aborted raises."""
    fault = visits(name).line(f"leave {manner}")["fault"]
    assert (fault and fault["class"]) == kind
