"""Requests that schemathesis makes up from the OpenAPI document, as it says and as it does not, before a live proxy."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import APIOperation, Case, Config, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from proxy.app import create_app
from proxy.config import Config as Empty
from tests.conftest import Stage, stage
from tests.suites.document import SCHEMAS, document, faults

CHECKS = [
    not_a_server_error,  # and therefore none at all: the vendors are well
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = {
    ("POST", "/v1/chat/completions"): 25,
    ("POST", "/v1/completions"): 10,
    ("GET", "/v1/models"): 1,
    ("GET", "/v1/models/{model}"): 10,
}
SEED = 2026
KEY = "key-for-all"


def served() -> set[tuple[str, str]]:
    """What a proxy has under /v1, as the document would write it."""
    routes = [route for route in create_app(Empty()).routes if isinstance(route, Route)]
    return {
        (method, route.path.replace("{id:path}", "{model}"))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
        if route.path.startswith("/v1/")
    }


@pytest.fixture(scope="module")
def live() -> Iterator[Stage]:
    """A proxy with a key, before vendors at full speed."""
    with stage(keys=[{"name": "all", "key": KEY}], models={"newoaks": {"aliases": ["team/gpt"]}}) as built:
        yield built


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A client that keeps its connection and knows of no proxy on the way."""
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


def operation(schemas: str, method: str, path: str) -> APIOperation[Any, Any, Any, Any]:
    """A kind of request, for models that there are."""
    described = deepcopy(document(schemas))
    described["components"]["schemas"]["ModelIdsShared"] = {"enum": ["newoaks", "team/gpt"]}
    config = Config.from_dict({"seed": SEED, "max-stream-events": 100_000})  # a stream is to be heard to its end
    return schemathesis.openapi.from_dict(described, config=config)[path][method]


def is_right(case: Case[Any], response: Response, schemas: str) -> bool:
    """Whether an error is in the envelope, and a stream whole and of valid chunks."""
    wrong = faults(schemas)
    (kind,) = response.headers["content-type"]
    if response.status_code >= 400:
        return kind == "application/json" and wrong("ErrorResponse", response.json()) == []
    if not kind.startswith("text/event-stream"):
        return kind == "application/json"
    *chunks, done = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    name = "CreateChatCompletionStreamResponse" if "/chat/" in case.path else "CreateCompletionStreamResponse"
    return done == "[DONE]" and [fault for chunk in chunks for fault in wrong(name, json.loads(chunk))] == []


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), sorted(set(EXAMPLES) & served()))
@pytest.mark.parametrize("schemas", SCHEMAS)
def test_made_up_requests_are_answered_as_documented(
    live: Stage, session: requests.Session, schemas: str, method: str, path: str, mode: GenerationMode
) -> None:
    """A made-up request, valid or not, has a documented status below 500 and a body of that status's schema."""

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES[method, path],
        database=None,
        phases=[Phase.generate],  # to shrink what fails takes minutes
        suppress_health_check=list(HealthCheck),  # large documents take their time
    )
    @given(case=operation(schemas, method, path).as_strategy(mode))
    def ask(case: Case[Any]) -> None:
        if isinstance(case.body, dict):
            case.body.setdefault("stream", len(case.body) % 2 == 0)  # it would hardly ever come up
        headers = {"Authorization": f"Bearer {KEY}"}
        response = case.call_and_validate(live.url, session, headers, checks=CHECKS, timeout=10)
        assert is_right(case, response, schemas)

    ask()
    assert live.simulator.newoaks.violations == []


def test_document_tells_all_that_is_served() -> None:
    """Every route under /v1 stands in the document, and schemathesis asks it."""
    paths = document("ours")["paths"]
    documented = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert documented == set(EXAMPLES)
    assert served() == documented
