"""Who is calling: bearer keys, compared as digests."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from starlette.datastructures import Headers

from proxy.errors import Unauthorized
from proxy.telemetry import App, Receive, Scope, Send


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: the name it goes by in partitions and logs, and the patterns of the model names it may use.

    `digest` is the SHA-256 of its secret, which is kept nowhere.
    """

    name: str
    digest: bytes = b""
    models: Sequence[str] = ("*",)

    def may_use(self, model: str) -> bool:
        """Whether one of its patterns fits this model's name."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


ANYBODY = Key("anybody")


class Authenticate:
    """ASGI middleware: puts the caller's Key into the scope. Without keys the proxy is open and everyone is anybody."""

    def __init__(self, app: App, keys: Sequence[Key]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope["parley.key"] = self._caller(Headers(scope=scope)) if self._keys else ANYBODY
        scope["parley"]["key"] = key.name
        await self._app(scope, receive, send)

    def _caller(self, headers: Headers) -> Key:
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise Unauthorized("No key was given: send it as `Authorization: Bearer KEY`")
        wanted = hashlib.sha256(presented.strip().encode()).digest()
        found = [key for key in self._keys if hmac.compare_digest(key.digest, wanted)]
        if not found:
            raise Unauthorized("This key is not known here; ask whoever runs this proxy for one")
        return found[0]
