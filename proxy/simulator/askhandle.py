"""AskHandle's API, pretended. https://dashboard.askhandle.com/api/v1/docs/api_reference.html

Documented: the token call, the header, rooms, the message's fields, `support_answer`. Seen in client code: the nested
room and the polling of a message. Inferred, from the framework it shows signs of: error bodies, 401, 201 on creation,
and that a path without its slash is answered by a redirect, which makes a GET of a POST and loses the body.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from time import monotonic
from typing import Any
from uuid import uuid4

from proxy.simulator import faults
from proxy.simulator.answer import Answer, Refusal, json, whole
from proxy.simulator.bot import Conversation
from proxy.simulator.call import Call, Route
from proxy.simulator.form import Field, check
from proxy.simulator.vendor import KEPT, Vendor

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


@dataclass
class Message:
    """One message as the API shows it; `answer` is shown once it was polled often and waited for long enough."""

    shown: dict[str, Any]
    answer: str | None
    polls: int = 0
    since: float = field(default_factory=monotonic)


class AskHandle(Vendor):
    """`answer_after` polls and `answer_seconds` later the answer is there; 0 and 0: in the reply to the message itself.

    `lost_room`: 400, with the field's error, or 404 for a message to an unknown room.
    """

    kinds = faults.KINDS | {"terminated", "hand-off"}
    telling = frozenset({"support_answer", "uuid", "token"})

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.username, self.password, self.token = USERNAME, PASSWORD, TOKEN
        self.answer_after, self.answer_seconds, self.lost_room = 0, 0.0, 400
        self.messages: dict[str, Message] = {}
        self._revoked: set[str] = set()
        self.routes = (
            Route("POST", "/auth/api-token", "token", self._login, LOGIN, keyed=False),
            Route("POST", "/rooms/", "open", self._open, ROOM, body=False),
            Route("POST", "/messages/", "ask", self._ask, MESSAGE),
            Route("GET", "/messages/*/", "poll", self._poll),
        )

    def revoke(self) -> None:
        """The token in use is no longer good; a new one can be had by logging in."""
        self._revoked = {*list(self._revoked)[-99:], self.token}
        self.token = token_hex(20)

    def admit(self, call: Call) -> None:
        token = call.key("Token")
        if token != self.token:
            raise Refusal(401, "Invalid token.", forbidden=token not in self._revoked)

    def no(self, refusal: Refusal) -> Answer:
        headers = {"www-authenticate": "Token"} if refusal.status == 401 else {}
        field = refusal.field.partition(".")[0]
        return json({field: [refusal.message]} if field else {"detail": refusal.message}, refusal.status, headers)

    def missing(self, call: Call) -> Answer:
        slashed = f"{call.path}/"
        if not any(route.tail(slashed) is not None for route in self.routes):
            return super().missing(call)
        self.violate(call, "The path lacks its trailing slash.")
        return whole(b"", 301, "text/html; charset=utf-8", {"location": f"{call.base}{slashed}"})

    def _login(self, call: Call) -> Answer:
        if (call.fields["username"], call.fields["password"]) != (self.username, self.password):
            raise Refusal(400, "Unable to log in with provided credentials.", "non_field_errors")
        return self.json({"token": self.token}, call)

    def _open(self, call: Call) -> Answer:
        room = {"label": token_hex(4), "name": "", "rating": None, "is_bot_use": True, "created_at": now()}
        conversation = self.open(str(uuid4()), {**room, **call.fields, "terminated": False})
        conversation.paused = not conversation.fields["is_bot_use"]
        return self.json({"uuid": conversation.handle, **room, **call.fields, "messages": []}, call, 201)

    def _ask(self, call: Call) -> Answer:
        check(call.fields["room"], ROOM_IN_MESSAGE, "room.")
        if "@" not in call.fields.get("email", "@"):
            raise Refusal(400, "Enter a valid email address.", "email")
        message = self._taken_in(self._room(call), call)
        return self.json(self._shown(message), call, 201)

    def _room(self, call: Call) -> Conversation:
        uuid = call.fields["room"]["uuid"]
        lost = Refusal(400, f"Object with uuid={uuid} does not exist.", "room")
        return self.find(uuid, call.fault, lost if self.lost_room == 400 else Refusal(404, "Not found."))

    def _taken_in(self, room: Conversation, call: Call) -> Message:
        ended = room.fields["terminated"] = room.fields["terminated"] or call.fault.kind == "terminated"
        room.paused = room.paused or ended or call.fault.kind == "hand-off"
        answer = self.turn(room, call.fields["body"], call)
        said = {name: call.fields.get(name, "") for name in ("body", "nickname", "email", "phone_number")}
        more = {"is_support_sender": False, "sent_at": now(), "support_answer": "", "terminated": ended}
        # Without an answer there is nothing to wait for: shown as empty, or as null if that was asked for.
        shown = {"uuid": str(uuid4()), **said, **more}
        message = self.messages[shown["uuid"]] = Message(shown, "" if room.paused else answer)
        while len(self.messages) > KEPT:
            del self.messages[next(iter(self.messages))]
        return message

    def _poll(self, call: Call) -> Answer:
        message = self.messages.get(call.tail)
        if message is None:
            raise Refusal(404, "Not found.")
        message.polls += 1
        return self.json(self._shown(message), call)

    def _shown(self, message: Message) -> dict[str, Any]:
        waited = monotonic() - message.since
        ready = message.polls >= self.answer_after and waited >= self.answer_seconds
        return {**message.shown, "support_answer": message.answer} if ready else message.shown


def now() -> str:
    """Microseconds and a Z, as in the documents."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
