"""A pretended vendor: the door every simulated API stands behind. Checks, counts and times calls, keeps the truth."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from proxy.simulator import bot, faults
from proxy.simulator.answer import Answer, Refusal, Wait, deliver
from proxy.simulator.bot import Conversation
from proxy.simulator.call import Call, Route, read
from proxy.simulator.faults import Fault

ASKED_FAULT = re.compile(r"(?:\A|\n)fault ([a-z-]+)\s*\Z")
KEPT = 10_000
"""Calls, violations, conversations and the like remembered, each."""


class Vendor:
    """What the vendors have in common. A vendor adds its routes, its credential and its way to say no."""

    kinds: frozenset[str] = faults.KINDS
    authorization = ""
    """The one header by this name that opens the door, with our attributes in it; empty: none is looked at."""

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        self.latency, self.gap = latency, gap
        self.conversations: dict[str | int, Conversation] = {}
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.routes: tuple[Route, ...] = ()
        self._faults: list[Fault] = []

    def fail(
        self, fault: str, times: int = 1, on: str = "ask", *, seconds: float | None = None, megabytes: float = 8
    ) -> Fault:
        """The next `times` calls of operation `on` meet this fault. ValueError for unknown ones."""
        operations = {route.operation for route in self.routes}
        if fault not in self.kinds or on not in operations:
            raise ValueError(f"{fault!r} on {on!r}: faults {sorted(self.kinds)}, operations {sorted(operations)}")
        self._faults.append(Fault(seconds, fault, on, times, megabytes))
        return self._faults[-1]

    def release(self) -> None:
        """Ends every waiting `slow` and `stall`."""
        for fault in self._faults:
            fault.release()

    def forget(self) -> None:
        """Drops all conversations at the vendor; their entries can still be read here."""
        for conversation in self.conversations.values():
            conversation.forgotten = True

    def reset(self) -> None:
        """No conversations, calls, violations or faults any more; modes stay as they are."""
        self.release()
        for kept in (self._faults, self.conversations, self.calls, self.violations):
            kept.clear()

    @property
    def hung_up(self) -> int:
        """How many callers left before their answer had been sent whole."""
        return sum(call.hung_up for call in self.calls)

    def transcript(self) -> list[dict[str, Any]]:
        """All conversations as JSON values."""
        return [asdict(conversation) for conversation in self.conversations.values()]

    def no(self, refusal: Refusal) -> Answer:
        """The refusal in the vendor's own form."""
        raise NotImplementedError

    def open(self, handle: str | int, fields: Mapping[str, Any] | None = None) -> Conversation:
        """A new conversation."""
        conversation = Conversation(handle, fields=dict(fields or {}))
        keep(self.conversations, handle, conversation)
        return conversation

    def find(self, handle: str | int, call: Call, lost: Refusal) -> Conversation:
        """The conversation, or `lost` is raised: a violation only if the handle was never given out."""
        conversation = self.conversations.get(handle)
        if conversation and call.fault.kind == "forgotten":
            conversation.forgotten = True
        if conversation and not conversation.forgotten:
            return conversation
        lost.forbidden = conversation is None
        raise lost

    def turn(self, conversation: Conversation, text: str, call: Call, markup: bool = False) -> str | None:
        """Takes in what was said, with all fields of the call, and answers; None when there is to be no answer."""
        conversation.add("user", text, call.fields)
        reply = None if conversation.paused else call.fault.spoken(bot.answer(conversation, markup))
        if reply is not None:
            conversation.add("bot", reply)
        return reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        call = Call(request.method, path, request.headers, request.url)
        self.calls.append(call)
        del self.calls[:-KEPT]
        try:
            answer = await self._answer(call, request)
        except ClientDisconnect:
            call.hung_up = True
            return
        # What a call carried is let go of; thousands of calls are remembered.
        call.data, call.fields, call.status = b"", {}, answer.status
        if call.operation == "ask":
            answer.before.insert(0, Wait(self.latency))
        call.hung_up = not await deliver(answer, self.gap, receive, send)

    async def _answer(self, call: Call, request: Request) -> Answer:
        try:
            route = self._route(call)
            key = self.authorization.format_map(vars(self)) if route.keyed else ""
            if key and call.headers.get("authorization") != key:
                raise Refusal(401, "Unauthorized.")
            call.data = await request.body()
            if route.form is not None:
                call.fields = read(call.data, call.headers.get("content-type", ""), route.form)
            call.fault = self._asked_for(call) or self._fault(route.operation)
            told = call.fault.refusal()
            # A failure comes after the bot has taken the message in, all other refusals before.
            if told is None or told.status == 500:
                answer = call.fault.distort(route.handler(call))
            if told:
                raise told
        except Refusal as refusal:
            if refusal.forbidden:
                self.violations.append(f"{call.method} {call.path}: {refusal.message}")
                del self.violations[:-KEPT]
            answer = self.no(refusal)
        answer.headers |= call.fault.headers()
        return answer

    def _route(self, call: Call) -> Route:
        for route in self.routes:
            match = re.fullmatch(route.path, call.path)
            if match and route.method == call.method:
                call.operation, call.tail = route.operation, "".join(match.groups())
                return route
        raise Refusal(404, "The documents know no such call.")

    def _asked_for(self, call: Call) -> Fault | None:
        """The fault that a message asks for by its last line, `fault NAME`; the slow ones take a few seconds."""
        said = [value for value in call.fields.values() if isinstance(value, str) and call.operation == "ask"]
        named = [match[1] for text in said if (match := ASKED_FAULT.search(text)) and match[1] in self.kinds]
        return Fault(5.0, named[0], "ask", 0, 8) if named else None

    def _fault(self, operation: str) -> Fault:
        for fault in self._faults:
            if fault.on == operation and fault.left:
                fault.left -= 1
                return fault
        return Fault()


def keep(kept: dict[Any, Any], key: str | int, value: object) -> None:
    """Remembers a thing; the oldest goes when there are too many."""
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
