"""The table of statuses, and every fault in one envelope."""

import logging

import pytest

from proxy import errors
from proxy.errors import ProxyError
from proxy.openai.errors import envelope, headers, row
from tests.doors import Doors

TABLE = [  # as the interface has it
    (errors.InvalidRequest, 400, "invalid_request_error", "invalid_value", "false"),
    (errors.Unauthorized, 401, "invalid_request_error", "invalid_api_key", "false"),
    (errors.ModelNotFound, 404, "invalid_request_error", "model_not_found", "false"),
    (errors.NotFound, 404, "invalid_request_error", "not_found", "false"),
    (errors.MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed", "false"),
    (errors.RequestTooLarge, 413, "invalid_request_error", "request_too_large", "false"),
    (errors.RateLimited, 429, "rate_limit_error", "rate_limit_exceeded", "true"),
    (errors.VendorRateLimited, 429, "rate_limit_error", "vendor_rate_limited", "true"),
    (errors.VendorAuthFailed, 502, "api_error", "vendor_auth_failed", "false"),
    (errors.VendorRefused, 502, "api_error", "vendor_refused", "false"),
    (errors.VendorUnavailable, 502, "api_error", "vendor_unavailable", "true"),
    (errors.VendorFailed, 502, "api_error", "vendor_failed", "false"),
    (errors.VendorTimeout, 504, "api_error", "vendor_timeout", "false"),
    (errors.NoAnswer, 502, "api_error", "vendor_no_answer", "false"),
    (errors.ShuttingDown, 503, "api_error", "shutting_down", "true"),
    (errors.ProxyError, 500, "api_error", "internal_error", "false"),
]


@pytest.mark.parametrize(("kind", "status", "type", "code", "retry"), TABLE)
def test_each_error_has_its_row(kind: type[ProxyError], status: int, type: str, code: str, retry: str) -> None:
    """An error is answered with its status, type, code and the word on whether to try again."""
    fault = errors.MethodNotAllowed("x", allow="GET") if kind is errors.MethodNotAllowed else kind("x")

    assert (row(fault).status, row(fault).type, fault.code) == (status, type, code)
    assert dict(headers(fault))[b"x-should-retry"] == retry.encode()
    assert envelope(fault) == (
        b'{"error":{"message":"x (parley: %s)","type":"%s","param":null,"code":"%s"}}'
        % (code.encode(), type.encode(), code.encode())
    )


def test_retry_after_is_whole_seconds() -> None:
    """Retry-After is rounded up, and every 429 has one."""
    assert dict(headers(errors.VendorRateLimited("x", retry_after=1.2)))[b"retry-after"] == b"2"
    assert dict(headers(errors.VendorRateLimited("x")))[b"retry-after"] == b"1"


async def test_unknown_paths_and_methods_get_the_envelope(doors: Doors) -> None:
    """404 and 405 come in OpenAI's form too, inside and outside of /v1."""
    authorized = {"authorization": "Bearer sk-all"}
    outside = await doors.http.get("/nowhere")
    inside = await doors.http.get("/v1/embeddings", headers=authorized)
    method = await doors.http.get("/v1/chat/completions", headers=authorized)

    assert [answer.status_code for answer in (outside, inside, method)] == [404, 404, 405]
    assert [answer.json()["error"]["code"] for answer in (outside, inside, method)] == [
        "not_found",
        "not_found",
        "method_not_allowed",
    ]
    assert method.headers["allow"] == "POST"


async def test_what_nobody_expected_is_told_by_its_id_only(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    """A bug is answered with the request id and nothing else, and logged under it without its message."""

    def explode(turn: object) -> None:
        raise KeyError("the user's secret words")

    doors.bot.refuse = explode
    with caplog.at_level(logging.ERROR, "parley"):
        answer = await doors.ask()

    error = answer.json()["error"]
    assert answer.status_code == 500
    assert error["code"] == "internal_error"
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret words" not in answer.text
