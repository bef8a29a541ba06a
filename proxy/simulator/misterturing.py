"""Mister Turing's assistants, pretended. https://docs.misterturing.com/assistant/quick-start-sample-it-assistant

Documented: the four calls and their fields, 403 without a key, the chat's content type; on a sibling page: `Bearer`,
and that the stream is pure text. Inferred: all else. Where a new conversation's id stands is unknown, hence `id_field`.
"""

from typing import Literal
from uuid import uuid4

from proxy.simulator.answer import Answer, Refusal, json, streamed
from proxy.simulator.bot import pieces
from proxy.simulator.call import Call, Field, Route
from proxy.simulator.vendor import Vendor

API_KEY = "demo-development-token"
ASSISTANT_ID = "5f0c7c3e-0000-4000-8000-00000000de30"
STREAM = "text/event-stream; charset=utf-8"

ASSISTANT = {"name": Field(str, required=True, blank=False), "description": Field(str)}
ASSISTANT_ID_ONLY = {"assistant_id": Field(str, required=True)}
CHAT = {"message": Field(str, required=True, blank=False), "conversation_id": Field(str)}


class MisterTuring(Vendor):
    """`assistants` holds external ids. Whether one must be deployed before it chats is unknown: here it need not.

    `id_field`: where a new conversation's id stands; dotted: one level down; empty: the body is the id, a JSON string.
    `framing`: pure text, or SSE events. `cuts`: bytes per write, also amid a character; None: one piece per write.
    """

    authorization = "Bearer {api_key}"

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.api_key, self.assistant_id = API_KEY, ASSISTANT_ID
        self.assistants = {ASSISTANT_ID}
        self.id_field = "conversation_id"
        self.framing: Literal["raw", "sse"] = "raw"
        self.cuts: int | None = 5
        self.routes = (
            Route("POST", "/assistant/", "create", self._create, ASSISTANT),
            Route("POST", "/assistant/deploy/", "deploy", self._deploy, ASSISTANT_ID_ONLY),
            Route("POST", "/assistant/conversation/", "open", self._open, ASSISTANT_ID_ONLY),
            Route("POST", "/assistant/chat/", "ask", self._ask, CHAT),
        )

    def no(self, refusal: Refusal) -> Answer:
        # Documented for a missing key.
        return json({"detail": refusal.message}, 403 if refusal.status == 401 else refusal.status)

    def _create(self, call: Call) -> Answer:
        assistant = str(uuid4())
        self.assistants.add(assistant)
        return json({"external_id": assistant, "description": "", **call.fields, "assistant_preferences": {}}, 201)

    def _deploy(self, call: Call) -> Answer:
        self._check(call)
        return json({})

    def _open(self, call: Call) -> Answer:
        self._check(call)
        handle = call.fault.typed(self.open(str(uuid4())).handle)
        outer, _, inner = self.id_field.partition(".")
        value = {inner: handle} if inner else handle
        return json({outer: value} if outer else value, 201)

    def _check(self, call: Call) -> None:
        if call.fields["assistant_id"] not in self.assistants:
            raise Refusal(404, "This assistant does not exist.")

    def _ask(self, call: Call) -> Answer:
        handle = call.fields.get("conversation_id")
        # Only `message` is marked as required: without the id, a conversation that nobody can continue.
        lost = Refusal(404, f"Conversation {handle} not found.")
        conversation = self.find(handle, call, lost) if handle else self.open(str(uuid4()))
        text = self.turn(conversation, call.fields["message"], call)
        if call.fault.kind == "wrong-type":
            return json([text])
        told = pieces(text or "")
        if self.framing == "sse":
            told = ["".join(f"data: {line}\n" for line in piece.split("\n")) + "\n" for piece in told]
        return streamed([piece.encode() for piece in told], STREAM, self.cuts)
