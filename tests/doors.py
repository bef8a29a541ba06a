"""The doors before a scripted bot, in process: for what is said, not for when."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from proxy.app import assemble
from proxy.config import Config, ModelOptions
from proxy.stores.memory import MemoryStore
from tests.scripted import ScriptedBot

KEYS: list[dict[str, Any]] = [{"name": "all", "key": "sk-all"}, {"name": "few", "key": "sk-few", "models": ["shop*"]}]


@dataclass
class Doors:
    """A client at the doors. `bot` stands behind every model."""

    http: httpx2.AsyncClient
    bot: ScriptedBot

    async def post(self, path: str = "/v1/chat/completions", key: str = "sk-all", **body: Any) -> httpx2.Response:
        return await self.send(orjson.dumps(body), path, authorization=f"Bearer {key}")

    async def ask(self, content: str = "hello", **body: Any) -> httpx2.Response:
        return await self.post(**{"model": "shop", "messages": [{"role": "user", "content": content}], **body})

    async def send(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx2.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(path, content=body, headers={"content-type": "application/json", **headers})


@asynccontextmanager
async def open_doors(options: ModelOptions | None = None, **server: Any) -> AsyncIterator[Doors]:
    """Two models and two keys; `options` are the first one's, `server` more keys of the configuration's section."""
    models = {
        "shop": options or ModelOptions(vendor="scripted", aliases=("gpt-4o-mini",), description="Sells things"),
        "it/help": ModelOptions(vendor="scripted"),
    }
    server = {"max_body_bytes": 5000, "cors_origins": ["http://ui.test"], **server}
    config = Config.model_validate({"keys": KEYS, "models": models, "server": server})
    bot = ScriptedBot()
    app = assemble(config, dict.fromkeys(models, bot), MemoryStore(max_parked=100))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://parley.test") as http:
        yield Doors(http, bot)
