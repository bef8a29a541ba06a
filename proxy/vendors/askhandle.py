"""AskHandle: https://dashboard.askhandle.com/api/v1/docs/api_reference.html

A room is opened, then messages are posted to it. The answer is in the reply to the post, or is polled for.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from proxy.config import HeaderSecret, Url
from proxy.errors import (
    NoAnswer,
    ProxyError,
    RateLimited,
    VendorAuthFailed,
    VendorFailed,
    VendorRateLimited,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Delta, Event, Finish, Handle, Turn
from proxy.transcript import compose
from proxy.vendors.base import Answer, HttpBot, Transport, VendorOptions

CONTACT = ("email", "phone_number")
LONGEST_POLL = 10.0  # seconds; a poll that hangs is made again
Headers = Mapping[str, str]
Object = Mapping[str, Any]


class AskHandleOptions(VendorOptions):
    """Either `token`, or `username` and `password` that one is fetched with. Poll times are seconds."""

    bot_key = "username"
    vendor: Literal["askhandle"]
    token: HeaderSecret | None = None
    username: str = ""
    password: SecretStr | None = None
    nickname: str = Field(default="visitor", min_length=1)
    poll_interval: float = Field(default=1.5, gt=0)
    poll_timeout: float = Field(default=60, gt=0)
    base_url: Url = "https://dashboard.askhandle.com/api/v1"

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        login = (bool(self.username), self.password is not None)
        if login not in ((True, True), (False, False)) or login[0] == (self.token is not None):
            raise ValueError("needs either token, or username and password, and not both")
        return self


class AskHandle(HttpBot[AskHandleOptions]):
    """The bot of an AskHandle account. A handle is `{"room": str, "nickname": str}`."""

    title = "AskHandle"
    Options = AskHandleOptions

    def __init__(self, options: AskHandleOptions, *, transport: Transport | None = None) -> None:
        super().__init__(options, transport=transport)
        self._token = options.token.get_secret_value() if options.token else ""
        self._fetching: asyncio.Task[str] | None = None
        self._waiting = 0

    def forwarded(self, turn: Turn) -> Mapping[str, str]:
        """The priming and the contact data."""
        contact = {f"contact.{key}": turn.contact[key] for key in (*CONTACT, "nickname") if turn.contact.get(key)}
        return {**super().forwarded(turn), **contact}

    async def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak, in one piece: this API has no stream."""
        until = self.deadline()
        handle = turn.handle
        if handle is None:
            handle = await self._open(until)
            yield handle
        message = self._message(turn, handle)
        answer = await self._authorized(lambda auth: self.post("/messages/", message, until=until, headers=auth), until)
        self.accept(answer, handle=turn.handle)
        taken = self._object(answer)
        with self._taken_in():
            said = self._said(taken) or await self._polled(taken, until)
        yield Delta(said)
        yield Finish()

    async def _open(self, until: float) -> Handle:
        with self.opening():
            answer = await self._authorized(lambda auth: self.post("/rooms/", None, until=until, headers=auth), until)
            self.accept(answer)
            room = self._object(answer).get("uuid")
            if not isinstance(room, str) or not room:
                raise self.garbled("opened a room without telling its uuid")
            return Handle({"room": room, "nickname": f"{self.options.nickname}-{token_hex(3)}"})

    def _message(self, turn: Turn, handle: Handle) -> dict[str, Any]:
        nickname = turn.contact.get("nickname") or handle.data["nickname"]
        contact = {key: turn.contact[key] for key in CONTACT if turn.contact.get(key)}
        body = compose(turn, priming=turn.primes)
        return {"body": body, "nickname": nickname, "room": {"uuid": handle.data["room"]}, **contact}

    async def _polled(self, message: Object, until: float) -> str:
        """The answer to a message that was taken in. A poll that fails is made again while there is time."""
        uuid = self.text(message, "uuid")
        if not re.fullmatch(r"[\w-]{1,64}", uuid):
            raise self.garbled("took the message without telling its uuid")
        now = asyncio.get_running_loop().time
        ends = min(now() + self.options.poll_timeout, until)
        wait: float = self.options.poll_interval
        fault: ProxyError | None = None
        while not message.get("terminated") and now() + wait < ends:
            await asyncio.sleep(wait)
            wait = self.options.poll_interval
            try:
                message, fault = await self._poll(uuid, min(ends, now() + LONGEST_POLL)), None
                if said := self._said(message):
                    return said
            except VendorTimeout:
                continue
            except _TRANSIENT as failed:
                wait, fault = max(wait, failed.retry_after or 0), failed
        if fault is not None:
            raise fault
        if ends == until and not message.get("terminated"):
            raise VendorTimeout("AskHandle did not answer within `timeout`: raise it, or look at the room")
        raise NoAnswer(_SILENCE)

    @contextmanager
    def _taken_in(self) -> Iterator[None]:
        """The vendor has the message: whatever fails now, it must not be sent again."""
        try:
            yield
        except (VendorFailed, VendorTimeout, NoAnswer):
            raise
        except ProxyError as fault:
            raise VendorFailed(f"AskHandle took the message, but then: {fault.message}") from fault

    async def _poll(self, uuid: str, until: float) -> Object:
        path = f"/messages/{uuid}/"
        answer = await self._authorized(lambda auth: self.get(path, until=until, headers=auth), until)
        self.accept(answer)
        return self._object(answer)

    async def _authorized(self, call: Callable[[Headers], Awaitable[Answer]], until: float) -> Answer:
        """Call with a token. Where a fetched one is refused, nothing came of the call: once more, with a new one."""
        token = self._token or await self._fetched("", until)
        answer = await call({"authorization": f"Token {token}"})
        if answer.status in (401, 403) and self.options.token is None:
            token = await self._fetched(token, until)
            answer = await call({"authorization": f"Token {token}"})
        return answer

    async def _fetched(self, stale: str, until: float) -> str:
        """A token other than the stale one. Of many that want one, one log-in fetches it, or fails, for them all."""
        if self._token != stale:
            return self._token
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._login(self.deadline()))
            self._fetching.add_done_callback(self._keep)
        fetching = self._fetching
        self._waiting += 1
        try:
            with self.opening():
                try:
                    async with asyncio.timeout_at(until):
                        return await asyncio.shield(fetching)
                except TimeoutError as fault:
                    raise self.translated(fault, "timeout") from None
        finally:
            self._waiting -= 1
            if not self._waiting:
                fetching.cancel()

    def _keep(self, fetching: asyncio.Task[str]) -> None:
        self._fetching = None
        if not fetching.cancelled() and fetching.exception() is None:
            self._token = fetching.result()

    async def _login(self, until: float) -> str:
        assert self.options.password is not None
        login = {"username": self.options.username, "password": self.options.password.get_secret_value()}
        answer = await self.post("/auth/api-token", login, until=until)  # documented without a slash at its end
        if answer.status in (400, 401, 403):
            raise VendorAuthFailed(f"AskHandle gave no token (HTTP {answer.status}): check `username` and `password`")
        self.accept(answer)
        token = self.text(self._object(answer), "token")
        if not re.fullmatch(r"[!-~]+", token):
            raise self.garbled("gave no token")
        return token

    def _said(self, message: Object) -> str:
        """The answer; null and blank are "not yet" [seen in client code]."""
        answer = self.text(message, "support_answer")
        return answer if answer.strip() else ""

    def _object(self, answer: Answer) -> Object:
        found = answer.json()
        if not isinstance(found, Mapping):
            raise self.garbled("answered with something else than a JSON object")
        return found


_TRANSIENT = (RateLimited, VendorFailed, VendorRateLimited, VendorUnavailable)
_SILENCE = (
    "AskHandle took the message and did not answer within `poll_timeout`: in 'Combined Data' mode it answers only from "
    "an uploaded data source; or its bot is off for this room, the session was ended, or a human has taken over. Look "
    "at the room in its dashboard"
)
