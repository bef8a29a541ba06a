"""The one use case: find the conversation, let the bot speak, park the handle; again from history if it was lost."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from secrets import token_bytes

from proxy.config import ModelOptions
from proxy.conversation import Continuation, Conversation, Partition, Terms
from proxy.errors import (
    ConversationExpired,
    InvalidRequest,
    NoAnswer,
    ProxyError,
    ShuttingDown,
    StoreUnavailable,
    VendorFailed,
)
from proxy.markup import MarkupFilter
from proxy.messages import Ask, Delta, Event, Finish, Handle, Message, Turn, TurnRecord
from proxy.ports import Bot, ConversationStore
from proxy.reply import Replies, Reply, Said
from proxy.seats import Seats
from proxy.telemetry import Sink, log
from proxy.transcript import Chain, Chat, canonical_text, cut, recap, says_nothing, undated


@dataclass(frozen=True, slots=True)
class Model:
    """A bot under the name that clients ask for, with the settings of its entry in the configuration."""

    name: str
    bot: Bot
    options: ModelOptions


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every conversation: the key of the fingerprints (None: the store's own), and times in seconds."""

    secret: bytes | None
    idle_ttl: float
    linger: float
    marks: bool = True
    utility_prompts: Sequence[re.Pattern[str]] = ()


class Relay:
    """Answers asks. Knows every running reply, so that a shutdown can wait for them."""

    def __init__(
        self, store: ConversationStore, rules: Rules, *, sink: Sink, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._rules = rules
        self._secret = rules.secret
        self._makeshift = token_bytes(32)
        self._sink = sink
        self._clock = clock
        self._replies = Replies()
        self._seats = Seats(store, self._replies, clock)
        self.draining = False

    async def ask(self, model: Model, ask: Ask) -> Reply:
        """Start the reply, or find it if this ask was made before.

        Raises InvalidRequest if there is nothing to say or the bot cannot carry it.
        """
        chat = cut(ask.messages)
        _require_something_new(chat)
        turn = _plain_turn(model, ask, chat)
        model.bot.check(turn)
        conversation = self._conversation(model, ask, turn, chat, await self._key())
        while first := self._replies.to(ask, conversation.asked):
            if first in self._replies.running or (first.parked and await self._seats.has(first.parked)):
                return first
            self._replies.forget(first)  # the chat has gone on from it
        if self.draining:
            raise ShuttingDown("This proxy is shutting down; try again in a moment", retry_after=1)
        utility = self._is_utility(chat)
        linger = 0 if utility else self._rules.linger
        reply = Reply(ask, conversation.asked, TurnRecord(model.name), linger=linger)
        reply.speak(self._recorded(self._spoken(model, conversation, turn, reply, utility=utility), reply.record))
        self._replies.add(reply)
        return reply

    async def _key(self) -> bytes:
        """The key of the fingerprints: the configured one, else the store's. While that is lost nothing is found."""
        if self._secret is None:
            try:
                self._secret = await self._store.secret()
            except StoreUnavailable:
                return self._makeshift
        return self._secret

    async def drain(self, grace: float) -> None:
        """Take no new asks; wait for the running replies to end, stop what has not after `grace` seconds."""
        self.draining = True
        running = [reply.ended for reply in self._replies.running]
        if running:
            await asyncio.wait(running, timeout=grace)
            self.stop()
            await asyncio.wait(running)

    def stop(self) -> None:
        """Hang up on every vendor that is still speaking; their conversations are lost."""
        for reply in self._replies.running:
            reply.stop()

    def _conversation(self, model: Model, ask: Ask, turn: Turn, chat: Chat, key: bytes) -> Conversation:
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        forwarded = {**model.bot.forwarded(turn)}
        priming = forwarded["priming"] = undated(forwarded.get("priming", ""), today)
        partition = Partition(
            tenant=ask.tenant,
            model=model.name,
            bot=model.bot.identity,
            end_user=ask.end_user,
            scope=ask.scope,
            forwarded=forwarded,
        )
        terms = Terms(
            idle_ttl=model.options.idle_ttl or self._rules.idle_ttl,
            marks=self._rules.marks,
            recap=model.options.recap == "forward" and bool(model.options.recap_max_chars),
            scoped=bool(ask.scope),
        )
        return Conversation(chat, Chain(key, partition.digest()), terms, priming=priming)

    def _is_utility(self, chat: Chat) -> bool:
        newest = chat.turn[-1].text  # whatever its role: some are system messages
        return any(pattern.search(newest) for pattern in self._rules.utility_prompts)

    async def _recorded(self, events: AsyncGenerator[Said, None], record: TurnRecord) -> AsyncGenerator[Said, None]:
        """Pass events on and keep the record; what no client asked for ends here too, whatever happens."""
        record.outcome = "left"
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Delta):
                        record.deltas += 1
                        record.first_delta = record.first_delta or time.monotonic()
                    else:
                        record.outcome = "ok"
                    yield event
        except ProxyError as fault:
            record.outcome = fault.code
            raise
        except Exception as fault:
            record.outcome = "internal_error"
            log.error("a turn failed", extra={"parley": {"model": record.model}}, exc_info=fault)
            raise
        finally:
            record.ended = time.monotonic()
            self._sink(record)

    async def _spoken(
        self, model: Model, conversation: Conversation, turn: Turn, reply: Reply, *, utility: bool
    ) -> AsyncGenerator[Said, None]:
        """The reply, from the best conversation there is; from a new one if the vendor has forgotten that."""
        continuation = (
            replace(conversation.rebuilt(""), how="utility") if utility else await self._seats.take(conversation)
        )
        try:
            async with aclosing(self._said(model, conversation, turn, continuation, reply)) as events:
                async for event in events:
                    yield event
        except ConversationExpired as lost:
            if continuation.parked is None:
                raise VendorFailed(lost.message, delivered=False) from lost
            again = conversation.rebuilt("vendor-forgot")
            async with aclosing(self._said(model, conversation, turn, again, reply)) as events:
                async for event in events:
                    yield event

    async def _said(
        self, model: Model, conversation: Conversation, plain: Turn, continuation: Continuation, reply: Reply
    ) -> AsyncGenerator[Said, None]:
        """One try at one vendor conversation, from handing the turn over to parking the handle."""
        continuation, turn = _told(model, plain, continuation)
        record = reply.record
        record.how, record.reason = continuation.how, continuation.reason
        speech = _Speech(model)
        with self._seats.held(continuation.parked):
            try:
                async with aclosing(model.bot.reply(turn)) as events:
                    async for event in events:
                        for said in speech.heard(event):
                            yield said
            except ConversationExpired:
                raise
            except ProxyError as fault:
                if not fault.delivered and continuation.parked is not None:
                    await self._seats.park(continuation.parked)
                raise
            finish = speech.finish
            handle = speech.handle or turn.handle
            told = not says_nothing(Message("assistant", speech.text))  # else no next request will hold this reply
            record.renamed = turn.handle is not None and handle != turn.handle
            if handle is not None and told and continuation.how != "utility":
                renamed = record.renamed or continuation.renamed
                reply.parked = conversation.parked(handle, speech.text, self._clock(), renamed=renamed)
                record.parked = await self._seats.park(reply.parked)
        yield finish


