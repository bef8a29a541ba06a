"""What can go wrong at a vendor, on request: each fault is asked for beforehand and used up by matching calls."""

import itertools
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Any

from proxy.simulator.answer import Answer, Refusal, Wait, whole

HTML = "text/html; charset=utf-8"

REFUSALS = {
    "limited": 429,
    "limited-date": 429,
    "unauthorized": 401,
    "refused": 400,
    "failed": 500,
    "unavailable": 503,
    "request-timeout": 408,
}
"""Kind -> HTTP status. `envelope-KIND`, where a vendor knows it, says the same with HTTP 200."""
REPLACED: dict[str, tuple[bytes, int, str | None]] = {
    "garbled": (b"\x1f\x8b\x08\x00 not what it should be }{", 200, None),
    "html": (b"<!doctype html><title>Sorry</title><h1>We will be back soon</h1>", 200, HTML),
    "gateway-timeout": (b"<!doctype html><title>504</title><h1>504 Gateway Time-out</h1>", 504, HTML),
    "redirect": (b"", 307, HTML),
}
"""Kind -> body, HTTP status and content type (None: the right one) that come in the place of an answer."""
SAID = {"empty": "", "null": None, "blank": " \n "}
"""Kind -> what the bot says."""
KINDS = frozenset({
    *REFUSALS, *REPLACED, *SAID, "forgotten", "slow", "stall", "cut-off", "truncated", "endless", "huge", "wrong-type",
    "invalid-utf8",
})  # fmt: skip
"""What every vendor can do wrong."""

SPOILT = "\x7f"
"""Stands for a byte that is not UTF-8. One byte itself, so no cut goes through it."""


@dataclass
class Fault(Wait):
    """One fault: its kind, the operation it strikes, how many more times, and how hard.

    `seconds`: how long `slow` and `stall` last (None: until released), or what `limited` says in Retry-After (None: 7).
    """

    kind: str = ""
    on: str = ""
    left: int = 0
    megabytes: float = 0

    def refusal(self) -> Refusal | None:
        """What the vendor says instead of an answer, if that is the fault."""
        kind = self.kind.removeprefix("envelope-")
        if kind not in REFUSALS:
            return None
        status, business = REFUSALS[kind], kind != self.kind or kind == "refused"
        return Refusal(status, f"{HTTPStatus(status).phrase}.", forbidden=False, business=business)

    def headers(self) -> dict[str, str]:
        """What else stands in the answer's head."""
        if self.kind == "redirect":
            # Nothing is there: whoever follows it commits a violation.
            return {"location": "redirected"}
        seconds = 7 if self.seconds is None else self.seconds
        told = formatdate(time() + seconds, usegmt=True) if self.kind == "limited-date" else f"{seconds:g}"
        return {"retry-after": told} if "limited" in self.kind else {}

    def spoken(self, text: str) -> str | None:
        """The bot's reply, as far as the fault lets it speak."""
        if self.kind == "huge":
            return "blah " * int(self.megabytes * 200_000)
        if self.kind == "invalid-utf8":
            return text[: len(text) // 2] + SPOILT + text[len(text) // 2 :]
        return SAID.get(self.kind, text)

    def typed(self, value: Any) -> Any:
        """A value that matters; under `wrong-type` it is in a list."""
        return [value] if self.kind == "wrong-type" else value

    def distort(self, answer: Answer) -> Answer:
        """The answer as the fault spoils it on its way."""
        kind = answer.headers["content-type"]
        if self.kind in REPLACED:
            body, status, other = REPLACED[self.kind]
            return whole(body, status, other or kind)
        head, tail = _halves([step for step in answer.steps if isinstance(step, bytes)])
        match self.kind:
            case "slow":
                answer.before.append(self)
            case "stall":
                answer.steps = [*head, self, *tail]
            case "cut-off":
                answer.steps, answer.broken = head, True
            case "truncated":
                return Answer(head, answer.status, {"content-type": kind})
            case "endless":
                # A stream says its first piece again and again; a single document goes on with what it was saying.
                more = head[0] if head[1:] else b" and so on" * 100
                steps = itertools.chain(head[:-1] or head, itertools.repeat(more))
                return Answer(steps, answer.status, {"content-type": kind})
            case "invalid-utf8":
                answer.steps = [piece.replace(SPOILT.encode(), b"\xff") for piece in (*head, *tail)]
        return answer


def _halves(data: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Cut inside the piece in the middle."""
    middle = len(data) // 2
    piece = b"".join(data[middle : middle + 1])
    at = len(piece) // 2
    return [*data[:middle], piece[:at]], [piece[at:], *data[middle + 1 :]]
