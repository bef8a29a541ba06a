"""Mister Turing's assistants, pretended. https://docs.misterturing.com/assistant/quick-start-sample-it-assistant

Documented: the four calls and their fields, 403 without a key, the chat's content type; on a sibling page: `Bearer`,
and that the stream is pure text. Inferred: all else. Where a new conversation's id stands is unknown, hence `id_field`.
"""

from typing import Any, Literal
from uuid import uuid4

from proxy.simulator import faults
from proxy.simulator.answer import Answer, Refusal, json, streamed
from proxy.simulator.bot import Conversation, pieces
from proxy.simulator.call import Call, Route
from proxy.simulator.form import Field
from proxy.simulator.vendor import Vendor

API_KEY = "demo-development-token"
ASSISTANT_ID = "5f0c7c3e-0000-4000-8000-00000000de30"
STREAM = "text/event-stream; charset=utf-8"

ASSISTANT = {"name": Field(str, required=True, blank=False), "description": Field(str)}
ASSISTANT_ID_ONLY = {"assistant_id": Field(str, required=True)}
CHAT = {"message": Field(str, required=True, blank=False), "conversation_id": Field(str)}


class MisterTuring(Vendor):
    """`assistants` and `deployed` hold external ids; the demo assistant is deployed from the start.

    `id_field`: where a new conversation's id stands; dotted: one level down; empty: the body is the id, a JSON string.
    `framing`: pure text, or SSE events. `cuts`: bytes per write, also amid a character; None: one piece per write.
    """

    telling = frozenset({"external_id"})
    refused_credential = 403

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.api_key, self.assistant_id = API_KEY, ASSISTANT_ID
        self.assistants: dict[str, dict[str, Any]] = {ASSISTANT_ID: {"name": "Demo", "description": ""}}
        self.deployed = {ASSISTANT_ID}
        self.id_field = "conversation_id"
        self.framing: Literal["raw", "sse"] = "raw"
        self.cuts: int | None = 5
        self.routes = (
            Route("POST", "/assistant/", "create", self._create, ASSISTANT),
            Route("POST", "/assistant/deploy/", "deploy", self._deploy, ASSISTANT_ID_ONLY),
            Route("POST", "/assistant/conversation/", "open", self._open, ASSISTANT_ID_ONLY),
            Route("POST", "/assistant/chat/", "ask", self._ask, CHAT),
        )

    def admit(self, call: Call) -> None:
        if call.key("Bearer") != self.api_key:
            raise Refusal(403, "Forbidden.")

    def no(self, refusal: Refusal) -> Answer:
        return json({"detail": refusal.message}, refusal.status)

    def _create(self, call: Call) -> Answer:
        assistant = str(uuid4())
        self.assistants[assistant] = {"description": "", **call.fields}
        return self.json(
            {"external_id": assistant, **self.assistants[assistant], "assistant_preferences": {}}, call, 201
        )

    def _deploy(self, call: Call) -> Answer:
        assistant = self._assistant(call)
        self.deployed.add(assistant)
        return self.json({"external_id": assistant, "deployed": True}, call)

    def _assistant(self, call: Call) -> str:
        assistant: str = call.fields["assistant_id"]
        if assistant not in self.assistants:
            raise Refusal(404, f"Assistant {assistant} not found.", "assistant_id")
        return assistant

    def _open(self, call: Call) -> Answer:
        conversation = self.open(str(uuid4()), {"assistant_id": self._assistant(call)})
        outer, _, inner = self.id_field.partition(".")
        handle: Any = [conversation.handle] if call.fault.kind == "wrong-type" else conversation.handle
        value = {inner: handle} if inner else handle
        return self.json({outer: value} if outer else value, call, 201)

    def _ask(self, call: Call) -> Answer:
        conversation = self._conversation(call)
        if conversation.fields["assistant_id"] not in self.deployed:
            raise Refusal(400, "The assistant has not been deployed.")
        text = self.turn(conversation, call.fields["message"], call)
        if call.fault.kind == "wrong-type":
            return json([text])
        return streamed([self._framed(piece) for piece in pieces(text or "")], STREAM, self.cuts)

    def _conversation(self, call: Call) -> Conversation:
        handle = call.fields.get("conversation_id")
        if handle is None:
            # Only `message` is marked as required: a conversation that nobody can continue.
            return self.open(str(uuid4()), {"assistant_id": self.assistant_id})
        return self.find(handle, call.fault, Refusal(404, f"Conversation {handle} not found."))

    def _framed(self, piece: str) -> bytes:
        if self.framing == "raw":
            return faults.encoded(piece)
        return faults.encoded("".join(f"data: {line}\n" for line in piece.split("\n")) + "\n")
