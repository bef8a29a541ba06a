"""What the proxy serves, as an OpenAPI document: the paths are ours, the schemas ours or OpenAI's own."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

OURS = Path(__file__).with_name("openapi.json")
THEIRS = Path(__file__).parents[3] / "shared" / "openai-openapi" / "openai-chat-schemas.json"

SCHEMAS = ("ours", "openai")
"""Ours are strict: no key more, none less. OpenAI's lie beside the repository, where they lie at all."""


@cache
def document(schemas: str) -> dict[str, Any]:
    """The document. A test that asks for OpenAI's schemas is skipped where they are not, in CI as well."""
    read: dict[str, Any] = json.loads(OURS.read_text(encoding="utf-8"))
    if schemas == "openai":
        if not THEIRS.is_file():
            pytest.skip(f"OpenAI's own schemas are not part of this repository, and not at {THEIRS}")
        read["components"]["schemas"] |= json.loads(THEIRS.read_text(encoding="utf-8"))["schemas"]
    return read


@cache
def validator(schemas: str, name: str) -> Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{name}", "components": document(schemas)["components"]}
    return Draft202012Validator(root)


def faults(schemas: str) -> Callable[[str, Any], list[str]]:
    """What is wrong with a value, by the schema of this name."""

    def faults(name: str, value: Any) -> list[str]:
        found = validator(schemas, name).iter_errors(value)
        return [f"{'.'.join(map(str, fault.instance_path))}: {fault.message}" for fault in found]

    return faults
