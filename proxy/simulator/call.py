"""One request at a vendor's door: the call, the route it takes, and what its body must look like, field by field."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import orjson
from starlette.datastructures import URL

from proxy.simulator.answer import JSON, Answer, Refusal
from proxy.simulator.faults import Fault


@dataclass
class Call:
    """One request and what became of it. `operation`: the route's name, empty if there is none."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    url: URL = field(repr=False)
    operation: str = ""
    status: int = 0
    hung_up: bool = False
    tail: str = field(default="", repr=False)
    data: bytes = field(default=b"", repr=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    fault: Fault = field(default_factory=Fault, repr=False)


@dataclass(frozen=True)
class Field:
    """One field: `kind` is str, int (no bool, no float), bool, dict or list; `of` types a list's items."""

    kind: type[Any]
    required: bool = False
    null: bool = False
    blank: bool = True
    limit: float = inf
    of: type | None = None

    def wrong(self, value: Any) -> str:
        """What this value must be and is not; empty if it will do."""
        if value is None and self.null:
            return ""
        # isinstance would take a bool for an int.
        if type(value) is not self.kind or (self.of and {type(item) for item in value} - {self.of}):
            return f"of type {self.kind.__name__}" + (f" of {self.of.__name__}" if self.of else "")
        if value == "" and not self.blank:
            return "given and not empty"
        return f"at most {self.limit} long" if self.limit < inf and len(value) > self.limit else ""


Form = Mapping[str, Field]


@dataclass(frozen=True)
class Route:
    """One documented call. `path` is a pattern, its group the call's `tail`; `form` None: the body is not JSON."""

    method: str
    path: str
    operation: str
    handler: Callable[[Call], Answer]
    form: Form | None = None
    keyed: bool = True


def read(body: bytes, kind: str, form: Form) -> dict[str, Any]:
    """The fields of a JSON body, none if there is no body."""
    try:
        fields = orjson.loads(body or b"{}")
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or (body and kind.partition(";")[0].strip().lower() != JSON):
        raise Refusal(400, "The body must be a JSON object, and its content type say so.")
    check(fields, form)
    return fields


def check(fields: Mapping[str, Any], form: Form, within: str = "") -> None:
    """Refuses unknown, missing and ill-formed fields."""
    for name in fields.keys() - form.keys():
        raise Refusal(400, f"Unknown field {within}{name}.", within + name)
    for name, wanted in form.items():
        wrong = wanted.wrong(fields[name]) if name in fields else "given" if wanted.required else ""
        if wrong:
            raise Refusal(400, f"The field {within}{name} must be {wrong}.", within + name)
