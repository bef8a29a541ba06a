"""What can go wrong at a vendor, on request: each fault is asked for beforehand and used up by one matching call."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Any

import orjson

from proxy.simulator.answer import Answer, Break, Refusal, Wait, whole

SPOILT = "\ue0ff"
"""Stands in a text for a byte that is not UTF-8."""

REFUSALS = {
    "limited": 429,
    "limited-date": 429,
    "unauthorized": 401,
    "refused": 400,
    "failed": 500,
    "unavailable": 503,
    "request-timeout": 408,
    "gateway-timeout": 504,
}
"""Kind -> HTTP status. `envelope-KIND`, where a vendor knows it, says the same with HTTP 200."""
HEARD = {"failed", "envelope-failed", "gateway-timeout"}
"""Refusals after the bot has taken the message in; all others come before that."""
SPOILT_ON_THE_WAY = {"slow", "stall", "cut-off", "truncated", "endless", "garbled", "html", "redirect"}
SPOILT_IN_ITSELF = {"empty", "null", "blank", "huge", "invalid-utf8", "wrong-type", "forgotten"}
KINDS = frozenset({*REFUSALS, *SPOILT_ON_THE_WAY, *SPOILT_IN_ITSELF})
"""What every vendor can do wrong."""


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, the operation it strikes, and how hard.

    `seconds`: how long `slow` and `stall` last (None: until released), or what `limited` says in Retry-After (None: 7).
    """

    kind: str = ""
    on: str = "ask"
    seconds: float | None = None
    megabytes: float = 8
    location: str = "redirected"
    wait: Wait = field(default_factory=Wait)

    def release(self) -> None:
        """Ends the waiting of `slow` and `stall`."""
        self.wait.release()

    def refusal(self) -> Refusal | None:
        """What the vendor says instead of an answer, if that is the fault."""
        kind = self.kind.removeprefix("envelope-")
        if kind not in REFUSALS:
            return None
        status, business = REFUSALS[kind], kind != self.kind or kind == "refused"
        return Refusal(status, f"{HTTPStatus(status).phrase}.", forbidden=False, business=business)

    def headers(self) -> dict[str, str]:
        """Retry-After in seconds or as a date."""
        seconds = 7 if self.seconds is None else self.seconds
        match self.kind:
            case "limited" | "envelope-limited":
                return {"retry-after": f"{seconds:g}"}
            case "limited-date":
                return {"retry-after": formatdate(time() + seconds, usegmt=True)}
        return {}


NONE = Fault()


def spoken(text: str, fault: Fault) -> str | None:
    """The bot's reply, as far as the fault lets it speak."""
    match fault.kind:
        case "empty":
            return ""
        case "null":
            return None
        case "blank":
            return " \n "
        case "huge":
            return "blah " * int(fault.megabytes * 200_000)
        case "invalid-utf8":
            return text[: len(text) // 2] + SPOILT + text[len(text) // 2 :]
    return text


def encoded(text: str) -> bytes:
    """UTF-8, but for what was spoilt on purpose."""
    return text.encode().replace(SPOILT.encode(), b"\xff")


def written(value: Any, fault: Fault, telling: Iterable[str]) -> bytes:
    """JSON; under `wrong-type` the values that matter (`telling` names them) are lists."""
    if fault.kind == "wrong-type":
        value = _wrapped(value, frozenset(telling))
    return orjson.dumps(value).replace(SPOILT.encode(), b"\xff")


def _wrapped(value: Any, telling: frozenset[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: [inner] if key in telling else _wrapped(inner, telling) for key, inner in value.items()}


def distorted(answer: Answer, fault: Fault) -> Answer:
    """The answer as the fault spoils it on its way."""
    head, tail = _halves(answer.data)
    match fault.kind:
        case "slow":
            answer.before.append(fault.wait)
        case "stall":
            answer.steps = [*head, fault.wait, *tail]
        case "cut-off":
            answer.steps = [*head, Break()]
        case "truncated":
            return _unmeasured(answer, head)
        case "endless":
            # A stream says its first piece again and again; a single document goes on with whatever it was saying.
            more = head[0] if head[1:] else b" and so on" * 100
            return _unmeasured(answer, itertools.chain(head[:-1] or head, itertools.repeat(more)))
        case "garbled":
            return whole(b"\x1f\x8b\x08\x00 not what it should be }{", kind=answer.headers["content-type"])
        case "html":
            return page(200, "We will be back soon")
        case "redirect":
            return whole(b"", 307, "text/plain", {"location": fault.location})
    return answer


def _unmeasured(answer: Answer, steps: Iterable[bytes]) -> Answer:
    return Answer(steps, answer.status, {"content-type": answer.headers["content-type"]})


def page(status: int, title: str) -> Answer:
    """An HTML page, as a machine in front of the vendor's would send it."""
    body = f"<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return whole(body.encode(), status, "text/html; charset=utf-8")


def _halves(data: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Cut inside the piece in the middle."""
    if not data:
        return [], []
    middle = len(data) // 2
    piece = data[middle]
    at = len(piece) // 2
    return [*data[:middle], piece[:at]], [piece[at:], *data[middle + 1 :]]
