"""One request at a vendor's door: the call, the route it takes, and the mark it leaves when the documents forbid it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from proxy.simulator.answer import Answer, Refusal
from proxy.simulator.faults import NONE, Fault
from proxy.simulator.form import Form

BODY = 1024 * 1024


@dataclass
class Call:
    """One request and what became of it. `operation`: the route's name, empty if there is none. `when`: Unix time."""

    method: str
    path: str
    when: float
    headers: Mapping[str, str] = field(repr=False)
    base: str = field(default="", repr=False)
    query: str = field(default="", repr=False)
    operation: str = ""
    status: int = 0
    hung_up: bool = False
    tail: str = field(default="", repr=False)
    data: bytes = field(default=b"", repr=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    fault: Fault = field(default=NONE, repr=False)

    def key(self, scheme: str) -> str:
        """What follows the scheme word in the Authorization header; empty if it has another form."""
        word, _, key = self.headers.get("authorization", "").partition(" ")
        return key if word == scheme else ""

    def release(self) -> None:
        """Lets go of the body; thousands of calls are remembered."""
        self.data, self.fields = b"", {}


@dataclass(frozen=True)
class Violation:
    """A request that the vendor's documents forbid."""

    method: str
    path: str
    message: str


@dataclass(frozen=True)
class Route:
    """One documented call. `*` in the path stands for one segment; `form` None: the body is not JSON."""

    method: str
    path: str
    operation: str
    handler: Callable[[Call], Answer]
    form: Form | None = None
    keyed: bool = True
    body: bool = True
    limit: int = BODY

    def tail(self, path: str) -> str | None:
        """What stands at the `*`, empty without one; None if this is another path."""
        match = re.fullmatch(re.escape(self.path).replace(r"\*", "([^/]+)"), path)
        return None if match is None else "".join(match.groups())


async def body(request: Request, limit: int = BODY) -> bytes:
    """The whole body. Refused with 413 beyond `limit` bytes; ClientDisconnect when the caller leaves meanwhile."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise Refusal(413, "The body is too large.")
    return bytes(read)
