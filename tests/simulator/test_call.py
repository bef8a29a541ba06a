"""The strict reading of request bodies."""

from typing import Any

import orjson
import pytest

from proxy.simulator.answer import Refusal
from proxy.simulator.call import Field, read

FORM = {
    "number": Field(int, required=True),
    "text": Field(str, blank=False, limit=5),
    "flag": Field(bool, null=True),
    "ids": Field(list, of=int),
    "more": Field(dict, limit=2),
}


def test_reads_what_is_in_order() -> None:
    """A body in order comes back as it was."""
    fields = {"number": 1, "text": "hello", "flag": None, "ids": [1, 2], "more": {"a": 1, "b": 2}}
    assert read(orjson.dumps(fields), "Application/JSON; charset=utf-8", FORM) == fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "number"),
        ({"number": True}, "number"),
        ({"number": 1.0}, "number"),
        ({"number": "1"}, "number"),
        ({"number": None}, "number"),
        ({"number": 1, "other": 1}, "other"),
        ({"number": 1, "text": ""}, "text"),
        ({"number": 1, "text": "longer"}, "text"),
        ({"number": 1, "flag": 0}, "flag"),
        ({"number": 1, "ids": [1, True]}, "ids"),
        ({"number": 1, "more": {"a": 1, "b": 2, "c": 3}}, "more"),
    ],
)
def test_names_the_field(fields: dict[str, Any], named: str) -> None:
    """An unknown, missing, ill-typed or too long field is refused by name."""
    with pytest.raises(Refusal) as refused:
        read(orjson.dumps(fields), "application/json", FORM)
    assert (refused.value.status, refused.value.field) == (400, named)
    assert named in refused.value.message


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"number":1}', "text/plain"),
        (b'{"number":1}', ""),
        (b'{"number":1', "application/json"),
        (b"[1]", "application/json"),
        (b'{"number":1,}', "application/json"),
        (b"", "application/json"),
    ],
)
def test_wants_a_json_object(body: bytes, kind: str) -> None:
    """Another content type, broken JSON (the legacy samples' trailing comma), no object or nothing is refused."""
    with pytest.raises(Refusal):
        read(body, kind, FORM)
