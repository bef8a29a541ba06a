"""POST /v1/completions: the old shape, one user message and its reply as plain text."""

import time
from collections.abc import Sequence
from secrets import token_hex

import orjson

from proxy.messages import Finish
from proxy.openai.delivery import Usage


class Text:
    """One answer in the old shape; a stream's chunks are its answer in pieces."""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"cmpl-{token_hex(16)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, texts: Sequence[str], finishes: Sequence[Finish], usage: Usage) -> bytes:
        """The one JSON answer."""
        ends = zip(texts, finishes, strict=True)
        choices = [_choice(choice, text, finish.reason) for choice, (text, finish) in enumerate(ends)]
        return orjson.dumps({**self._head, "choices": choices, "usage": usage})

    def opening(self, choice: int) -> bytes:
        """Nothing: there is no role to be named."""
        return b""

    def delta(self, choice: int, text: str) -> bytes:
        """A piece of text."""
        return self._event(choices=[_choice(choice, text, None)])

    def ending(self, choice: int, finish: Finish) -> bytes:
        """The chunk that says why it ended."""
        return self._event(choices=[_choice(choice, "", finish.reason)])

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices."""
        return self._event(choices=[], usage=usage)

    def _event(self, **more: object) -> bytes:
        return b"data: " + orjson.dumps({**self._head, **more}) + b"\n\n"


def _choice(choice: int, text: str, reason: str | None) -> dict[str, object]:
    return {"text": text, "index": choice, "logprobs": None, "finish_reason": reason}
