"""Clients at their whims, before relays on one store: Hypothesis says who does what next.

Every rule ends when there is nothing left to do; then the witness must have nothing to complain of.
"""

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.config import ModelOptions
from proxy.errors import ProxyError
from proxy.messages import Ask, Attachment, Finish, Message, TurnRecord
from proxy.relay import Model, Relay, Rules
from proxy.reply import Listener, ListenerLeft, Reply
from tests.continuity.shelf import STATES, Cupboard, InMemory, Watched
from tests.continuity.timeless import TimelessLoop
from tests.continuity.truth import ASKING, IDLE_TTL, LINGER, Plan, Request, TruthfulBot, Witness

EPOCH = 1_700_000_000.0
NAMES = ("shop", "help")
ASK_FIELDS = {*Ask._fields} - {"body"}


@dataclass(frozen=True)
class Owner:
    """Whose chat it is."""

    tenant: str
    end_user: str = ""
    scope: str = ""


OWNERS = (
    Owner("t1", "ann"),
    Owner("t1", "ann", "s1"),
    Owner("t1", "bob"),
    Owner("t2", "ann"),
    Owner("t1", "ann", "s2"),
    Owner("t1", "bob", "s1"),
    Owner("t1", "", "s1"),
    Owner("t1"),
)

# What a client sets besides messages. Two that must not be mixed differ by an id only; a date of today parts nothing.
PRIMINGS = {
    "": "",
    "one": "You serve 3f2b8c1e-0d4a-4b6e-9c7d-000000000001. Be kind.",
    "two": "You serve 3f2b8c1e-0d4a-4b6e-9c7d-000000000002. Be kind.",
    "dated": "Be brief. It is {now:%Y-%m-%d %H:%M}.",
}
SETTINGS = (("", ""), ("one", ""), ("two", ""), ("dated", ""), ("one", "gold"), ("", "gold"))
OTHER_SETTING = {1: 2, 2: 1}
any_setting = st.sampled_from([0, 0, 1, 1, 2, 2, 3, 4, 5])

OK = Plan()
PLANS = (
    *[OK, Plan(held=True), Plan(echo=True), Plan(echo=True, held=True), Plan(pieces=4, held=True)] * 4,
    Plan(thinks=True, held=True),
    Plan(late_handle=True),
    Plan(renames=True),
    Plan(renames=True, held=True),
    *[Plan("undelivered", which, held=which % 2 == 0) for which in range(5)],
    *[Plan("unknown", which, after, held=after == 1) for which in range(2) for after in range(3)],
    *[Plan("lost"), Plan("lost", held=True), Plan("no-answer"), Plan("no-answer", after=1), Plan("blank")],
    *[Plan("mute"), Plan("mute", held=True), Plan("like-an-error")],
)

any_plan = st.sampled_from(PLANS)
any_number = st.integers(0, 255)


