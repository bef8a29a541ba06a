"""What goes back over the wire: an answer in pieces with pauses between them, or a refusal."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive, Send

JSON = "application/json"


class Refusal(Exception):
    """The vendor will not do it. `field` names what was wrong, where that can be said.

    `forbidden`: the documents forbid such a request, so it counts as a violation (False: the vendor is at fault).
    `business`: told in the body rather than by the HTTP status, by vendors that know the difference (NewOaks).
    """

    def __init__(
        self, status: int, message: str, field: str = "", *, forbidden: bool = True, business: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.forbidden, self.business = forbidden, business


@dataclass
class Wait:
    """A pause: of so many seconds, or (None) until it is released, from whatever thread."""

    seconds: float | None = None
    released: bool = False
    _waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list, repr=False)

    def release(self) -> None:
        """Ends the pause, for those in it and for those to come."""
        self.released = True
        for loop, event in list(self._waiting):
            loop.call_soon_threadsafe(event.set)

    async def over(self) -> None:
        """Returns when the pause is over."""
        event = asyncio.Event()
        waiting = (asyncio.get_running_loop(), event)
        self._waiting.append(waiting)
        try:
            if not self.released and self.seconds != 0:
                async with asyncio.timeout(self.seconds):
                    await event.wait()
        except TimeoutError:
            return
        finally:
            self._waiting.remove(waiting)


class Break:
    """The connection ends here, in the midst of the body."""


Step = bytes | Wait | Break


@dataclass
class Answer:
    """An HTTP answer. `before` is waited for ahead of the status line; without a content-length it is chunked."""

    steps: Iterable[Step]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    before: list[Wait] = field(default_factory=list)

    @property
    def data(self) -> list[bytes]:
        """The body's bytes, piece by piece."""
        return [step for step in self.steps if isinstance(step, bytes)]


def whole(body: bytes, status: int = 200, kind: str = JSON, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer in one piece, its length told."""
    return Answer([body], status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON document."""
    return whole(orjson.dumps(value), status, JSON, headers)


def streamed(units: Iterable[bytes], kind: str, cuts: int | None = None) -> Answer:
    """An answer in pieces: one unit to a write, or, with `cuts`, so many bytes to a write whatever they cut apart."""
    if cuts is None:
        return Answer(list(units), headers={"content-type": kind})
    body = b"".join(units)
    # A huge reply in crumbs would take minutes.
    cuts = max(cuts, len(body) // 10_000)
    return Answer([body[at : at + cuts] for at in range(0, len(body), cuts)], headers={"content-type": kind})


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
        if isinstance(step, Break):
            # The server finds the body unfinished and closes the connection.
            return
        if isinstance(step, Wait):
            await step.over()
            continue
        # Slept even when gap is 0: otherwise an endless body would never let the hang-up be noticed.
        await asyncio.sleep(gap if count else 0)
        await send({"type": "http.response.body", "body": step, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
