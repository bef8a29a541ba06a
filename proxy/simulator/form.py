"""What a request body must look like, field by field; anything else is refused with the field's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.simulator.answer import Refusal


@dataclass(frozen=True)
class Field:
    """One field: `kind` is str, int (no bool, no float), bool, dict or list; `of` types a list's items."""

    kind: type
    required: bool = False
    null: bool = False
    blank: bool = True
    limit: int | None = None
    of: type | None = None


Form = Mapping[str, Field]


def read(body: bytes, kind: str, form: Form) -> dict[str, Any]:
    """The fields of a JSON body. Refused: 415 another content type, 400 no JSON object or a field against the form."""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "The content type must be application/json.")
    try:
        fields = orjson.loads(body)
    except ValueError:
        raise Refusal(400, "The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "The body must be a JSON object.")
    check(fields, form)
    return fields


def check(fields: Mapping[str, Any], form: Form, within: str = "") -> None:
    """Refuses (400) unknown, missing and ill-typed fields."""
    for name in fields:
        if name not in form:
            raise Refusal(400, f"Unknown field {within}{name}.", within + name)
    for name, field in form.items():
        if name in fields:
            _check(within + name, fields[name], field)
        elif field.required:
            raise Refusal(400, f"The field {within}{name} is required.", within + name)


def _check(name: str, value: Any, field: Field) -> None:
    if value is None and field.null:
        return
    given: type = type(value)
    if given is not field.kind:
        raise Refusal(400, f"The field {name} must be of type {field.kind.__name__}.", name)
    if field.of and any(type(item) is not field.of for item in value):
        raise Refusal(400, f"The field {name} must hold only {field.of.__name__}.", name)
    if value == "" and not field.blank:
        raise Refusal(400, f"The field {name} is required and may not be empty.", name)
    if field.limit is not None and len(value) > field.limit:
        raise Refusal(400, f"The limit of {name} is {field.limit}.", name)
