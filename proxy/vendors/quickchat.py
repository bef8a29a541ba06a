"""Quickchat AI, both generations of its chat call: https://docs.quickchat.ai/channels/api/ (with a token) and the
legacy one of https://docs.quickchat.ai/ (API key in the body).

There is no call that opens a conversation: a message without `conv_id` does, and the reply tells the id.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from proxy.config import HeaderSecret
from proxy.errors import NoAnswer
from proxy.messages import Delta, Event, Finish, Handle, Turn
from proxy.transcript import compose
from proxy.vendors.base import HttpBot, VendorOptions

LEGACY = "https://chat.quickchat.ai"
CURRENT = "https://app.quickchat.ai"
CONTEXT_CHARS = 1000  # more is a 400
METADATA_KEYS = 5
CONTACT = frozenset({"email", "phone_number", "nickname"})


class QuickchatOptions(VendorOptions):
    """Which scenario, and either `token` (current endpoint) or `api_key` (legacy endpoint).

    `kb_topic` narrows the knowledge base to a tag in every call; `request` takes the tag from the request's metadata.
    """

    bot_key = "scenario_id"
    vendor: Literal["quickchat"]
    scenario_id: str
    token: HeaderSecret | None = None
    api_key: SecretStr | None = None
    kb_topic: str = ""
    client_metadata: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=METADATA_KEYS)
    html: Literal["keep", "markdown"] = "markdown"

    @model_validator(mode="before")
    @classmethod
    def _host(cls, entry: Any) -> Any:
        """The generation decides the host, unless one is given."""
        if not isinstance(entry, dict):
            return entry
        return {**entry, "base_url": entry.get("base_url") or (CURRENT if entry.get("token") else LEGACY)}

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if len(self.credential) != 1:
            raise ValueError("needs either token (current endpoint) or api_key (legacy endpoint), and not both")
        return self

    @model_validator(mode="after")
    def _metadata_fits(self) -> Self:
        if self.kb_topic and "kb_topic" in self.client_metadata:
            raise ValueError("kb_topic is given twice: leave it out of client_metadata")
        if len(self.client_metadata) + bool(self.kb_topic) > METADATA_KEYS:
            raise ValueError(f"client_metadata and kb_topic make more than {METADATA_KEYS} keys")
        return self


class Quickchat(HttpBot[QuickchatOptions]):
    """One scenario of a Quickchat AI account. A handle is `{"conv_id": str}`."""

    title = "Quickchat AI"
    Options = QuickchatOptions

    def forwarded(self, turn: Turn) -> Mapping[str, str]:
        """The priming, and the request's metadata as far as it goes along."""
        metadata = {f"metadata.{key}": value for key, value in self._from_request(turn) if key != "kb_topic"}
        return {**super().forwarded(turn), **metadata}

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak, in one piece: this API has no stream."""
        token = self.options.token
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        answer = await self.post("/chat", self._question(turn), until=self.deadline(), headers=headers)
        self.accept(answer, handle=turn.handle)
        said = answer.json()
        if not isinstance(said, Mapping):
            raise self.garbled("answered with something else than a JSON object")
        if handle := _moved(turn.handle, said.get("conv_id")):
            yield handle
        reply = self.text(said, "reply")
        if not reply.strip():
            raise NoAnswer(
                "Quickchat AI took the message and said nothing: a human may have taken the conversation over, or it "
                "was closed; look at it in the inbox of the dashboard, or start a new chat"
            )
        yield Delta(reply)
        yield Finish()

    def _question(self, turn: Turn) -> dict[str, Any]:
        """What is sent. The legacy call has a field for context, which counts for one message; the current has none."""
        key = self.options.api_key
        text = compose(turn, priming=key is None and turn.primes)
        question: dict[str, Any] = {"scenario_id": self.options.scenario_id, "text": text}
        if key is not None:
            question["api_key"] = key.get_secret_value()
            if turn.priming:
                question["message_context"] = turn.priming[:CONTEXT_CHARS]
        if turn.handle is not None:
            question["conv_id"] = turn.handle.data["conv_id"]
        if metadata := [*self._own_metadata(), *self._from_request(turn)]:
            question["client_metadata"] = dict(metadata)
        return question

    def _own_metadata(self) -> Iterator[tuple[str, Any]]:
        yield from self.options.client_metadata.items()
        if self.options.kb_topic not in ("", "request"):
            yield "kb_topic", self.options.kb_topic

    def _from_request(self, turn: Turn) -> Iterator[tuple[str, str]]:
        """The request's metadata as far as there is room; `kb_topic` first, which decides what the bot reads."""
        own = dict(self._own_metadata())
        topic = [(k, v) for k, v in turn.metadata.items() if k == "kb_topic" and self.options.kb_topic == "request"]
        others = [(k, v) for k, v in turn.metadata.items() if k not in CONTACT and k not in own and k != "kb_topic"]
        return islice([*topic, *others], METADATA_KEYS - len(own))


def _moved(handle: Handle | None, conv_id: object) -> Handle | None:
    """The handle to go on with, if it is another one. Later replies may leave `conv_id` out [documented]."""
    if not isinstance(conv_id, (str, int)) or not str(conv_id):
        return None
    moved = Handle({"conv_id": str(conv_id)})
    return None if moved == handle else moved