MOST_CHATS = 12
HOUSES = 2
FORMS = ("plain", "plain", "plain", "eager", "wrapped", "wrapped", "two", "system", "image")
RENDITIONS: dict[str, Callable[[str], str]] = {
    "blanks": lambda text: f" {text.replace(' ', '  ')}\n",
    "lines": lambda text: text.replace("\n", "\r\n"),
    "invisible": lambda text: "\ufeff" + text.replace("a", "a\u200b"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "think": lambda text: f"<think>\nwhat was it?\n</think>\n\n{text}",
}


@dataclass(eq=False)
class Chat:
    """A chat as its client sees it. `ask` is what its newest turn is known by."""

    owner: Owner
    model: int = 0
    setting: int = 0
    messages: list[Message] = field(default_factory=list)
    ask: int = 0
    key: str = ""
    twin: bool = False
    eager: bool = False
    waiting: Request | None = None
    last: Request | None = None

    @property
    def answered(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "assistant"

    def copy(self) -> "Chat":
        return replace(self, messages=list(self.messages), waiting=None, last=None, eager=False)


@dataclass(eq=False)
class House:
    """A process: a relay with its own connection to the store."""

    number: int
    relay: Relay
    store: Watched


async def asked(relay: Relay, model: Model, ask: Ask) -> Reply:
    """The running reply, whether the relay hands it out at once or after a while."""
    reply: Any = relay.ask(model, ask)
    return reply if isinstance(reply, Reply) else await reply


class Ids:
    """Ids as by chance, but the same ones in every run of an example: what is drawn may not depend on them."""

    made = 0

    def __call__(self, size: int) -> str:
        Ids.made += 1
        return sha256(b"%d" % Ids.made).hexdigest()[: 2 * size]


class Machine(RuleBasedStateMachine):
    """Subclasses say which stores, what is broken, and by which rule that must be found."""

    cupboard: ClassVar[Cupboard] = InMemory()
    relay: ClassVar[type[Relay]] = Relay
    disguise: ClassVar[Callable[[Watched], Any]] = staticmethod(lambda store: store)
    complains_of: ClassVar[tuple[str, ...]] = ("",)
    total: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        Ids.made = 0
        self.loop = TimelessLoop()
        self.witness = Witness(self.loop)
        self.chats: list[Chat] = []
        self.houses: list[House] = []
        self.models = [Model(n, TruthfulBot(self.witness, n), ModelOptions(vendor="truth")) for n in NAMES]
        self.bursting = False
        self.failing = 0
        self.loop.busy = lambda: any(house.store.in_flight for house in self.houses)
        self.total["examples"] += 1

    # --- the stage

    @initialize(pauses=st.integers(0, 2), max_parked=st.sampled_from([300, 300, 300, 4]))
    def build(self, pauses: int, max_parked: int) -> None:
        self.pauses, self.max_parked = pauses, max_parked
        self.houses = [self._house(), self._house()]
        self._settle()

    def _house(self) -> House:
        async def made() -> House:
            inner = self.cupboard.open(max_parked=self.max_parked, clock=self.clock)
            real = self.cupboard.survives
            store = Watched(inner, self.witness, max_parked=self.max_parked, pauses=self.pauses, real=real)
            rules = Rules(
                secret=b"secret", idle_ttl=IDLE_TTL, linger=LINGER, utility_prompts=[re.compile("^### Task:")]
            )
            number = self.witness.number()
            relay = self.relay(type(self).disguise(store), rules, sink=self._recorded, clock=self.clock)
            return House(number, relay, store)

        return self.loop.do(made())

    def clock(self) -> float:
        return EPOCH + self.loop.time()

    def _recorded(self, record: TurnRecord) -> None:
        self.total[f"outcome {record.outcome}"] += 1

    def _settle(self, seconds: float = 0) -> None:
        self.loop.settle(seconds)
        self.witness.settled()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.total["steps"] += 1
        self.failing -= 1
        if self.failing < 0:
            self.witness.store_state = ""
        found = [wrong for wrong in self.witness.violations if wrong.startswith(self.complains_of)]
        if found:
            raise AssertionError("\n".join(found))

    def teardown(self) -> None:
        try:
            if self.houses:
                self._wind_up()
        finally:
            for house in self.houses:
                self.loop.do(house.store.aclose())
            self.loop.finish()
            self.cupboard.lose()
            self.total.update(self.witness.tally)

    def _wind_up(self) -> None:
        """Let all come to its end; whoever asked must have been answered, and the store be within its bounds."""
        self.witness.store_state = ""
        for _ in range(4):  # those who waited for others begin to speak only then
            for call in self.witness.calls:
                call.release(None)
            self._settle()
            self._settle(LINGER)
        if self.witness.requests or self.witness.calls:
            self.witness.wrong("liveness", f"{len(self.witness.requests)} requests never end")
        self.nothing_is_wrong()

    # --- asking

    def _pick(self, number: int, *, idle: bool = True) -> Chat:
        chats = [chat for chat in self.chats if not (idle and chat.waiting)]
        return chats[number % len(chats)]

    @property
    def has_idle(self) -> bool:
        return any(chat.waiting is None for chat in self.chats)

    @property
    def has_scoped(self) -> bool:
        return any(chat.waiting is None and chat.owner.scope for chat in self.chats)

    @property
    def has_history(self) -> bool:
        return any(chat.waiting is None and chat.answered for chat in self.chats)

    def _pick_answered(self, number: int) -> Chat:
        chats = [chat for chat in self.chats if chat.waiting is None and chat.answered]
        return chats[number % len(chats)]

    def _text(self, chat: Chat) -> str:
        if chat.twin:
            return f"And then, u{len(chat.messages)} please é?"
        return f"Question u{1000 + self.witness.number()},\nplease é?"

    def _say(self, chat: Chat, plan: Plan, *texts: str, at: int = 0, **more: Any) -> Request:
        """A new turn."""
        chat.messages += [Message("user", text) for text in texts or (self._text(chat),)]
        chat.ask, chat.key = self.witness.number(), more.get("key", "")
        return self._ask(chat, plan, at=at, **more)

    def _ask(self, chat: Chat, *plans: Plan, at: int = 0, **more: Any) -> Request:
        """Send the chat as it is, and start to listen."""
        owner, (label, plan) = chat.owner, SETTINGS[chat.setting]
        house = self.houses[at % len(self.houses)]
        now = datetime.fromtimestamp(self.clock(), UTC)
        priming = PRIMINGS[label].format(now=now)
        model = self.models[chat.model]
        parting = ("", "") if owner.scope else (label, plan)
        partition = (owner.tenant, model.name, owner.end_user, owner.scope, *parting)
        messages = ([Message("system", priming)] if priming else []) + chat.messages
        ask = {
            "tenant": owner.tenant,
            "messages": messages,
            "end_user": owner.end_user,
            "scope": owner.scope,
            "metadata": {"plan": plan} if plan else {},
            "stream": True,
            "body": sha256(repr((model.name, messages, owner.end_user, plan)).encode()).digest(),
            "repeated": more.get("repeated", False),
            "idempotency_key": more.get("key", ""),
        }
        request = Request(
            chat.ask, house.number, partition, label, priming, tuple(messages), ask["body"], deque(plans),
            self.loop.time(), **more,
        )  # fmt: skip
        self.witness.requests.append(request)
        self.witness.expect(request)
        if self.bursting:
            request.expected, request.waits_for = "", None
        chat.waiting = chat.last = request
        sent = Ask(**{name: value for name, value in ask.items() if name in ASK_FIELDS}, body=lambda: ask["body"])
        request.task = self.loop.create_task(self._listen(chat, request, house, model, sent))
        return request

    async def _listen(self, chat: Chat, request: Request, house: House, model: Model, ask: Ask) -> None:
        ASKING.set(request)
        try:
            request.reply = await asked(house.relay, model, ask)
            with Listener([request.reply]) as request.listener:
                if request.left:
                    request.listener.leave()
                while not request.finished:
                    for _, said in await request.listener.hear():
                        if isinstance(said, Finish):
                            request.finished = True
                            self.witness.heard_end(request)
                        else:
                            request.heard.append(said.text)
        except ListenerLeft:
            pass
        except ProxyError as fault:
            request.fault = fault
        finally:
            request.over = True
        if chat.waiting is request:
            self._answered(chat, request)

    def _answered(self, chat: Chat, request: Request) -> None:
        chat.waiting = None
        if request.finished:
            chat.messages.append(Message("assistant", request.text))
            if chat.eager:
                chat.eager = False
                self._say(chat, OK, at=request.house)

    # --- what clients do

    def _add(self, chat: Chat) -> Chat:
        if len(self.chats) > MOST_CHATS:
            idle = next((other for other in self.chats if other.waiting is None), None)
            if idle is not None:
                self.chats.remove(idle)
        self.chats.append(chat)
        return chat

    @rule(
        owner=st.sampled_from(OWNERS), model=st.integers(0, 1), setting=any_setting, twin=st.booleans(), plan=any_plan
    )
    def start(self, owner: Owner, model: int, setting: int, twin: bool, plan: Plan) -> None:
        """A new chat."""
        self._say(self._add(Chat(owner, model, setting, twin=twin)), plan)
        self._settle()

    @precondition(lambda self: self.has_idle)
    @rule(chat=any_number, plan=any_plan, at=any_number, form=st.sampled_from(FORMS), keyed=st.booleans())
    def send(self, chat: int, plan: Plan, at: int, form: str, keyed: bool) -> None:
        """The next turn, in one of several forms."""
        found = self._pick(chat)
        found.eager = form == "eager"
        key = f"key-{self.witness.number()}" if keyed else ""
        if form == "wrapped":
            self._wrapped(found, plan, at=at, key=key)
        else:
            if form == "system":
                found.messages.append(Message("system", f"It is warm, x{self.witness.number()}."))
            elif form == "image":
                found.messages.append(Message("user", "", (Attachment("image", "image/png", b"%d" % chat),)))
            self._say(found, plan, *([self._text(found), self._text(found)] if form == "two" else []), at=at, key=key)
        self._settle()

    @precondition(lambda self: self.has_idle)
    @rule(chat=any_number, turns=st.integers(1, 3), at=any_number)
    def chatter(self, chat: int, turns: int, at: int) -> None:
        """Some turns without trouble."""
        found = self._pick(chat)
        for i in range(turns):
            if found.waiting is None:
                self._say(found, OK, at=at + i)
                self._settle()

    @precondition(lambda self: self.has_scoped)
    @rule(chat=any_number, turns=st.integers(2, 3), at=any_number)
    def retrieve(self, chat: int, turns: int, at: int) -> None:
        """Some turns in a scope with what was retrieved wrapped around them."""
        chats = [other for other in self.chats if other.waiting is None and other.owner.scope]
        found = chats[chat % len(chats)]
        for _ in range(turns):
            if found.waiting is None:
                self._wrapped(found, OK, at=at)
                self._settle()

    def _wrapped(self, chat: Chat, plan: Plan, **more: Any) -> None:
        """The client keeps the question; what was wrapped around it is sent once."""
        text = self._text(chat)
        self._say(chat, plan, f"Use what is in c{self.witness.number()}.\n\n{text}\n\nBe exact.", **more)
        chat.messages[-1] = Message("user", text)

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, where=any_number, plan=any_plan, in_place=st.booleans())
    def edit(self, chat: int, where: int, plan: Plan, in_place: bool) -> None:
        """Change an earlier question, and ask it anew or go on."""
        found = self._pick_answered(chat)
        places = [i for i, message in enumerate(found.messages) if message.role == "user"]
        at = places[where % len(places)]
        if in_place:
            found.messages[at] = Message("user", f"Edited u{1000 + self.witness.number()}")
            self._say(found, plan)
        else:
            del found.messages[at:]
            self._say(found, plan)
        self._settle()

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, plan=any_plan, at=any_number)
    def regenerate(self, chat: int, plan: Plan, at: int) -> None:
        """Drop the last reply and ask again."""
        found = self._pick_answered(chat)
        while found.answered:
            found.messages.pop()
        if found.messages:
            self._ask(found, plan, at=at)
        self._settle()

    @precondition(lambda self: self.has_idle)
    @rule(chat=any_number, way=st.sampled_from(["", "", "tenant", "end_user", "scope", "model", "setting", "setting"]))
    def fork(self, chat: int, way: str) -> None:
        """A copy of a chat that goes its own way; one that differs in something must never meet the first."""
        copy = self._add(self._pick(chat).copy())
        owner = copy.owner
        others = {"tenant": ("t1", "t2"), "end_user": ("ann", "bob"), "scope": ("s1", "s2", "")}.get(way)
        if way == "model":
            copy.model = 1 - copy.model
        elif way == "setting":
            copy.setting = OTHER_SETTING.get(copy.setting, chat % len(SETTINGS))
        elif others is not None:
            other = next(value for value in others if value != getattr(owner, way))
            copy.owner = replace(owner, **{way: other})
        if way:
            self._say(copy, OK)
            self._settle()

    @precondition(lambda self: self.has_idle)
    @rule(chat=any_number, setting=any_setting, model=st.booleans())
    def switch(self, chat: int, setting: int, model: bool) -> None:
        """The other model, or another system prompt, in the same chat."""
        found = self._pick(chat)
        if model:
            found.model = 1 - found.model
        else:
            found.setting = setting

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, turns=st.integers(1, 2), at=any_number)
    def switch_and_back(self, chat: int, turns: int, at: int) -> None:
        """Some turns with the other model."""
        found = self._pick_answered(chat)
        for model, count in ((1 - found.model, turns), (found.model, 1)):
            for _ in range(count):
                found.model = model
                if found.waiting is None:
                    self._say(found, OK, at=at)
                    self._settle()

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, where=any_number, way=st.sampled_from(sorted(RENDITIONS)))
    def render(self, chat: int, where: int, way: str) -> None:
        """The client keeps a message in another rendition, which is the same to all."""
        found = self._pick_answered(chat)
        at = where % len(found.messages)
        message = found.messages[at]
        if way != "think" or message.role == "assistant":
            found.messages[at] = message._replace(text=RENDITIONS[way](message.text))

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, count=any_number, plan=any_plan)
    def slide(self, chat: int, count: int, plan: Plan) -> None:
        """The client forgets its oldest messages, and goes on."""
        found = self._pick_answered(chat)
        users = [i for i, message in enumerate(found.messages[:-1]) if message.role == "user"]
        del found.messages[: users[count % len(users)] if users else 0]
        self._say(found, plan)
        self._settle()

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, length=any_number, plan=any_plan)
    def cut_short(self, chat: int, length: int, plan: Plan) -> None:
        """The client keeps the beginning of the last reply only, and goes on."""
        found = self._pick_answered(chat)
        text = found.messages[-1].text
        found.messages[-1] = Message("assistant", text[: length % len(text) + 1])
        self._say(found, plan)
        self._settle()

    # --- requests under way

    @property
    def waiting(self) -> list[Chat]:
        return [chat for chat in self.chats if chat.waiting is not None]

    def _leave(self, chat: Chat, keep: int) -> None:
        request = chat.waiting
        assert request is not None
        request.left = True
        if request.listener is not None:
            request.listener.leave()
        chat.waiting = None
        partial = request.text[:keep]
        if partial.strip():
            chat.messages.append(Message("assistant", partial))

    @precondition(lambda self: self.waiting)
    @rule(chat=any_number, keep=st.sampled_from([0, 0, 8, 12, 99]), retried=st.booleans(), repeated=st.booleans())
    def abort(self, chat: int, keep: int, retried: bool, repeated: bool) -> None:
        """The client goes away in the midst, with what it has heard; or comes back at once with the same."""
        found = self.waiting[chat % len(self.waiting)]
        self._leave(found, keep)
        if not retried:
            self._settle()
        elif not found.answered:
            self._ask(found, OK, repeated=repeated, key=found.key)
            self._settle()

    @precondition(lambda self: self.waiting)
    @rule(chat=any_number, keep=st.sampled_from([8, 12, 99, 99]), plan=any_plan, at_once=st.booleans())
    def barge_in(self, chat: int, keep: int, plan: Plan, at_once: bool) -> None:
        """The client interrupts its reply with the next question."""
        found = self.waiting[chat % len(self.waiting)]
        request = found.waiting
        self._leave(found, keep)
        if not at_once:
            self._settle()
        at = next((i for i, house in enumerate(self.houses) if request and house.number == request.house), 0)
        self.bursting = at_once
        self._say(found, plan, at=at)
        self.bursting = False
        self._settle()

    @precondition(lambda self: self.witness.calls)
    @rule(call=any_number, steps=st.sampled_from([1, 1, 2, 3, None, None]))
    def release(self, call: int, steps: int | None) -> None:
        """A bot that was held goes on."""
        calls = self.witness.calls
        calls[call % len(calls)].release(steps)
        self._settle()

    @precondition(lambda self: self.has_idle)
    @rule(chat=any_number, plan=any_plan, at=any_number, repeated=st.booleans())
    def retry(self, chat: int, plan: Plan, at: int, repeated: bool) -> None:
        """A question that got no answer is asked again."""
        found = self._pick(chat)
        if found.messages and not found.answered:
            self._ask(found, plan, at=at, repeated=repeated, key=found.key)
            self._settle()

    @precondition(lambda self: self.waiting)
    @rule(chat=any_number, plan=any_plan, at=any_number, repeated=st.booleans())
    def repeat(self, chat: int, plan: Plan, at: int, repeated: bool) -> None:
        """The same request again while the first is under way."""
        found = self.waiting[chat % len(self.waiting)]
        self._ask(self._add(found.copy()), plan, at=at, repeated=repeated, key=found.key)
        self._settle()

    @precondition(lambda self: self.has_idle)
    @rule(chat=any_number, count=st.integers(2, 4), plan=any_plan, fresh=st.booleans())
    def burst(self, chat: int, count: int, plan: Plan, fresh: bool) -> None:
        """Identical chats speak at once: each handle goes to one of them, and none is left over."""
        first = self._pick(chat)
        if fresh:
            first = self._add(Chat(first.owner, first.model, first.setting, twin=True))
        twins = [first, *(self._add(first.copy()) for _ in range(count - 1))]
        text = self._text(first)
        others = self.witness.is_contested()
        self.bursting = True
        asked = [self._say(twin, plan, text, at=at) for at, twin in enumerate(twins)]
        self.bursting = False
        there = self.witness.exact(asked[0])
        self._settle()
        got = sum(request.calls[0].before == request.history for request in asked if request.calls)
        again = plan.outcome == "undelivered" and not plan.held  # the next one gets what the first has put back
        sure = not (others or self.witness.store_state or self.witness.lossy)
        if sure and (got < min(there, count) or (got > there and not again)):
            self.witness.wrong("I4", f"{count} asked for {there} handles, {got} got one")

    @precondition(lambda self: self.has_history)
    @rule(chat=any_number, plan=any_plan)
    def title(self, chat: int, plan: Plan) -> None:
        """The front end asks for a title behind its user's back."""
        copy = self._pick_answered(chat).copy()
        copy.ask = self.witness.number()
        copy.messages.append(Message("user", f"### Task:\nGenerate a title, x{copy.ask}"))
        self._ask(copy, plan, utility=True)
        self._settle()

    # --- the world

    @rule(seconds=st.sampled_from([1.0, 2.0, 3.5, 11.0, 61.0, 940.0, 1100.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._settle(seconds)

    @precondition(lambda self: self.witness.rooms)
    @rule(room=any_number)
    def forget(self, room: int) -> None:
        """A vendor loses a conversation."""
        rooms = list(self.witness.rooms.values())
        rooms[room % len(rooms)].forgotten = True

    @rule(state=st.sampled_from(STATES), steps=st.integers(1, 3))
    def fail(self, state: str, steps: int) -> None:
        """The store is out of reach for a while."""
        self.witness.store_state, self.failing = state, steps
        for request in self.witness.requests:
            request.waits_for = None

    @precondition(lambda self: len(self.houses) == HOUSES)
    @rule(at=st.integers(0, 1), drained=st.booleans())
    def restart(self, at: int, drained: bool) -> None:
        """A process dies, or is drained, and another takes its place; what was only in memory dies with it."""
        going = [self.houses[at]] if drained or self.cupboard.survives else list(self.houses)
        for house in going:
            self._stop(house, drained=drained)
        if not drained and not self.cupboard.survives:
            self.cupboard.lose()
            self.witness.parked.clear()
        for house in going:
            self.houses[self.houses.index(house)] = self._house()
            if self.cupboard.survives:
                self.loop.do(house.store.aclose())
        self._settle()

    def _stop(self, house: House, *, drained: bool) -> None:
        requests = [request for request in self.witness.requests if request.house == house.number]
        for request in requests:
            request.dead = True
        for request in self.witness.past:
            request.dead = request.dead or request.house == house.number
        if drained:
            self.loop.create_task(house.relay.drain(0.5))
            self._settle(1)
        house.store.dead = True
        house.relay.stop()
        for request in requests:
            if request.task is not None and not drained:
                request.task.cancel()
        for chat in self.chats:
            if chat.waiting in requests and not drained:
                chat.waiting = None
        self._settle()
