"""Mister Turing ("Alan"): https://docs.misterturing.com/assistant/quick-start-sample-it-assistant

A conversation is created, then messages are sent into it; the answer is always a stream of raw text, under the content
type of server-sent events. The documents leave much open: what is inferred is marked.
"""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import httpx2
from pydantic import SecretStr, field_validator

from proxy.errors import NoAnswer, VendorRefused
from proxy.framing import EventStream, RawText
from proxy.messages import Delta, Event, Finish, Handle, Turn
from proxy.transcript import compose
from proxy.vendors.base import Answer, Decoder, HeaderSecret, HttpBot, VendorOptions, Words

ID_NAMES = ("conversation_id", "external_id", "id", "uuid")  # the documents name none
ID_PLACES = ("data", "conversation", "result")
LONGEST_HEAD = 65536  # bytes that are looked at to tell SSE from text that begins like it


class MisterTuringOptions(VendorOptions):
    """Which assistant, and the development token. `deploy: start` publishes the assistant's latest state at start-up."""

    vendor: Literal["misterturing"]
    api_key: HeaderSecret
    assistant_id: str
    auth_template: str = "Bearer {key}"
    framing: Literal["auto", "raw", "sse"] = "auto"
    deploy: Literal["never", "start"] = "never"
    base_url: str = "https://backend.az.misterturing.com/v4.0"

    @field_validator("auth_template")
    @classmethod
    def _has_a_place_for_the_key(cls, template: str) -> str:
        if template.count("{key}") != 1 or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", template):
            raise ValueError("must hold {key} once, in visible ASCII characters")
        return template

    @property
    def bot_id(self) -> str:
        return self.assistant_id

    @property
    def credential(self) -> Mapping[str, SecretStr]:
        return {"api_key": self.api_key}


class MisterTuring(HttpBot[MisterTuringOptions]):
    """One assistant. A handle is `{"conversation": str | int}`."""

    title = "Mister Turing"
    Options = MisterTuringOptions

    def __init__(self, options: MisterTuringOptions, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        super().__init__(options, transport=transport)
        key = options.api_key.get_secret_value()
        self._auth = {"authorization": options.auth_template.replace("{key}", key)}

    async def start(self) -> None:
        """Deploy, where the configuration says `deploy: start`."""
        if self.options.deploy == "start":
            await self.deploy()

    async def deploy(self) -> None:
        """Make what was last changed in the assistant's flows, extractions and folders the version that answers."""
        await self._ask("/assistant/deploy/", {"assistant_id": self.options.assistant_id}, self.deadline())

    async def create(self, name: str, description: str = "") -> str:
        """Make a new assistant and return its id, the `assistant_id` of a configuration."""
        answer = await self._ask("/assistant/", {"name": name, "description": description}, self.deadline())
        return str(self._id(answer, ("external_id", *ID_NAMES)))

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak, piece by piece: this API has no other way."""
        until = self.deadline()
        handle = turn.handle
        if handle is None:
            handle = await self._open(until)
            yield handle
        message = {"message": compose(turn, priming=turn.handle is None), "conversation_id": handle.data["conversation"]}
        words = Words()
        async with self.stream("/assistant/chat/", message, until=until, headers=self._auth) as arriving:
            if not 200 <= arriving.status < 300 or "json" in arriving.headers.get("content-type", ""):
                yield Delta(words.let_out(self._told_at_once(await arriving.read(), turn.handle)))
            else:
                async for text in arriving.decoded(self._decoder()):
                    if text := words.let_out(text):
                        yield Delta(text)
        if not words:
            raise NoAnswer(
                "Mister Turing took the message and said nothing: the assistant may have no flow for it, or its latest "
                "version was never deployed (`parley setup MODEL`)"
            )
        yield Finish()

    async def _open(self, until: float) -> Handle:
        with self.opening():
            answer = await self._ask("/assistant/conversation/", {"assistant_id": self.options.assistant_id}, until)
            return Handle({"conversation": self._id(answer, ID_NAMES)})

    async def _ask(self, path: str, body: object, until: float) -> Answer:
        answer = await self.post(path, body, until=until, headers=self._auth)
        with self._hinting():
            self.accept(answer)
        return answer
