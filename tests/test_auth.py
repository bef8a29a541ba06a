"""Who may come in."""

import httpx2
import pytest

from proxy.app import assemble
from proxy.config import Config, ModelOptions
from proxy.messages import Key
from proxy.stores.memory import MemoryStore
from proxy.stores.rates import Rates
from tests.doors import Doors
from tests.scripted import ScriptedBot

HELLO = b'{"model": "shop", "messages": [{"role": "user", "content": "hi"}]}'


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic sk-all", "sk-all", "Bearer sk-al", "Bearer sk-all2"]
)
async def test_strangers_stay_outside(doors: Doors, header: str | None) -> None:
    """No key, half a key and a wrong key get 401, on every path of /v1, and reach no bot."""
    headers = {} if header is None else {"authorization": header}

    for answer in (await doors.send(HELLO, **headers), await doors.http.get("/v1/models", headers=headers)):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "sk-al" not in answer.text
    assert doors.bot.turns == []


@pytest.mark.parametrize("header", ["Bearer sk-all", "bearer sk-all", "BEARER   sk-all "])
async def test_a_known_key_gets_in(doors: Doors, header: str) -> None:
    """A known key is let in, however the scheme is written."""
    assert (await doors.send(HELLO, authorization=header)).status_code == 200


def test_patterns_are_globs() -> None:
    """A key may use the models one of its patterns fits."""
    key = Key("k", models=("shop-*", "faq"))

    assert [name for name in ("shop-eu", "faq", "faq2", "SHOP-EU") if key.may_use(name)] == ["shop-eu", "faq"]


def test_a_key_does_not_show_itself() -> None:
    """A key holds a digest and not the secret."""
    assert "secret" not in repr(Key("k", b"digest"))


async def test_a_key_is_kept_to_its_requests_a_minute() -> None:
    """Over `requests_per_minute` a key gets 429 and is told when to come again; other names go on."""
    keys = [
        {"name": "few", "key": "sk-1", "requests_per_minute": 2},
        {"name": "few", "key": "sk-2", "requests_per_minute": 2},
        {"name": "all", "key": "sk-3"},
    ]
    config = Config.model_validate({"keys": keys, "models": {"shop": ModelOptions(vendor="scripted")}})
    app = assemble(config, {"shop": ScriptedBot()}, MemoryStore(max_parked=9), Rates())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://parley.test") as http:
        answers = [
            await http.get("/v1/models", headers={"authorization": f"Bearer sk-{key}"}) for key in (1, 2, 1, 3, 3, 3)
        ]

    assert [answer.status_code for answer in answers] == [200, 200, 429, 200, 200, 200]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert (answers[2].headers["retry-after"], answers[2].headers["x-should-retry"]) == ("30", "true")
