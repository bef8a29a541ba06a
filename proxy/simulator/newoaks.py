"""NewOaks AI's chat API, pretended. https://www.newoaks.ai/guides/developer/api/chat/message-a-chatbot

Documented: requests, replies, the stream's objects, and that business errors are told by `Code` and `Message`.
Inferred: that these come with HTTP 200, which `Code` it is (session unknown: 404), and that other faults (credential,
form) carry an HTTP status of the same number.
"""

from itertools import count
from typing import Any, Literal

from proxy.simulator import faults
from proxy.simulator.answer import Answer, Refusal, json, streamed
from proxy.simulator.bot import Conversation, pieces
from proxy.simulator.call import Call, Route
from proxy.simulator.faults import Fault
from proxy.simulator.form import Field
from proxy.simulator.uploads import Uploads
from proxy.simulator.vendor import Vendor

SECRET_KEY = "demo-secret-key"
CHATBOT_ID = "3254a9d0424c4806b9ea3d0763de3000"

GET_SESSION = {"serialNumber": Field(str, required=True)}
CLIENT_ASK = {
    "sessionID": Field(int, required=True),
    "content": Field(str, required=True),
    "stream": Field(bool),
    "chatAskType": Field(str, null=True),
    "fileIds": Field(list, null=True, of=int),
}
PRE_UPLOAD = {"fileName": Field(str, required=True, blank=False)}


def envelope(data: Any, code: int = 200, message: str = "") -> dict[str, Any]:
    """What every JSON reply is wrapped in (documented)."""
    return {"Data": data, "Version": "1.0.0", "Success": code == 200, "Code": code, "Message": message}


class NewOaks(Vendor):
    """`framing`: bare JSON lines as printed, or SSE events. `cuts`: bytes per write, None: one object per write."""

    kinds = faults.KINDS | {
        "envelope-failed", "envelope-limited", "envelope-unauthorized",
        "error-in-stream", "summary-extends", "summary-differs", "summary-missing",
    }  # fmt: skip
    telling = frozenset({"SessionID", "content", "Answer", "FileStoreId", "PreUploadUrl"})

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.secret_key, self.chatbot_id = SECRET_KEY, CHATBOT_ID
        self.framing: Literal["lines", "sse"] = "lines"
        self.cuts: int | None = None
        self.uploads = Uploads()
        self._sessions, self._messages = count(123456), count(375561)
        self.routes = (
            Route("POST", "/chat/Chatbot/GetSession", "open", self._open, GET_SESSION),
            Route("POST", "/chat/Chat/ClientAsk", "ask", self._ask, CLIENT_ASK),
            Route("POST", "/chat/User/GetPreUploadUrl", "upload", self._upload, PRE_UPLOAD),
            Route("PUT", "/upload/*", "put", self.uploads.put, keyed=False, limit=self.uploads.LIMIT),
        )

    def confirm_at(self, path: str) -> None:
        """From now on an upload counts only after a POST to `path` that names its id (step 3; its path is unknown)."""
        self.uploads.confirmed = set()
        self.routes += (Route("POST", path, "confirm", self._confirm),)

    def admit(self, call: Call) -> None:
        # Documented: the key alone, no scheme word.
        if call.headers.get("authorization") != self.secret_key:
            raise Refusal(401, "The secret key was not accepted.")

    def no(self, refusal: Refusal) -> Answer:
        body = envelope(None, refusal.status, refusal.message)
        return json(body, 200 if refusal.business else refusal.status)

    def _open(self, call: Call) -> Answer:
        if call.fields["serialNumber"] != self.chatbot_id:
            raise Refusal(404, "The chatbot does not exist.", "serialNumber", business=True)
        conversation = self.open(next(self._sessions))
        return self.json(envelope({"SessionID": conversation.handle}), call)

    def _ask(self, call: Call) -> Answer:
        session, content = call.fields["sessionID"], call.fields["content"]
        kind = call.fields.get("chatAskType") or "Text"
        self.uploads.check(kind, call.fields.get("fileIds") or [])
        if kind == "Text" and not content:
            raise Refusal(400, "The content may not be empty.", "content", business=True)
        lost = Refusal(404, f"The session {session} does not exist.", "sessionID", business=True)
        conversation = self.find(session, call.fault, lost)
        reply = self.turn(conversation, content, call)
        if call.fields.get("stream"):
            return self._stream(reply, conversation, call.fault)
        return self._plain(reply, conversation, call)

    def _plain(self, reply: str | None, conversation: Conversation, call: Call) -> Answer:
        if call.fault.kind == "error-in-stream":
            raise Refusal(500, "The model failed.", forbidden=False, business=True)
        data = {
            "messageid": next(self._messages),
            "content": reply,
            "totalToken": tokens(conversation),
            "noAnswer": "unanswerable" in call.fields["content"].lower(),
        }
        return self.json(envelope(data), call)

    def _stream(self, reply: str | None, conversation: Conversation, fault: Fault) -> Answer:
        deltas = [{"content": piece} for piece in pieces(reply or "")]
        if fault.kind in ("summary-extends", "error-in-stream"):
            deltas = deltas[: len(deltas) // 2]
        units = [self._framed(faults.written(value, fault, self.telling)) for value in deltas]
        last = self._last(reply, conversation, fault)
        units += [self._framed(faults.written(last, fault, self.telling))] if last else []
        return streamed(units, "text/event-stream", self.cuts)

    def _last(self, reply: str | None, conversation: Conversation, fault: Fault) -> dict[str, Any] | None:
        if fault.kind == "summary-missing":
            return None
        if fault.kind == "error-in-stream":
            return envelope(None, 500, "The model failed.")
        return {
            "QuestionID": next(self._messages),
            "AnswerID": next(self._messages),
            "Answer": "Something else altogether." if fault.kind == "summary-differs" else reply,
            "TotalToken": tokens(conversation),
        }

    def _framed(self, body: bytes) -> bytes:
        return b"data: " + body + b"\n\n" if self.framing == "sse" else body + b"\n"

    def _upload(self, call: Call) -> Answer:
        store, address = self.uploads.expect(call.fields["fileName"], call.base)
        return self.json(envelope({"FileStoreId": store, "PreUploadUrl": address}), call)

    def _confirm(self, call: Call) -> Answer:
        self.uploads.confirm(call.data)
        return self.json(envelope(True), call)


def tokens(conversation: Conversation) -> int:
    """All that was said, at four characters to the token."""
    return 1 + sum(len(entry.text) for entry in conversation.entries) // 4
