"""NewOaks AI (hottask.com): https://www.newoaks.ai/guides/developer/api/chat/message-a-chatbot

A session is opened, then asked; the answer is a JSON envelope or a stream of JSON objects. Failures come with HTTP 200
too. The documents mix the casing of keys, so keys are read without case.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, NoReturn

from proxy.config import HeaderSecret, Url
from proxy.errors import NoAnswer, VendorFailed
from proxy.framing import JsonObjects, Pairs
from proxy.messages import Delta, Event, Finish, Handle, Turn, Usage
from proxy.transcript import compose
from proxy.vendors.base import HttpBot, VendorOptions, Words, names_lost, told

Object = Mapping[str, Any]


class NewOaksOptions(VendorOptions):
    """Which chatbot, and the account's secret key. White-label brands and the EU region have their own `base_url`."""

    bot_key = "chatbot_id"
    vendor: Literal["newoaks"]
    secret_key: HeaderSecret
    chatbot_id: str
    base_url: Url = "https://usapi.hottask.com"


class NewOaks(HttpBot[NewOaksOptions]):
    """One chatbot of a NewOaks account. A handle is `{"session": int}`."""

    title = "NewOaks AI"
    Options = NewOaksOptions

    @property
    def _auth(self) -> Mapping[str, str]:
        return {"authorization": self.options.secret_key.get_secret_value()}

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak. `Finish.extra` has `no_answer` where the vendor says so, which it does in plain replies only."""
        until = self.deadline()
        handle = turn.handle
        if handle is None:
            handle = await self._open(until)
            yield handle
        question = {
            "sessionID": handle.data["session"],
            "content": compose(turn, priming=turn.primes),
            "stream": turn.stream,
        }
        async with self.stream("/chat/Chat/ClientAsk", question, until=until, headers=self._auth) as arriving:
            heard = _Heard(self, turn.handle, arriving.headers)
            if not 200 <= arriving.status < 300:
                self.accept(await arriving.read(), handle=turn.handle)
            decoder = JsonObjects(self.options.max_reply_bytes)
            async for piece in arriving:
                texts: list[str] = []
                try:
                    for found in decoder.feed(piece):
                        texts.append(heard.take(found))
                finally:  # what came at once goes on at once, also where a fault came behind it
                    if text := "".join(texts):
                        yield Delta(text)
                if heard.ended:
                    await arriving.drain()
                    break
            else:
                decoder.close()
        if text := heard.close():
            yield Delta(text)
        yield Finish(usage=heard.usage, extra=heard.extra)

    async def _open(self, until: float) -> Handle:
        with self.opening():
            bot = {"serialNumber": self.options.chatbot_id}
            answer = await self.post("/chat/Chatbot/GetSession", bot, until=until, headers=self._auth)
            envelope = _without_case(answer.json())
            self.accept(answer)
            if _is_failure(envelope):
                self.fail(envelope, None, answer.headers)
            session = str(_without_case(envelope.get("data")).get("sessionid"))
            if not re.fullmatch(r"[0-9]{1,18}", session):  # as many digits as JSON carries
                raise self.garbled("answered without a session id")
            return Handle({"session": int(session)})

    def fail(self, envelope: Object, handle: Handle | None, headers: Mapping[str, str]) -> NoReturn:
        """Raise what a failure that came with HTTP 200 means. Its `Code` is a status, where it is one [inferred]."""
        message = told(envelope)
        code = str(envelope.get("code"))
        status = int(code) if re.fullmatch(r"4\d\d", code) else 500
        if status == 500 and handle is not None and names_lost(message):
            status = 410
        self.refuse(status, told=message, handle=handle, headers=headers)


class _Heard:
    """What was heard of one answer."""

    def __init__(self, bot: NewOaks, handle: Handle | None, headers: Mapping[str, str]) -> None:
        self.usage: Usage | None = None
        self.extra: dict[str, bool] = {}
        self.ended = False
        self._bot = bot
        self._handle = handle
        self._headers = headers
        self._pairs = Pairs()
        self._words = Words()

    def take(self, told: Object) -> str:
        """The text that this object lets out. After the end of the answer nothing counts any more."""
        if self.ended:
            return ""
        if len(told) == 1 and type(text := told.get("content")) is str:  # as nearly all are
            return self._words.let_out(self._pairs.feed(text))
        if _is_failure(found := _without_case(told)):
            self._fail(found)
        if "answer" in found:
            return self._summary(found)
        if "success" in found or "data" in found:
            return self._envelope(found.get("data") or {})
        return self._words.let_out(self._pairs.feed(self._bot.text(found, "content")))

    def close(self) -> str:
        """What is left at the end. Raises NoAnswer if there were no words at all."""
        text = self._words.let_out(self._pairs.close())
        if not self._words:
            raise NoAnswer(
                "NewOaks AI took the message and said nothing: a human may have taken over, or the chatbot has nothing "
                "to answer from; look at it in its dashboard"
            )
        return text

    def _envelope(self, found: object) -> str:
        if not isinstance(found, dict):
            raise self._bot.garbled("answered with something else than an object as `Data`")
        data = _without_case(found)
        self._end(data.get("totaltoken"))
        if data.get("noanswer") is True:
            self.extra["no_answer"] = True
        return self._words.let_out(self._pairs.feed(self._bot.text(data, "content")))

    def _summary(self, found: Object) -> str:
        """The whole answer once more: what it adds to what was sent is let out; if it differs, what was sent stays."""
        self._end(found.get("totaltoken"))
        self._pairs = Pairs()
        sent = str(self._words)
        answer = found.get("answer")
        whole = Pairs().feed(answer) if isinstance(answer, str) else ""
        return self._words.let_out(whole.removeprefix(sent)) if whole.startswith(sent) else ""

    def _end(self, tokens: object) -> None:
        self.ended = True
        if type(tokens) is int and 0 < tokens < 2**53:
            self.usage = Usage(total_tokens=tokens)

    def _fail(self, found: Object) -> NoReturn:
        if self._words:
            raise VendorFailed("NewOaks AI broke its answer off with an error: look at the chatbot in its dashboard")
        self._bot.fail(found, self._handle, self._headers)


def _is_failure(found: Object) -> bool:
    if found.get("success") is False:
        return True
    if "content" in found or "answer" in found or isinstance(found.get("data"), dict):
        return False
    return bool(found.get("error")) or str(found.get("code", 0)) not in ("None", "0", "200")


def _without_case(found: object) -> Object:
    return {str(key).lower(): value for key, value in found.items()} if isinstance(found, dict) else {}
