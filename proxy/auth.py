"""Who is calling, and whether it may now: bearer keys, compared as digests."""

import hashlib
import hmac
from collections.abc import Awaitable, Iterable, Sequence

from proxy.errors import RateLimited, Unauthorized
from proxy.messages import Key
from proxy.ports import RateCounter
from proxy.telemetry import App, Receive, Scope, Send

ANYBODY = Key("anybody")


class Authenticate:
    """ASGI middleware: puts the caller's Key into the scope. Without keys the proxy is open and everyone is anybody.

    With `rates` callers are kept to their requests a minute, by name. What is not `under` this path passes unseen.
    """

    def __init__(self, app: App, keys: Sequence[Key], rates: RateCounter | None = None, under: str = "/") -> None:
        self._app = app
        self._keys = keys
        self._rates = rates
        self._under = under

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["path"].startswith(self._under):
            key = scope["parley.key"] = self._caller(scope["headers"]) if self._keys else ANYBODY
            scope["parley"]["key"] = key.name
            if self._rates is not None and key.requests_per_minute:
                return self._in_time(self._rates.wait(key.name, key.requests_per_minute), key, scope, receive, send)
        return self._app(scope, receive, send)

    async def _in_time(self, wait: Awaitable[float], key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        if seconds := await wait:
            told = f"This key may make {key.requests_per_minute} requests a minute: try again in a moment"
            raise RateLimited(told, retry_after=seconds)
        await self._app(scope, receive, send)

    def _caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        scheme, _, presented = next((value for name, value in headers if name == b"authorization"), b"").partition(b" ")
        if scheme.lower() != b"bearer" or not presented.strip():
            raise Unauthorized("No key was given: send it as `Authorization: Bearer KEY`")
        wanted = hashlib.sha256(presented.strip()).digest()
        found = [key for key in self._keys if hmac.compare_digest(key.digest, wanted)]
        if not found:
            raise Unauthorized("This key is not known here; ask whoever runs this proxy for one")
        return found[0]
