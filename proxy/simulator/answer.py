"""What goes back over the wire: an answer in pieces with pauses between them, or a refusal."""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive, Send

JSON = "application/json"


@dataclass(eq=False)
class Refusal(Exception):
    """The vendor will not do it. `field` names what was wrong, where that can be said.

    `forbidden`: the documents forbid such a request, so it counts as a violation (False: the vendor is at fault).
    `business`: told in the body rather than by the HTTP status, by vendors that know the difference (NewOaks).
    """

    status: int
    message: str
    field: str = ""
    forbidden: bool = True
    business: bool = False


@dataclass
class Wait:
    """A pause: of so many seconds, or (None) until it is released, from whatever thread."""

    seconds: float | None = None
    _released: Future[None] = field(default_factory=Future, init=False, repr=False)

    def release(self) -> None:
        """Ends the pause, for those in it and for those to come."""
        if not self._released.done():
            self._released.set_result(None)

    async def over(self) -> None:
        """Returns when the pause is over."""
        # Unlike `wait_for` this leaves the future alone when the time is up or the caller gone: others wait for it.
        await asyncio.wait([asyncio.wrap_future(self._released)], timeout=self.seconds)


@dataclass
class Answer:
    """An HTTP answer. `before` is waited for ahead of the status line; without a content-length it is chunked.

    `broken`: the body never ends as it should, so that the server closes the connection.
    """

    steps: Iterable[bytes | Wait]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    before: list[Wait] = field(default_factory=list)
    broken: bool = False


def whole(body: bytes, status: int = 200, kind: str = JSON) -> Answer:
    """An answer in one piece, its length told."""
    return Answer([body], status, {"content-type": kind, "content-length": str(len(body))})


def json(value: Any, status: int = 200) -> Answer:
    """A JSON document."""
    return whole(orjson.dumps(value), status)


def streamed(units: Sequence[bytes], kind: str, cuts: int | None = None) -> Answer:
    """An answer in pieces: one unit to a write, or, with `cuts`, so many bytes to a write whatever they cut apart."""
    if cuts or len(units) > 10_000:
        body = b"".join(units)
        # A huge reply in crumbs would take minutes.
        cuts = max(cuts or 0, len(body) // 10_000)
        units = [body[at : at + cuts] for at in range(0, len(body), cuts)]
    return Answer(units, headers={"content-type": kind})


async def deliver(answer: Answer, gap: float, receive: Receive, send: Send) -> bool:
    """Sends the answer, `gap` seconds between its pieces; False as soon as the caller has hung up before its end."""
    sending = asyncio.ensure_future(_send(answer, gap, send))
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
        return sending.done()
    finally:
        sending.cancel()
        leaving.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(answer: Answer, gap: float, send: Send) -> None:
    for wait in answer.before:
        await wait.over()
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    for count, step in enumerate(answer.steps):
        if isinstance(step, Wait):
            await step.over()
            continue
        # Slept even when gap is 0: otherwise an endless body would never let the hang-up be noticed.
        await asyncio.sleep(gap if count else 0)
        await send({"type": "http.response.body", "body": step, "more_body": True})
    if not answer.broken:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
