"""Quickchat AI's chat API, pretended, in both its generations. https://docs.quickchat.ai/channels/api/

Documented: requests, replies, limits, the statuses of legacy errors, the error body of the REST API. Inferred: that the
current `/chat` uses that body, a field at fault having its name where `root` stands, and that an unknown `conv_id` is a
400 there too. The legacy error's body is unknown; the vendor's samples print it as text, so text it is.
"""

from typing import Any
from uuid import uuid4

from proxy.simulator import faults
from proxy.simulator.answer import Answer, Refusal, json, whole
from proxy.simulator.bot import Conversation
from proxy.simulator.call import Call, Field, Form, Route
from proxy.simulator.vendor import Vendor

API_KEY = "demo-api-key"
SCENARIO_ID = "demo-scenario"
TOKEN = "demo.jwt.token"

CURRENT = {
    "scenario_id": Field(str, required=True, blank=False),
    "text": Field(str, required=True, blank=False),
    "conv_id": Field(str, blank=False),
    "client_metadata": Field(dict, limit=5),
}
LEGACY = {**CURRENT, "api_key": Field(str, required=True, blank=False), "message_context": Field(str, limit=1000)}
CODES = {
    401: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    422: "VALIDATION_ERROR",
    429: "TOO_MANY_REQUESTS",
    500: "UNKNOWN",
    503: "SERVICE_UNAVAILABLE",
}


class Quickchat(Vendor):
    """The current endpoint. `changes_id`: every later reply carries a new `conv_id`, and only that one is known."""

    kinds = faults.KINDS | {"new-id", "hand-off"}
    form: Form = CURRENT
    authorization = "Bearer {token}"

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.scenario_id, self.token, self.api_key = SCENARIO_ID, TOKEN, API_KEY
        self.changes_id = False
        self.routes = (Route("POST", "/chat", "ask", self._ask, self.form),)

    def no(self, refusal: Refusal) -> Answer:
        status = 422 if refusal.field and refusal.status == 400 else refusal.status
        error = {"message": refusal.message, "code": CODES.get(status, "BAD_REQUEST")}
        return json({"errors": {refusal.field or "root": [error]}}, status)

    def shown(self, reply: dict[str, Any], first: bool) -> dict[str, Any]:
        """A reply as this endpoint shows it; `src` is always 0, its meaning is unknown."""
        return {**reply, "src": 0}

    def _ask(self, call: Call) -> Answer:
        if call.fields["scenario_id"] != self.scenario_id:
            raise Refusal(401, "Unauthorized.")
        first = "conv_id" not in call.fields
        conversation = self._conversation(call)
        if call.fault.kind == "hand-off":
            conversation.paused = True
        text = self.turn(conversation, call.fields["text"], call, markup=True)
        if not first and (self.changes_id or call.fault.kind == "new-id"):
            first = True
            del self.conversations[conversation.handle]
            conversation.handle = uuid4().hex[:8]
            self.conversations[conversation.handle] = conversation
        told = {
            "conv_id": conversation.handle,
            "reply": call.fault.typed(text),
            "ord_number": len(conversation.entries),
        }
        return json(self.shown(told, first))

    def _conversation(self, call: Call) -> Conversation:
        tagged = "kb_topic" in call.fields.get("client_metadata", {})
        if "conv_id" not in call.fields:
            return self.open(uuid4().hex[:8], {"tagged": tagged})
        known = call.fields["conv_id"]
        conversation = self.find(known, call, Refusal(400, f"conv_id {known} does not exist"))
        if conversation.fields["tagged"] is not tagged:
            raise Refusal(400, "kb_topic must be in every call or in none.", "client_metadata")
        return conversation


class QuickchatLegacy(Quickchat):
    """The older endpoint: the key in the body, `message_context`, and no `conv_id` in replies after the first."""

    form = LEGACY
    authorization = ""

    def no(self, refusal: Refusal) -> Answer:
        return whole(refusal.message.encode(), refusal.status, "text/plain; charset=utf-8")

    def shown(self, reply: dict[str, Any], first: bool) -> dict[str, Any]:
        return {name: value for name, value in reply.items() if first or name != "conv_id"}

    def _ask(self, call: Call) -> Answer:
        if call.fields.pop("api_key") != self.api_key:
            raise Refusal(401, "Unauthorized")
        return super()._ask(call)
