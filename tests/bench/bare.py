"""The least that a gateway in this language can do: one ASGI function that passes a body on, with the product's client.

`python -m tests.bench.bare PORT UPSTREAM`
"""

import sys
from typing import Any

import httpx2

from proxy.server import LOOPBACK, Backstage, listen, raise_file_limit
from proxy.vendors.base import KEEPALIVE
from proxy.vendors.transport import AiohttpTransport


def transport() -> httpx2.AsyncBaseTransport:
    """Arranged as in proxy/vendors/base.py: the one place to change where that changes."""
    tls = httpx2.create_ssl_context()
    return AiohttpTransport(max_connections=4000, keepalive=KEEPALIVE, connect_timeout=5, tls=tls, trust_env=False)


class Bare:
    """Posts every request's body to `upstream` and sends back what comes, piece by piece."""

    def __init__(self, upstream: str) -> None:
        self._url = httpx2.URL(f"{upstream}/v1/chat/completions")
        self._transport = transport()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # uvicorn goes on without what it would have asked for
        body = b""
        more = True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        request = httpx2.Request("POST", self._url, headers={"content-type": "application/json"}, content=body)
        response = await self._transport.handle_async_request(request)
        kept = [(b"content-type", response.headers["content-type"].encode())]
        if "content-length" in response.headers:
            kept.append((b"content-length", response.headers["content-length"].encode()))
        await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
        async for piece in response.aiter_bytes():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await response.aclose()


if __name__ == "__main__":
    raise_file_limit()
    with listen(LOOPBACK, int(sys.argv[1])) as listener:
        Backstage(Bare(sys.argv[2])).run([listener])
