"""Who is calling: bearer keys, compared as digests."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers

from proxy.errors import Unauthorized
from proxy.messages import Key
from proxy.telemetry import App, Receive, Scope, Send

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
