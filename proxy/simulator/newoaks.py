"""NewOaks AI's chat API, pretended. https://www.newoaks.ai/guides/developer/api/chat/message-a-chatbot

Documented: requests, replies, the stream's objects, and that business errors are told by `Code` and `Message`.
Inferred: that these come with HTTP 200, which `Code` it is (session unknown: 404), and that other faults (credential,
form) carry an HTTP status of the same number.
"""

from itertools import count
from typing import Any, Literal

import orjson

from proxy.simulator import faults
from proxy.simulator.answer import Answer, Refusal, json, streamed
from proxy.simulator.bot import Conversation, pieces
from proxy.simulator.call import Call, Field, Route
from proxy.simulator.vendor import Vendor

SECRET_KEY = "demo-secret-key"
CHATBOT_ID = "3254a9d0424c4806b9ea3d0763de3000"
FAILED = "The model failed."

GET_SESSION = {"serialNumber": Field(str, required=True)}
CLIENT_ASK = {
    "sessionID": Field(int, required=True),
    "content": Field(str, required=True),
    "stream": Field(bool),
    "chatAskType": Field(str, null=True),
    "fileIds": Field(list, null=True, of=int),
}


def envelope(data: Any, code: int = 200, message: str = "") -> dict[str, Any]:
    """What every JSON reply is wrapped in (documented)."""
    return {"Data": data, "Version": "1.0.0", "Success": code == 200, "Code": code, "Message": message}


class NewOaks(Vendor):
    """`framing`: bare JSON lines as printed, or SSE events. `cuts`: bytes per write, None: one object per write."""

    kinds = faults.KINDS | {
        "envelope-failed", "envelope-limited", "envelope-unauthorized",
        "error-in-stream", "summary-extends", "summary-differs", "summary-missing",
    }  # fmt: skip
    authorization = "{secret_key}"  # documented: no scheme word

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(latency, gap)
        self.secret_key, self.chatbot_id = SECRET_KEY, CHATBOT_ID
        self.framing: Literal["lines", "sse"] = "lines"
        self.cuts: int | None = None
        self._sessions, self._messages = count(123456), count(375561)
        self.routes = (
            Route("POST", "/chat/Chatbot/GetSession", "open", self._open, GET_SESSION),
            Route("POST", "/chat/Chat/ClientAsk", "ask", self._ask, CLIENT_ASK),
        )

    def no(self, refusal: Refusal) -> Answer:
        return json(envelope(None, refusal.status, refusal.message), 200 if refusal.business else refusal.status)

    def _open(self, call: Call) -> Answer:
        if call.fields["serialNumber"] != self.chatbot_id:
            raise Refusal(404, "The chatbot does not exist.", business=True)
        return json(envelope({"SessionID": call.fault.typed(self.open(next(self._sessions)).handle)}))

    def _ask(self, call: Call) -> Answer:
        session, content = call.fields["sessionID"], call.fields["content"]
        if call.fields.get("chatAskType") not in (None, "Text") or call.fields.get("fileIds"):
            raise Refusal(400, "chatAskType and fileIds name no uploaded file.", business=True)
        if not content:
            raise Refusal(400, "The content may not be empty.", business=True)
        lost = Refusal(404, f"The session {session} does not exist.", business=True)
        conversation = self.find(session, call, lost)
        reply = self.turn(conversation, content, call)
        return (self._stream if call.fields.get("stream") else self._plain)(reply, conversation, call)

    def _plain(self, reply: str | None, conversation: Conversation, call: Call) -> Answer:
        if call.fault.kind == "error-in-stream":
            raise Refusal(500, FAILED, forbidden=False, business=True)
        no_answer = "unanswerable" in call.fields["content"].lower()
        told = {"messageid": next(self._messages), "content": call.fault.typed(reply)}
        return json(envelope({**told, "totalToken": tokens(conversation), "noAnswer": no_answer}))

    def _stream(self, reply: str | None, conversation: Conversation, call: Call) -> Answer:
        told: list[dict[str, Any]] = [{"content": call.fault.typed(piece)} for piece in pieces(reply or "")]
        if call.fault.kind in ("summary-extends", "error-in-stream"):
            del told[len(told) // 2 :]
        if call.fault.kind == "error-in-stream":
            told.append(envelope(None, 500, FAILED))
        elif call.fault.kind != "summary-missing":
            numbers = {"QuestionID": next(self._messages), "AnswerID": next(self._messages)}
            answer = "Something else altogether." if call.fault.kind == "summary-differs" else call.fault.typed(reply)
            told.append({**numbers, "Answer": answer, "TotalToken": tokens(conversation)})
        frame = b"data: %b\n\n" if self.framing == "sse" else b"%b\n"
        return streamed([frame % orjson.dumps(value) for value in told], "text/event-stream", self.cuts)


def tokens(conversation: Conversation) -> int:
    """All that was said, at four characters to the token."""
    return 1 + sum(len(entry.text) for entry in conversation.entries) // 4
