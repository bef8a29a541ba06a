"""Ids, access lines and what they never say."""

import json
import logging
import sys

import pytest

from proxy.messages import TurnRecord
from proxy.telemetry import JsonLines, PlainLines, log_turn, turn_fields
from tests.doors import Doors


@pytest.mark.parametrize(("given", "kept"), [("my-id.1:2_3", True), ("a b", False), ("", False), ("x" * 129, False)])
async def test_a_request_id_is_kept_when_it_is_well_formed(doors: Doors, given: str, kept: bool) -> None:
    """A well-formed request id is taken over, any other is replaced by one of ours."""
    answer = await doors.http.get("/healthz", headers={"x-request-id": given})

    assert (answer.headers["x-request-id"] == given) == kept
    assert kept or answer.headers["x-request-id"].startswith("req_")


async def test_every_answer_tells_its_time(doors: Doors) -> None:
    """An answer says how many milliseconds it took."""
    assert int((await doors.ask()).headers["openai-processing-ms"]) >= 0


async def test_a_request_leaves_one_line(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    """A request is logged once with its id, model, outcome and durations, and without anybody's words or key."""
    with caplog.at_level(logging.INFO, "parley"):
        answer = await doors.ask("my secret words")
        await doors.http.get("/healthz")

    (record,) = [record for record in caplog.records if record.name == "parley"]
    line = json.loads(JsonLines().format(record))
    assert line["event"] == "request"
    assert line["request_id"] == answer.headers["x-request-id"]
    assert {name: line[name] for name in ("model", "key", "status", "outcome", "conversation", "stream")} == {
        "model": "shop",
        "key": "all",
        "status": 200,
        "outcome": "ok",
        "conversation": "opened",
        "stream": False,
    }
    assert {"ms", "turn_ms", "first_delta_ms"} <= set(line)
    for format in (JsonLines(), PlainLines()):
        assert "secret" not in format.format(record)
        assert "sk-all" not in format.format(record)


def test_an_exception_is_logged_by_its_place() -> None:
    """A logged exception shows its class and where it was raised, never what it said."""
    try:
        raise ValueError("somebody's words")
    except ValueError:
        record = logging.LogRecord("parley", logging.ERROR, "", 0, "it failed", None, sys.exc_info())

    line = json.loads(JsonLines().format(record))

    assert line["exception"] == "ValueError"
    assert line["at"].startswith("test_telemetry.py:")
    assert "words" not in json.dumps(line) + PlainLines().format(record)


def test_only_unheard_turns_have_a_line_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    """A turn whose end was heard is told by its request's line, any other by its own."""
    with caplog.at_level(logging.INFO, "parley"):
        log_turn(TurnRecord("heard", outcome="ok"))
        log_turn(TurnRecord("unheard", outcome="ok", heard=False))

    assert [vars(record)["parley"]["model"] for record in caplog.records] == ["unheard"]


def test_a_plain_line_is_one_line() -> None:
    """Whatever a client sends cannot make a second line or move the terminal's cursor."""
    record = logging.LogRecord("parley", logging.INFO, "", 0, "request", None, None)
    record.parley = {"path": "/v1/x\ninfo request FORGED", "reply": "\x1b[2J"}

    line = PlainLines().format(record)

    assert line.isprintable()


def test_durations_are_milliseconds() -> None:
    """A record's times become whole milliseconds since its start."""
    fields = turn_fields(TurnRecord("m", started=1.0, first_delta=1.25, ended=2.0))

    assert (fields["first_delta_ms"], fields["turn_ms"]) == (250, 1000)
