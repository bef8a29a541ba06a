"""A pretended vendor: the door every simulated API stands behind. Checks, counts and times calls, keeps the truth."""

from collections.abc import Mapping
from dataclasses import asdict
from time import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from proxy.simulator import bot, faults
from proxy.simulator.answer import Answer, Refusal, Wait, deliver, whole
from proxy.simulator.bot import Conversation
from proxy.simulator.call import Call, Route, Violation, body
from proxy.simulator.faults import NONE, Fault
from proxy.simulator.form import read

KEPT = 10_000
"""Calls, violations and conversations remembered, each."""


class Vendor:
    """What the vendors have in common. A vendor adds its routes, its credential check and its way to say no."""

    kinds: frozenset[str] = faults.KINDS
    telling: frozenset[str] = frozenset()
    refused_credential = 401

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        self.latency, self.gap = latency, gap
        self.conversations: dict[str | int, Conversation] = {}
        self.calls: list[Call] = []
        self.violations: list[Violation] = []
        self.routes: tuple[Route, ...] = ()
        self._coming: list[Fault] = []
        self._made: list[Fault] = []

    def fail(
        self, fault: str, times: int = 1, on: str = "ask", *,
        seconds: float | None = None, megabytes: float = 8, location: str = "redirected",
    ) -> Fault:  # fmt: skip
        """The next `times` calls of operation `on` ("*": any) meet this fault. ValueError for unknown ones."""
        operations = {"*", *(route.operation for route in self.routes)}
        if fault not in self.kinds or on not in operations:
            raise ValueError(f"{fault!r} on {on!r}: faults {sorted(self.kinds)}, operations {sorted(operations)}")
        made = Fault(fault, on, seconds, megabytes, location, Wait(seconds))
        self._coming += [made] * min(times, KEPT)
        self._made = [*self._made[-999:], made]
        return made

    def release(self) -> None:
        """Ends every waiting `slow` and `stall`."""
        for fault in self._made:
            fault.release()

    def forget(self) -> None:
        """Drops all conversations at the vendor; their entries can still be read here."""
        for conversation in self.conversations.values():
            conversation.forgotten = True

    def reset(self) -> None:
        """No conversations, calls, violations or faults any more; modes stay as they are."""
        self.release()
        for kept in (self._coming, self.conversations, self.calls, self.violations):
            kept.clear()

    @property
    def hung_up(self) -> int:
        """How many callers left before their answer had been sent whole."""
        return sum(call.hung_up for call in self.calls)

    def transcript(self) -> dict[str, Any]:
        """Everything as JSON values."""
        shown = ("method", "path", "operation", "status", "when", "hung_up")
        return {
            "conversations": [asdict(conversation) for conversation in self.conversations.values()],
            "calls": [{name: getattr(call, name) for name in shown} for call in self.calls],
            "violations": [asdict(violation) for violation in self.violations],
            "hung_up": self.hung_up,
        }

    def admit(self, call: Call) -> None:
        """Refuses the call unless it carries the credential."""
        raise NotImplementedError

    def no(self, refusal: Refusal) -> Answer:
        """The refusal in the vendor's own form."""
        raise NotImplementedError

    def missing(self, call: Call) -> Answer:
        """A path or method that the documents do not know."""
        known = any(route.tail(call.path) is not None for route in self.routes)
        raise Refusal(405, "Method not allowed.") if known else Refusal(404, "Not found.")

    def open(self, handle: str | int, fields: Mapping[str, Any] | None = None) -> Conversation:
        """A new conversation; the oldest goes when there are too many."""
        while len(self.conversations) >= KEPT:
            del self.conversations[next(iter(self.conversations))]
        conversation = self.conversations[handle] = Conversation(handle, fields=dict(fields or {}))
        return conversation

    def find(self, handle: str | int, fault: Fault, lost: Refusal) -> Conversation:
        """The conversation, or `lost` is raised: a violation only if the handle was never given out."""
        conversation = self.conversations.get(handle)
        if conversation and fault.kind == "forgotten":
            conversation.forgotten = True
        if conversation and not conversation.forgotten:
            return conversation
        lost.forbidden = conversation is None
        raise lost

    def turn(self, conversation: Conversation, text: str, call: Call, markup: bool = False) -> str | None:
        """Takes in what was said, with all fields of the call, and answers; None when there is to be no answer."""
        conversation.add("user", text, call.fields)
        reply = None if conversation.paused else faults.spoken(bot.answer(conversation, markup), call.fault)
        if reply is not None:
            conversation.add("bot", reply)
        return reply

    def violate(self, call: Call, message: str) -> None:
        """Notes that the documents forbid this call."""
        self.violations.append(Violation(call.method, call.path, message))
        del self.violations[:-KEPT]

    def json(self, value: Any, call: Call, status: int = 200) -> Answer:
        return whole(faults.written(value, call.fault, self.telling), status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        root = scope.get("root_path", "")
        base = f"{request.url.scheme}://{request.url.netloc}{root}"
        path = scope["path"].removeprefix(root)
        call = Call(request.method, path, time(), request.headers, base, request.url.query)
        self.calls.append(call)
        del self.calls[:-KEPT]
        try:
            answer = await self._answer(call, request)
        except ClientDisconnect:
            call.hung_up = True
            return
        call.release()
        call.status = answer.status
        call.hung_up = not await deliver(answer, self.gap, receive, send)

    async def _answer(self, call: Call, request: Request) -> Answer:
        try:
            route = self._route(call)
            if route is None:
                return self.missing(call)
            if route.keyed:
                self.admit(call)
            call.data = await body(request, route.limit)
            if route.form is not None and (call.data or route.body):
                call.fields = read(call.data, call.headers.get("content-type", ""), route.form)
            call.fault = self._fault(route.operation)
            return self._performed(route, call)
        except Refusal as refusal:
            if refusal.forbidden:
                self.violate(call, refusal.message)
            return self.no(refusal)

    def _route(self, call: Call) -> Route | None:
        for route in self.routes:
            tail = route.tail(call.path)
            if tail is not None and route.method == call.method:
                call.operation, call.tail = route.operation, tail
                return route
        return None

    def _fault(self, operation: str) -> Fault:
        for at, fault in enumerate(self._coming):
            if fault.on in (operation, "*"):
                return self._coming.pop(at)
        return NONE

    def _performed(self, route: Route, call: Call) -> Answer:
        refusal = call.fault.refusal()
        answer = self._failed(route, call, refusal) if refusal else faults.distorted(route.handler(call), call.fault)
        if route.operation == "ask":
            answer.before.insert(0, Wait(self.latency))
        return answer

    def _failed(self, route: Route, call: Call, refusal: Refusal) -> Answer:
        if call.fault.kind in faults.HEARD:
            route.handler(call)
        if call.fault.kind == "gateway-timeout":
            return faults.page(504, "504 Gateway Time-out")
        if refusal.status == 401:
            refusal.status = self.refused_credential
        answer = self.no(refusal)
        answer.headers.update(call.fault.headers())
        return answer
