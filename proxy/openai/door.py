"""A door for asking bots, as an ASGI endpoint: a request becomes an ask, the running replies become its answer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import InvalidRequest
from proxy.messages import Ask, Key
from proxy.openai.delivery import BYTES_PER_TOKEN, Dialect, Form, HeaderValues, deliver, read_body
from proxy.openai.models import Models
from proxy.openai.request import ChatRequest
from proxy.relay import Model, Relay
from proxy.reply import Listener, Reply
from proxy.telemetry import Receive, Scope, Send

CONTACT_KEYS = ("email", "phone_number", "nickname")

_ID = re.compile(r"[\x21-\x7e]{1,256}\Z")


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a request may say which conversation it belongs to, and who is speaking: header and metadata names."""

    scope_headers: Sequence[str] = ()
    scope_metadata: Sequence[str] = ()
    user_headers: Sequence[str] = ()

    def scope(self, headers: HeaderValues, metadata: Mapping[str, str]) -> tuple[str, str]:
        """The conversation id and where it came from; the first source present counts."""
        for name in self.scope_headers:
            if (value := _header(headers, name)) is not None:
                return value, name
        for name in self.scope_metadata:
            if name in metadata:
                return metadata[name], f"metadata.{name}"
        return "", ""

    def end_user(self, headers: HeaderValues) -> str:
        """The person a front end names in a header."""
        return next((value for name in self.user_headers if (value := _header(headers, name))), "")


def _header(headers: HeaderValues, name: str) -> str | None:
    value = headers.get(name.lower().encode())
    return None if value is None else value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of a body and seconds of a silence."""

    max_body_bytes: int
    heartbeat: float


@dataclass(slots=True)
class Door:
    """One path: `parse` reads its requests, `dialect` writes its answers for the name of a model."""

    parse: Callable[[bytes], ChatRequest]
    dialect: Callable[[str], Dialect]
    relay: Relay
    models: Models
    whereabouts: Whereabouts
    limits: Limits
    log_content: bool = field(default=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request = self.parse(await read_body(headers, receive, limit=self.limits.max_body_bytes))
        known = scope["parley"]
        model = self.models.find(request.model, scope["parley.key"])
        known |= {"model": model.name, "stream": request.stream}
        ask, ignored = self._ask(headers, scope["parley.key"], request, model)
        dialect = self.dialect(request.model)
        form = Form(dialect, request.stream, request.include_usage, request.prompt_tokens, ignored)
        replies = await self._replies(model, ask, request.n)
        try:
            await deliver(scope, receive, send, replies, form, heartbeat=self.limits.heartbeat)
        finally:
            if self.log_content:
                known["messages"] = [f"{message.role}: {message.text}" for message in request.messages]
                known["reply"] = "\n".join(reply.text for reply in replies)

    async def _replies(self, model: Model, ask: Ask, n: int) -> Sequence[Reply]:
        if n == 1:
            return [await self.relay.ask(model, ask)]
        options = model.options
        if options.recap == "refuse" and any(message.role == "assistant" for message in ask.messages):
            alone = (
                "This bot can go on in one conversation only, as its configuration says `recap: refuse`: leave `n` out"
            )
            raise InvalidRequest(alone, param="n", code="unsupported_value")
        if n > options.max_concurrency + options.queue:
            raise InvalidRequest("This bot cannot answer so often at a time: ask for less", param="n")
        replies: list[Reply] = []
        try:
            for choice in range(n):
                replies.append(await self.relay.ask(model, ask._replace(choice=choice)))
        except BaseException:
            with Listener(replies):  # and leave: those that have begun are as any that nobody listens to
                raise
        return replies

    def _ask(self, headers: HeaderValues, key: Key, request: ChatRequest, model: Model) -> tuple[Ask, Sequence[str]]:
        ignored = [*request.ignored]
        scope_id, source = self.whereabouts.scope(headers, request.metadata)
        if source and not _ID.match(scope_id):
            ignored.append(source)
            scope_id = ""
        idempotency_key = _header(headers, "idempotency-key") or ""
        if idempotency_key and not _ID.match(idempotency_key):
            ignored.append("idempotency-key")
            idempotency_key = ""
        if model.options.strict and ignored:
            raise InvalidRequest(
                f"`{ignored[0]}` is nothing that this bot can honour, and its configuration says `strict: true`: "
                "leave it out",
                param=ignored[0],
                code="unsupported_parameter",
            )
        most = request.max_tokens
        if most is not None and model.options.max_tokens == "ignore":
            ignored.append(request.limit)
            most = None
        contact = {name: request.metadata[name] for name in CONTACT_KEYS if request.metadata.get(name)}
        if request.user:
            contact.setdefault("nickname", request.user)
        kept = {k: v for k, v in request.metadata.items() if k not in (*CONTACT_KEYS, *self.whereabouts.scope_metadata)}
        ask = Ask(
            tenant=key.name,
            messages=request.messages,
            end_user=request.end_user or self.whereabouts.end_user(headers),
            scope=scope_id,
            contact=contact,
            metadata=kept,
            stream=request.stream,
            body=request.digest,
            repeated=headers.get(b"x-stainless-retry-count", b"").lstrip(b"0").isdigit(),
            idempotency_key=idempotency_key,
            stop=request.stop,
            most=None if most is None else most * BYTES_PER_TOKEN,
        )
        return ask, ignored
