"""The dialect of POST /v1/chat/completions."""

import time
from collections.abc import Sequence
from secrets import token_hex

import orjson

from proxy.messages import Finish
from proxy.openai.delivery import Usage


class Chat:
    """One answer: its id, time and model stand in every chunk, so all but the text is rendered once."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{token_hex(16)}", "object": "", "created": int(time.time()), "model": model}
        chunk = orjson.dumps({**self._head, "object": "chat.completion.chunk"})[:-1]
        self._event = b"data: " + chunk
        self._after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def whole(self, texts: Sequence[str], finishes: Sequence[Finish], usage: Usage) -> bytes:
        """The one JSON answer."""
        choices: list[dict[str, object]] = [
            {
                "index": choice,
                "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": finish.reason,
            }
            for choice, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        return orjson.dumps({**self._head, "object": "chat.completion", "choices": choices, "usage": usage})

    def opening(self, choice: int) -> bytes:
        """The chunk that names the role."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def delta(self, choice: int, text: str) -> bytes:
        """A piece of text."""
        where = b',"choices":[{"index":%d,"delta":{"content":' % choice
        return self._event + where + orjson.dumps(text) + self._after

    def ending(self, choice: int, finish: Finish) -> bytes:
        """The chunk that says why it ended."""
        return self._chunk(choice, {}, finish.reason)

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices."""
        return self._event + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def _chunk(self, choice: int, delta: dict[str, str], reason: str | None) -> bytes:
        entry = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event + b',"choices":[' + orjson.dumps(entry) + b"]}\n\n"