class _Speech:
    """What a bot has said so far, as the client is given it."""

    def __init__(self, model: Model) -> None:
        self.handle: Handle | None = None
        self._finish: Finish | None = None
        self._pieces: list[str] = []
        self._blank = ""
        self._markup = MarkupFilter() if model.options.html == "markdown" else None

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def finish(self) -> Finish:
        if self._finish is None:
            raise VendorFailed("The bot's reply came to no end: its adapter is at fault")
        return self._finish

    def heard(self, event: Event) -> Iterator[Delta]:
        """What of this event goes on to the client now. Raises NoAnswer at the end of a reply that says nothing."""
        if isinstance(event, Handle):
            self.handle = event
        elif isinstance(event, Delta):
            yield from self._given(event.text if self._markup is None else self._markup.feed(event.text))
        else:
            if self._markup is not None:
                yield from self._given(self._markup.flush())
            self._finish = event
            if not canonical_text(Message("assistant", self.text)):
                raise NoAnswer("The bot's reply was blank; ask again in other words, or look at it at its vendor")

    def _given(self, text: str) -> Iterator[Delta]:
        text = self._blank + text
        self._blank = "" if self._pieces or text.strip() else text  # a blank reply is a fault: it keeps its status
        if text and not self._blank:
            self._pieces.append(text)
            yield Delta(text)


def _require_something_new(chat: Chat) -> None:
    if not chat.turn:
        raise InvalidRequest(
            "There is nothing new to say: `messages` must end with a message from the user, with text or an attachment",
            param="messages",
        )


def _plain_turn(model: Model, ask: Ask, chat: Chat) -> Turn:
    return Turn(
        new=chat.turn,
        history=chat.history,
        priming=chat.priming if model.options.system_prompt == "forward" else "",
        end_user=ask.end_user,
        contact=ask.contact,
        metadata=ask.metadata,
        stream=ask.stream,
    )


def _told(model: Model, plain: Turn, continuation: Continuation) -> tuple[Continuation, Turn]:
    """The turn for this continuation: with its handle, and with a recap of what the conversation has not seen."""
    options = model.options
    block = ""
    if continuation.untold:
        if options.recap == "refuse" and continuation.how != "utility":
            raise InvalidRequest(
                "No conversation with this bot fits this history, and its configuration says `recap: refuse`: "
                "start a new chat",
                param="messages",
                code="conversation_not_found",
            )
        if options.recap == "forward" and options.recap_max_chars:
            block = recap(continuation.untold, max_chars=options.recap_max_chars, wording=options.recap_text)
        elif continuation.how == "rebuilt":
            continuation = replace(continuation, reason="recap-off")
    handle = continuation.parked.handle if continuation.parked is not None else None
    return continuation, replace(plain, handle=handle, recap=block, priming_changed=continuation.priming_changed)
