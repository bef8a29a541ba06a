"""AskHandle's API, pretended. https://dashboard.askhandle.com/api/v1/docs/api_reference.html

Documented: the token call, the header, rooms, the message's fields, `support_answer`. Seen in client code: the nested
room and the polling of a message. Inferred, from the framework it shows signs of: error bodies, 401, 201 on creation.
"""

from datetime import UTC, datetime
from secrets import token_hex
from typing import Any
from uuid import uuid4

from proxy.simulator import faults
from proxy.simulator.answer import Answer, Refusal, json
from proxy.simulator.call import Call, Field, Route, check
from proxy.simulator.vendor import Vendor, keep

USERNAME, PASSWORD = "demo", "demo-password"
TOKEN = "d0" * 20

LOGIN = {name: Field(str, required=True, blank=False) for name in ("username", "password")}
ROOM = {"name": Field(str), "is_bot_use": Field(bool)}
MESSAGE = {
    "body": Field(str, required=True, blank=False),
    "nickname": Field(str, required=True, blank=False),
    "room": Field(dict, required=True),
    "email": Field(str),
    "phone_number": Field(str),
}
ROOM_IN_MESSAGE = {"uuid": Field(str, required=True)}


class AskHandle(Vendor):
    """`answer_after` so many polls the answer is there; 0: in the reply to the message itself.

    `lost_room`: 400, with the field's error, or 404 for a message to an unknown room.
    """

    kinds = faults.KINDS | {"terminated", "hand-off"}
    authorization = "Token {token}"

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.username, self.password, self.token = USERNAME, PASSWORD, TOKEN
        self.answer_after, self.lost_room = 0, 400
        self.messages: dict[str, dict[str, Any]] = {}
        self._unanswered: dict[str, int] = {}  # polls to come without an answer, by message
        self.routes = (
            Route("POST", "/auth/api-token", "token", self._login, LOGIN, keyed=False),
            Route("POST", "/rooms/", "open", self._open, ROOM),
            Route("POST", "/messages/", "ask", self._ask, MESSAGE),
            Route("GET", "/messages/([^/]+)/", "poll", self._poll),
        )

    def no(self, refusal: Refusal) -> Answer:
        field = refusal.field.partition(".")[0]
        return json({field: [refusal.message]} if field else {"detail": refusal.message}, refusal.status)

    def _login(self, call: Call) -> Answer:
        if (call.fields["username"], call.fields["password"]) != (self.username, self.password):
            raise Refusal(400, "Unable to log in with provided credentials.", "non_field_errors")
        return json({"token": call.fault.typed(self.token)})

    def _open(self, call: Call) -> Answer:
        room = {
            "label": token_hex(4),
            "name": "",
            "rating": None,
            "is_bot_use": True,
            "created_at": now(),
            **call.fields,
        }
        conversation = self.open(str(uuid4()), {"terminated": False})
        conversation.paused = not room["is_bot_use"]
        return json({"uuid": call.fault.typed(conversation.handle), **room, "messages": []}, 201)

    def _ask(self, call: Call) -> Answer:
        check(call.fields["room"], ROOM_IN_MESSAGE, "room.")
        uuid = call.fields["room"]["uuid"]
        lost = Refusal(400, f"Object with uuid={uuid} does not exist.", "room")
        room = self.find(uuid, call, lost if self.lost_room == 400 else Refusal(404, "Not found."))
        ended = room.fields["terminated"] = room.fields["terminated"] or call.fault.kind == "terminated"
        room.paused = room.paused or ended or call.fault.kind == "hand-off"
        answer = self.turn(room, call.fields["body"], call)
        said = {name: call.fields.get(name, "") for name in ("body", "nickname", "email", "phone_number")}
        more = {"is_support_sender": False, "sent_at": now(), "terminated": ended}
        # Without an answer there is nothing to wait for: shown as empty, or as null if that was asked for.
        message = {"uuid": str(uuid4()), **said, **more, "support_answer": "" if room.paused else answer}
        keep(self.messages, message["uuid"], message)
        keep(self._unanswered, message["uuid"], self.answer_after)
        return json(self._shown(message, call), 201)

    def _poll(self, call: Call) -> Answer:
        if call.tail not in self.messages:
            raise Refusal(404, "Not found.")
        self._unanswered[call.tail] -= 1
        return json(self._shown(self.messages[call.tail], call))

    def _shown(self, message: dict[str, Any], call: Call) -> dict[str, Any]:
        answer = "" if self._unanswered[message["uuid"]] > 0 else message["support_answer"]
        return {**message, "uuid": call.fault.typed(message["uuid"]), "support_answer": call.fault.typed(answer)}


def now() -> str:
    """Microseconds and a Z, as in the documents."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
