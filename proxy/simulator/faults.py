"""What can go wrong at a vendor, on request: each fault is asked for beforehand and used up by one matching call."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time
from typing import Any

import orjson

from proxy.simulator.answer import Answer, Break, Refusal, Wait, whole

SPOILT = "\ue0ff"
"""Stands in a text for a byte that is not UTF-8."""

REFUSALS = {
    "limited": (429, "Too many requests."),
    "limited-date": (429, "Too many requests."),
    "unauthorized": (401, "The credential was not accepted."),
    "refused": (400, "The message was refused."),
    "failed": (500, "Internal server error."),
    "unavailable": (503, "Service unavailable."),
    "request-timeout": (408, "Request timeout."),
    "gateway-timeout": (504, "Gateway timeout."),
}
"""Kind -> HTTP status and message. `envelope-KIND`, where a vendor knows it, says the same with HTTP 200."""

HEARD = {"failed", "envelope-failed", "gateway-timeout"}
"""Refusals after the bot has taken the message in; all others come before that."""


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
        self.wait.released.set()

    def refusal(self) -> Refusal | None:
        kind = self.kind.removeprefix("envelope-")
        if kind not in REFUSALS:
            return None
        business = kind != self.kind or kind == "refused"
        return Refusal(*REFUSALS[kind], forbidden=False, business=business)

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


class Schedule:
    """The faults still to come."""

    def __init__(self) -> None:
        self._coming: list[Fault] = []
        self._waiting: list[Fault] = []

    def add(self, fault: Fault, times: int) -> None:
        self._coming += [fault] * times
        self._waiting = [*self._waiting[-999:], fault]

    def take(self, operation: str) -> Fault:
        """The first fault meant for this operation, used up by this; else none."""
        for at, fault in enumerate(self._coming):
            if fault.on in (operation, "*"):
                return self._coming.pop(at)
        return NONE

    def release(self) -> None:
        for fault in self._waiting:
            fault.release()

    def clear(self) -> None:
        self.release()
        self._coming.clear()


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
    distort = DISTORTIONS.get(fault.kind)
    return distort(answer, fault) if distort else answer


def _slow(answer: Answer, fault: Fault) -> Answer:
    answer.before.append(fault.wait)
    return answer


def _stall(answer: Answer, fault: Fault) -> Answer:
    head, tail = _halves(answer.data)
    answer.steps = [*head, fault.wait, *tail]
    return answer


def _cut_off(answer: Answer, fault: Fault) -> Answer:
    answer.steps = [*_halves(answer.data)[0], Break()]
    return answer


def _truncated(answer: Answer, fault: Fault) -> Answer:
    answer.headers.pop("content-length", None)
    answer.steps = _halves(answer.data)[0]
    return answer


def _endless(answer: Answer, fault: Fault) -> Answer:
    answer.headers.pop("content-length", None)
    head, _ = _halves(answer.data)
    # A stream says its first piece again and again; a single document goes on within whatever it was saying.
    more = head[0] if head[1:] else b" and so on" * 100
    answer.steps = itertools.chain(head[:-1] or head, itertools.repeat(more))
    return answer


def _garbled(answer: Answer, fault: Fault) -> Answer:
    return whole(b"\x1f\x8b\x08\x00 not what it should be }{", kind=answer.headers["content-type"])


def _html(answer: Answer, fault: Fault) -> Answer:
    return page(200, "We will be back soon")


def _redirect(answer: Answer, fault: Fault) -> Answer:
    return whole(b"", 307, "text/plain", {"location": fault.location})


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


DISTORTIONS: dict[str, Callable[[Answer, Fault], Answer]] = {
    "slow": _slow,
    "stall": _stall,
    "cut-off": _cut_off,
    "truncated": _truncated,
    "endless": _endless,
    "garbled": _garbled,
    "html": _html,
    "redirect": _redirect,
}
SPEECH = {"empty", "null", "blank", "huge", "invalid-utf8", "wrong-type"}
KINDS = frozenset({"forgotten", *REFUSALS, *DISTORTIONS, *SPEECH})
"""What every vendor can do wrong."""
