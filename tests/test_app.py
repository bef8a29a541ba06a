"""The whole application, put together."""

import json

import pytest

from proxy.app import create_app
from proxy.cli import Vendors
from proxy.config import load
from tests.doors import Doors

CONFIG = {
    "models": {
        "shop": {"vendor": "newoaks", "secret_key": "s", "chatbot_id": "c" * 32},
        "help": {"vendor": "quickchat", "token": "t", "scenario_id": "s"},
    }
}


async def test_a_configuration_becomes_an_application() -> None:
    """Every configured model gets a bot, without any network."""
    app = create_app(load(json.dumps(CONFIG), vendors=Vendors(), environ={}))

    assert app.relay.draining is False
    async with app.lifespan_context(app):
        pass
    assert app.relay.draining is True


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_need_no_key(doors: Doors, path: str) -> None:
    """Probes answer to anybody."""
    assert (await doors.http.get(path)).status_code == 200


async def test_a_browser_page_may_call_from_a_configured_origin(doors: Doors) -> None:
    """CORS lets configured origins in, answers preflights without a key, and exposes our headers."""
    origin = {"origin": "http://ui.test"}
    preflight = await doors.http.options(
        "/v1/chat/completions", headers={**origin, "access-control-request-method": "POST"}
    )
    answer = await doors.http.get("/v1/models", headers={**origin, "authorization": "Bearer sk-all"})
    refused = await doors.http.get("/v1/models", headers=origin)

    assert preflight.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://ui.test"
    assert "x-parley-conversation" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in (await doors.http.get("/healthz")).headers
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "http://ui.test"
