"""The one use case: find the conversation, let the bot speak, park the handle; again from history if it was lost."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from secrets import token_bytes

from proxy.admission import Admission
from proxy.config import ModelOptions
from proxy.conversation import Continuation, Conversation, Partition, Terms
from proxy.errors import (
    ConversationExpired,
    InvalidRequest,
    ProxyError,
    ShuttingDown,
    StoreUnavailable,
    VendorFailed,
)
from proxy.messages import Ask, BotLoad, Event, Message, Turn, TurnRecord
from proxy.ports import Bot, ConversationStore
from proxy.reply import Replies, Reply
from proxy.seats import Seats
from proxy.speech import Speech
from proxy.telemetry import Sink, log
from proxy.transcript import Chain, Chat, cut, recap, says_nothing, undated


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
        self._admissions: dict[str, Admission] = {}
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
        reply.speak(partial(self._recorded, model, conversation, turn, reply, utility=utility))
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

    def _admission(self, model: Model) -> Admission:
        if model.name not in self._admissions:
            options = model.options
            self._admissions[model.name] = Admission(
                model.name,
                concurrency=options.max_concurrency,
                queue=options.queue,
                failures=options.breaker.failures,
                pause=options.breaker.pause,
            )
        return self._admissions[model.name]

    def loads(self) -> Sequence[BotLoad]:
        """What goes on at every bot that was asked so far."""
        return [admission.load for admission in self._admissions.values()]

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
        forwarded = {**model.bot.forwarded(turn)}
        if priming := forwarded.get("priming", ""):
            today = datetime.fromtimestamp(self._clock(), UTC).date()
            priming = forwarded["priming"] = undated(priming, today)
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

    async def _recorded(
        self, model: Model, conversation: Conversation, turn: Turn, reply: Reply, *, utility: bool
    ) -> None:
        """The whole reply, once the bot may be asked, and its record; what no client asked for ends here too."""
        record = reply.record
        record.outcome = "left"
        try:
            async with self._admission(model).entered(sibling=reply.ask.choice > 0):
                await self._spoken(model, conversation, turn, reply, utility=utility)
            record.outcome = "ok"
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
    ) -> None:
        """From the best conversation there is; from a new one if the vendor has forgotten that."""
        if utility:
            continuation = conversation.rebuilt("")._replace(how="utility")
        elif reply.ask.choice:  # beside the first, which may take what there is
            continuation = conversation.rebuilt("in-use")
        else:
            continuation = await self._seats.take(conversation)
        try:
            await self._said(model, conversation, turn, continuation, reply)
        except ConversationExpired as lost:
            if continuation.parked is None:
                raise VendorFailed(lost.message, delivered=False) from lost
            await self._said(model, conversation, turn, conversation.rebuilt("vendor-forgot"), reply)

    async def _said(
        self, model: Model, conversation: Conversation, plain: Turn, continuation: Continuation, reply: Reply
    ) -> None:
        """One try at one vendor conversation, from handing the turn over to parking the handle."""
        continuation, turn = _told(model, plain, continuation)
        record = reply.record
        record.how, record.reason = continuation.how, continuation.reason
        speech = Speech(markdown=model.options.html == "markdown", stop=reply.ask.stop, most=reply.ask.most)
        with self._seats.held(continuation.parked):
            try:
                async with aclosing(model.bot.reply(turn)) as events:
                    async for event in events:
                        for said in speech.heard(event):
                            reply.say(said)
                        if speech.cut:
                            break
                    # Else no next request will hold this reply.
                    keeps = continuation.how != "utility" and not says_nothing(Message("assistant", speech.text))
                    if speech.cut and keeps and not speech.ended:
                        await self._hear_out(events, speech)
            except ConversationExpired:
                raise
            except ProxyError as fault:
                if not fault.delivered and continuation.parked is not None:
                    await self._seats.park(continuation.parked)
                raise
            finish = speech.finish
            handle = speech.handle or turn.handle
            record.renamed = turn.handle is not None and handle != turn.handle
            if handle is not None and keeps and speech.ended:
                renamed = record.renamed or continuation.renamed
                reply.parked = conversation.parked(handle, speech.text, self._clock(), renamed=renamed)
                record.parked = await self._seats.park(reply.parked)
        reply.say(finish)

    async def _hear_out(self, events: AsyncGenerator[Event, None], speech: Speech) -> None:
        """Hear a reply that was cut to its end, for the conversation's sake: what was given stands anyway."""
        try:
            async with asyncio.timeout(self._rules.linger):
                async for event in events:
                    speech.heard(event)  # nothing of it goes out
        except asyncio.CancelledError:  # nobody listens any more, or it is time to go: the finish can still be told
            if task := asyncio.current_task():
                task.uncancel()
        except (TimeoutError, ProxyError):
            pass
        except Exception as fault:  # noqa: BLE001 - an adapter's mistake costs the conversation, not the reply
            log.error("a cut reply failed", exc_info=fault)


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
            continuation = continuation._replace(reason="recap-off")
    handle = continuation.parked.handle if continuation.parked is not None else None
    return continuation, plain._replace(handle=handle, recap=block, priming_changed=continuation.priming_changed)
