"""The one use case as transcripts: what the bot is scripted to do, what the client got, what is parked."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from proxy.errors import (
    InvalidRequest,
    NoAnswer,
    ProxyError,
    RateLimited,
    ShuttingDown,
    StoreUnavailable,
    VendorAuthFailed,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Ask, Delta, Finish, Message, Parked, Usage
from proxy.reply import MOST_LISTENERS, MOST_REMEMBERED, Listener, Reply
from proxy.stores.memory import MemoryStore
from tests.scripted import Cue, House, hear, user


async def test_three_turns_are_one_conversation() -> None:
    """A chat stays in one vendor conversation, which sees only what is new."""
    house, chat = House(), list[Message]()

    assert [await house.said(text, chat) for text in "abc"] == ["opened", "continued exact", "continued exact"]
    assert house.bot.conversations == {1: ["a", "reply 1 to a", "b", "reply 2 to b", "c", "reply 3 to c"]}
    assert house.parked == 1


async def test_an_edit_is_rebuilt() -> None:
    """A history that no conversation has seen opens a new one, with the history as a recap and the question last."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    await house.said("b", chat)
    edited = chat[:2]

    assert await house.said("other", edited) == "rebuilt unknown-history"
    sent = house.bot.conversations[2][0]
    assert "User: a\nAssistant: reply 1 to a\n" in sent
    assert sent.endswith("\n\nother")
    assert house.parked == 2
    assert await house.said("c", chat) == await house.said("d", edited) == "continued exact"


async def test_identical_chats_never_share() -> None:
    """Two text-identical chats have a conversation each, at every turn, also side by side."""
    house = House()
    chats: list[list[Message]] = [[], [], []]
    for text in "abc":
        await asyncio.gather(*(house.said(text, chat) for chat in chats))

    assert (
        list(house.bot.conversations.values()) == [["a", "reply 1 to a", "b", "reply 2 to b", "c", "reply 3 to c"]] * 3
    )
    assert house.parked == 3


async def test_a_conversation_in_use_is_not_shared() -> None:
    """A second request on a head whose handle is out at once gets a conversation of its own, and is told why."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    gate = asyncio.Event()
    house.bot.cues.append(Cue(pieces=("slow ", "one"), wait=gate))
    first = asyncio.create_task(house.told(*chat, user("b")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    _, second = await house.told(*chat, user("b"))
    gate.set()

    assert (second.how, second.reason) == ("rebuilt", "in-use")
    assert (await first)[1].how == "continued"


@pytest.mark.parametrize(
    "more", [{"end_user": "other"}, {"scope": "chat-1"}, {"tenant": "other"}, {"priming": "Be rude."}]
)
async def test_partitions_are_kept_apart(more: dict[str, str]) -> None:
    """No tenant, end user, scope or system prompt gets into another's conversation."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    asked = [Message("system", more.pop("priming"))] if "priming" in more else []
    asked += [*chat, user("b")]

    reply = await house.relay.ask(house.model, Ask("tenant", asked)._replace(**more))  # type: ignore[arg-type]
    await reply.ended

    assert reply.record.how == "rebuilt"
    assert len(house.bot.conversations) == 2


async def test_a_forgotten_conversation_is_opened_anew_in_the_same_request() -> None:
    """When the vendor has lost the handle the client gets its answer, from a conversation told the whole history."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    house.bot.cues.append(Cue(forget=True))

    assert await house.said("b", chat) == "rebuilt vendor-forgot"
    assert "Assistant: reply 1 to a" in house.bot.conversations[2][0]
    assert house.parked == 1
    assert await house.said("c", chat) == "continued exact"


NOT_DELIVERED = [
    VendorUnavailable("x"),
    VendorAuthFailed("x"),
    VendorRateLimited("x"),
    VendorRefused("x"),
    RateLimited("x"),
]
DELIVERED = [VendorFailed("x"), VendorTimeout("x"), NoAnswer("x")]


@pytest.mark.parametrize("fault", NOT_DELIVERED, ids=lambda fault: type(fault).__name__)
async def test_an_undelivered_turn_leaves_the_conversation_where_it_was(fault: ProxyError) -> None:
    """After a fault before the vendor saw the turn, the same turn continues the same conversation."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    house.bot.cues.append(Cue(fault=fault))
    with pytest.raises(type(fault)):
        await house.told(*chat, user("b"))

    assert await house.said("b", chat) == "continued exact"
    assert house.bot.conversations[1] == ["a", "reply 1 to a", "b", "reply 2 to b"]


@pytest.mark.parametrize("fault", DELIVERED, ids=lambda fault: type(fault).__name__)
async def test_a_turn_that_may_have_arrived_is_never_sent_there_again(fault: ProxyError) -> None:
    """After an unknown outcome the conversation is given up: asked again, the turn goes into a new one."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    house.bot.cues.append(Cue(fault=fault))
    with pytest.raises(type(fault)):
        await house.told(*chat, user("b"))

    assert house.parked == 0
    assert await house.said("b", chat) == "rebuilt unknown-history"
    assert all(sent.count("b") <= 1 for sent in house.bot.conversations.values())


async def test_a_new_conversation_that_failed_is_dropped() -> None:
    """Nothing is parked of a first turn that failed, delivered or not."""
    house = House()
    for fault in [VendorUnavailable("x"), VendorFailed("x")]:
        house.bot.cues.append(Cue(fault=fault))
        with pytest.raises(type(fault)):
            await house.told(user("a"))

    assert house.parked == 0


async def test_an_undelivered_turn_keeps_the_clock() -> None:
    """A handle put back is as old as it was."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    house.now += 900
    house.bot.cues.append(Cue(fault=VendorRateLimited("x")))
    with pytest.raises(VendorRateLimited):
        await house.told(*chat, user("b"))
    house.now += 60

    assert await house.said("b", chat) == "rebuilt expired"


@pytest.mark.parametrize("pieces", [(" ", "\n"), ("",)])
async def test_a_blank_reply_is_an_error(pieces: tuple[str, ...]) -> None:
    """A reply of nothing but white space is no answer, and its conversation is dropped."""
    house = House()
    house.bot.cues.append(Cue(pieces=pieces))
    with pytest.raises(NoAnswer):
        await house.told(user("a"))

    assert house.parked == 0


async def test_the_handle_is_parked_before_the_end_is_heard() -> None:
    """Whoever hears the end of a reply can continue it at once."""
    house = House()
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        while not any(isinstance(said, Finish) for said in await hear(listener)):
            assert house.parked == 0

        assert house.parked == 1


async def test_a_changed_handle_is_the_one_parked() -> None:
    """When the vendor gives its conversation another id, the next turn goes there."""
    house, chat = House(), list[Message]()
    house.bot.cues.append(Cue(new_handle=True))
    await house.said("a", chat)

    assert await house.said("b", chat) == "continued exact"
    assert house.bot.conversations == {2: ["a", "reply 1 to a", "b", "reply 2 to b"]}


async def test_a_client_that_leaves_gets_its_conversation_parked() -> None:
    """A reply that ends within `linger` after its client left is parked; the client may come back."""
    house, gate = House(linger=5), asyncio.Event()
    house.bot.cues.append(Cue(pieces=("re", "ply"), wait=gate))
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        await hear(listener)
    gate.set()
    await reply.ended

    assert house.parked == 1
    assert house.records[0].outcome == "ok"
    assert not house.records[0].heard


async def test_a_client_that_leaves_for_good_stops_the_vendor() -> None:
    """A reply that outlasts `linger` unheard is hung up on, and its conversation dropped."""
    house = House(linger=0)
    house.bot.cues.append(Cue(pieces=("re", "ply"), wait=asyncio.Event()))
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        await hear(listener)
    await asyncio.wait([reply.ended])

    assert house.bot.hung_up == 1
    assert house.parked == 0
    assert house.records[0].outcome == "left"


async def test_a_utility_prompt_leaves_the_chat_alone() -> None:
    """A chat UI's title prompt gets a conversation of its own, told the history, never parked."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)

    _, record = await house.told(*chat, user("### Task:\nGenerate a title"))

    assert record.how == "utility"
    assert house.parked == 1
    assert await house.said("b", chat) == "continued exact"


@pytest.mark.parametrize(
    "chat",
    [
        [Message("system", "only priming")],
        [user("a"), Message("assistant", "b")],
        [user(" ")],
        [user("a"), Message("assistant", "b"), user("")],
    ],
)
async def test_nothing_new_to_say_is_refused(chat: Sequence[Message]) -> None:
    """A request without a new message is the client's fault, and nothing is sent."""
    house = House()
    with pytest.raises(InvalidRequest) as refused:
        await house.ask(*chat)

    assert refused.value.param == "messages"
    assert house.bot.turns == []


async def test_content_the_bot_cannot_carry_is_refused_first() -> None:
    """What a bot refuses to carry is refused before any conversation is looked up."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)

    def refuse(turn: object) -> None:
        raise InvalidRequest("no images", code="unsupported_value")

    house.bot.refuse = refuse
    with pytest.raises(InvalidRequest):
        await house.ask(*chat, user("b"))

    assert house.parked == 1


async def test_recap_may_be_refused() -> None:
    """`recap: refuse` answers an unknown history with `conversation_not_found` and sends nothing."""
    house = House(recap="refuse")
    with pytest.raises(InvalidRequest) as refused:
        await house.told(user("a"), Message("assistant", "never said"), user("b"))

    assert refused.value.code == "conversation_not_found"
    assert house.bot.turns == []


async def test_recap_may_be_left_out() -> None:
    """`recap: ignore` sends the question alone and says so."""
    house = House(recap="ignore")

    _, record = await house.told(user("a"), Message("assistant", "never said"), user("b"))

    assert (record.how, record.reason) == ("rebuilt", "recap-off")
    assert house.bot.conversations[1][0] == "b"


async def test_the_system_prompt_may_be_ignored() -> None:
    """`system_prompt: ignore` forwards none, and then it does not part conversations either."""
    house, chat = House(system_prompt="ignore"), [Message("system", "one")]
    await house.said("a", chat)
    chat[0] = Message("system", "two")

    assert await house.said("b", chat) == "continued exact"
    assert house.bot.conversations[1][0] == "a"


async def test_markup_is_converted_before_anybody_sees_it() -> None:
    """`html: markdown` converts the reply; the chat is continued under the converted text."""
    house, chat = House(html="markdown"), list[Message]()
    house.bot.cues.append(
        Cue(
            pieces=(
                "one<b",
                "r>two &am",
                "p; three",
            )
        )
    )

    await house.said("a", chat)

    assert chat[-1].text == "one\ntwo & three"
    assert await house.said("b", chat) == "continued exact"


class LostStore(MemoryStore):
    """A store that is out of reach."""

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        raise StoreUnavailable("out of reach")

    async def put(self, parked: Parked) -> None:
        raise StoreUnavailable("out of reach")


async def test_a_lost_store_costs_only_the_context() -> None:
    """Without its store the relay still answers, rebuilding every time, and says why."""
    house, chat = House(LostStore(max_parked=9)), list[Message]()

    assert await house.said("a", chat) == "opened"
    assert await house.said("b", chat) == "rebuilt store-unavailable"


async def test_a_record_tells_what_happened() -> None:
    """Every turn leaves one record with its outcome and its durations."""
    house = House()
    house.bot.cues += [Cue(finish=Finish(usage=Usage(7))), Cue(fault=VendorFailed("x")), Cue(fault=VendorRefused("x"))]
    await house.told(user("a"))
    for _ in range(2):
        with pytest.raises(ProxyError):
            await house.told(user("a"))

    assert [record.outcome for record in house.records] == ["ok", "vendor_failed", "vendor_refused"]
    assert house.records[0].parked
    assert house.records[0].deltas == 2
    assert house.records[0].ended is not None


async def test_draining_waits_for_running_replies() -> None:
    """A drain takes nothing new, lets what runs end, and parks it."""
    house, gate = House(), asyncio.Event()
    house.bot.cues.append(Cue(pieces=("re", "ply"), wait=gate))
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        assert await hear(listener) == [Delta("re")]
        draining = asyncio.create_task(house.relay.drain(5))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await house.ask(user("b"))
        gate.set()
        await draining

        assert house.parked == 1


async def test_draining_stops_what_is_late() -> None:
    """When the grace is over, running replies are stopped and their vendors hung up on."""
    house = House()
    house.bot.cues.append(Cue(pieces=("re", "ply"), wait=asyncio.Event()))
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        await hear(listener)
        await house.relay.drain(0.01)

    assert house.bot.hung_up == 1
    assert house.parked == 0


@pytest.mark.parametrize("text", ["\u200b", "<think>only thoughts</think>"])
async def test_a_reply_without_words_is_an_error(text: str) -> None:
    """A reply that no client would send back as a message is no answer, and its conversation is dropped."""
    house = House()
    house.bot.cues.append(Cue(pieces=(text,)))
    with pytest.raises(NoAnswer):
        await house.told(user("a"))

    assert house.parked == 0


async def test_a_reply_that_looks_like_our_errors_is_not_parked() -> None:
    """A reply that the next request's history will not hold is given out, but its conversation is not kept."""
    house = House()
    house.bot.cues.append(Cue(pieces=("see (parley: vendor_failed)",)))

    await house.told(user("a"))

    assert house.parked == 0


async def test_a_bot_that_ends_without_finish_has_failed() -> None:
    """A reply without its Finish is a failure, and nothing is parked."""
    house = House()
    house.bot.cues.append(Cue(mute=True))
    with pytest.raises(VendorFailed):
        await house.told(user("a"))

    assert house.parked == 0


async def test_a_stopped_reply_is_continued() -> None:
    """A chat whose client stopped listening in the midst goes on in the same conversation, under what it heard."""
    house, gate = House(linger=5), asyncio.Event()
    house.bot.cues.append(Cue(pieces=("I will tell you ", "everything"), wait=gate))
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        (heard,) = await hear(listener)
    assert isinstance(heard, Delta)
    gate.set()
    await reply.ended
    chat = [user("a"), Message("assistant", heard.text)]

    assert await house.said("b", chat) == "continued interrupted"
    assert await house.said("c", chat) == "continued exact"
    assert list(house.bot.conversations) == [1]


async def test_a_beginning_of_two_replies_is_ambiguous() -> None:
    """Where a truncated reply may have been any of several, a new conversation is opened."""
    house = House()
    for end in ("this", "that"):
        house.bot.cues.append(Cue(pieces=("It was ", end)))
        await house.told(user("a"))

    assert await house.said("b", [user("a"), Message("assistant", "It was")]) == "rebuilt ambiguous"
    assert house.parked == 3


async def test_the_clock_in_a_system_prompt_does_not_part() -> None:
    """A chat whose front end writes date and time into its system prompt stays one conversation, over midnight too."""
    house, chat = House(), [Message("system", "Be kind. It is 1970-01-01 00:16.")]
    await house.said("a", chat)
    chat[0] = Message("system", "Be kind. It is 1970-01-02 00:01.")

    assert await house.said("b", chat) == "continued exact"
    chat[0] = Message("system", "Be rude. It is 1970-01-02 00:01.")
    assert await house.said("c", chat) == "rebuilt unknown-history"


async def test_a_model_switched_and_back_is_caught_up() -> None:
    """A conversation that missed some turns, spoken with another model, is told of those and goes on."""
    house, chat = House(), list[Message]()
    for text in "ab":
        await house.said(text, chat)
    chat += [user("asked another model"), Message("assistant", "it answered")]

    assert await house.said("back again", chat) == "caught-up"
    sent = house.bot.conversations[1][4]
    assert "User: asked another model\nAssistant: it answered\n" in sent
    assert "reply 1 to a" not in sent
    assert sent.endswith("\n\nback again")
    assert await house.said("c", chat) == "continued exact"
    assert list(house.bot.conversations) == [1]


async def twice(house: House, first: dict[str, Any], second: dict[str, Any], *, leave: bool) -> tuple[Reply, Reply]:
    """The same words asked for twice, the second time while the first reply runs, or after its unheard end."""
    gate = asyncio.Event()
    house.bot.cues.append(Cue(pieces=("one ", "reply"), wait=gate))
    reply = await house.ask(user("a"), **first)
    with Listener([reply]) as listener:
        await hear(listener)
    if leave:
        gate.set()
        await reply.ended
    again = await house.ask(user("a"), **second)
    gate.set()
    return reply, again


KEYED: dict[str, Any] = {"idempotency_key": "k-1"}


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {"repeated": True}, True),
        ({}, {}, False),
        (KEYED, KEYED, True),
        (KEYED, {"idempotency_key": "k-2"}, False),
        (KEYED, {}, False),
        (KEYED, {"repeated": True}, True),
        ({}, {**KEYED, "repeated": True}, True),
        (KEYED, {"idempotency_key": "k-2", "repeated": True}, False),
        ({}, {"repeated": True, "stream": True}, True),
        ({"end_user": "ada"}, {"repeated": True}, False),
        ({"scope": "s"}, {"repeated": True}, False),
    ],
)
async def test_a_repeated_request_hears_the_first_reply(
    first: dict[str, Any], second: dict[str, Any], same: bool, leave: bool
) -> None:
    """A client that says it asks once more is told the reply to its first request, from the beginning."""
    house = House()
    reply, again = await twice(house, {"body": b"1", **first}, {"body": b"1", **second}, leave=leave)

    assert (again is reply) == same
    with Listener([again]) as listener:
        assert await hear(listener) == [Delta("one "), *([Delta("reply"), Finish()] if leave else [])] or not same
    assert len(house.bot.turns) == (1 if same else 2) or not again.ended.done()


async def test_one_reply_has_so_many_listeners() -> None:
    """Who asks once more for a reply that a crowd listens to already is told to wait; who leaves makes room."""
    house, gate = House(), asyncio.Event()
    house.bot.cues.append(Cue(wait=gate))
    reply = await house.ask(user("a"), body=b"1")
    with ExitStack() as crowd:
        for _ in range(MOST_LISTENERS):
            crowd.enter_context(Listener([await house.ask(user("a"), body=b"1", repeated=True)]))
        with pytest.raises(RateLimited) as refused:
            await house.ask(user("a"), body=b"1", repeated=True)
        assert refused.value.code == "bot_busy"
    assert await house.ask(user("a"), body=b"1", repeated=True) is reply
    gate.set()
    await reply.ended


async def test_another_body_is_another_request() -> None:
    """A repeated request whose body differs gets a reply of its own."""
    reply, again = await twice(House(), {"body": b"1"}, {"body": b"2", "repeated": True}, leave=False)

    assert again is not reply


async def test_what_was_heard_is_not_told_again() -> None:
    """A reply that was heard to its end, or whose conversation has gone on, is not replayed."""
    house, chat = House(), list[Message]()
    await house.said("a", chat, body=b"1")
    assert await house.said("a", [], body=b"1", repeated=True) == "opened"
    assert len(house.bot.turns) == 2

    house = House()
    reply = await house.ask(user("a"), body=b"1")
    await reply.ended
    assert await house.said("b", [user("a"), Message("assistant", reply.text)]) == "continued exact"
    assert await house.ask(user("a"), body=b"1", repeated=True) is not reply


async def test_a_used_idempotency_key_wants_the_same_body() -> None:
    """A key that is remembered with another body is refused; another tenant's key is another key."""
    house = House()
    await house.told(user("a"), body=b"1", **KEYED)
    with pytest.raises(InvalidRequest) as refused:
        await house.ask(user("b"), body=b"2", **KEYED)

    assert refused.value.code == "idempotency_key_reused"
    await house.relay.ask(house.model, Ask("other", [user("b")], body=lambda: b"2", idempotency_key="k-1"))
    await house.told(user("a"), body=b"1", **KEYED)


async def test_listening_again_stops_the_linger_clock() -> None:
    """A reply that its client has left runs on as soon as its repeated request listens."""
    house, gate = House(linger=0.05), asyncio.Event()
    house.bot.cues.append(Cue(pieces=("one ", "reply"), wait=gate))
    reply = await house.ask(user("a"), body=b"1")
    with Listener([reply]) as listener:
        await hear(listener)
    again = await house.ask(user("a"), body=b"1", repeated=True)
    with Listener([again]) as listener:
        await asyncio.sleep(0.1)
        gate.set()
        await again.ended
        assert [*await hear(listener)][-1] == Finish()
    assert house.parked == 1


async def test_a_handle_that_the_vendor_changed_is_counted() -> None:
    """A conversation whose id the vendor changed is told of in the record, and goes on by its whole history only."""
    house, chat = House(), list[Message]()
    await house.said("a", chat)
    house.bot.cues.append(Cue(pieces=("one two three",), new_handle=True))
    await house.said("b", chat)
    assert [record.renamed for record in house.records] == [False, True]

    cut_short = [*chat[:-1], Message("assistant", "one two")]
    assert await house.said("c", cut_short) == "rebuilt unknown-history"
    assert await house.said("c", chat) == "continued exact"
    assert await house.said("d", [*chat[:-1], Message("assistant", "reply 3 to")]) == "rebuilt unknown-history"


async def test_a_changed_system_prompt_is_told_inside_a_scope() -> None:
    """Inside a scope the chat goes on under a new system prompt, which the conversation is told once."""
    house, chat = House(), [Message("system", "Be kind.")]
    await house.said("a", chat, scope="s")
    chat[0] = Message("system", "Be brief.")

    assert await house.said("b", chat, scope="s") == "continued exact"
    assert await house.said("c", chat, scope="s") == "continued exact"
    assert house.bot.conversations[1][::2] == ["Be kind.\n\na", "Be brief.\n\nb", "c"]
    assert await house.said("d", chat) == "rebuilt unknown-history"


class LateStore(MemoryStore):
    """A store that cannot be reached at first."""

    reached = False

    async def secret(self) -> bytes:
        if not self.reached:
            raise StoreUnavailable("out of reach")
        return await super().secret()

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        return await super().find(labels if self.reached else [])

    async def take_newest(self, label: str) -> Parked | None:
        return await super().take_newest(label) if self.reached else None


async def test_without_a_secret_of_its_own_the_store_keeps_one() -> None:
    """Relays on one store know each other's conversations; before the store was reached nothing is recognised."""
    store = LateStore(max_parked=9, clock=lambda: 1000)
    one, other = House(store, secret=None), House(store, secret=None)
    other.model, chat = one.model, list[Message]()
    await one.said("a", chat)
    assert (await one.said("b", chat)).startswith("rebuilt")

    store.reached = True
    chat = []
    await one.said("a", chat)
    assert await other.said("b", chat) == "continued exact"


async def test_a_blank_beginning_is_held_back() -> None:
    """White space ahead of the first word goes out with it, so that a blank reply can still fail with its status."""
    house = House()
    house.bot.cues += [Cue(pieces=("\n", " ", " one", " two")), Cue(pieces=(" ", "\n"))]
    reply = await house.ask(user("a"))
    with Listener([reply]) as listener:
        await reply.ended
        assert await hear(listener) == [Delta("\n  one"), Delta(" two"), Finish()]
    failed = await house.ask(user("a"))
    with Listener([failed]) as listener, pytest.raises(NoAnswer):
        await hear(listener)


async def test_a_reply_stopped_while_it_was_parked_is_not_told_again() -> None:
    """A reply that was stopped before its end was told is no answer to a repeated request, though it was parked."""

    class SlowStore(MemoryStore):
        async def put(self, parked: Parked) -> None:
            await super().put(parked)
            await asyncio.sleep(9)

    house = House(SlowStore(max_parked=9, clock=lambda: 1000))
    reply = await house.ask(user("a"), body=b"1")
    await asyncio.sleep(0.02)
    assert house.parked
    reply.stop()
    assert await house.ask(user("a"), body=b"1", repeated=True) is not reply
    await asyncio.wait([reply.ended])
    assert await house.ask(user("a"), body=b"1", repeated=True) is not reply
    house.relay.stop()


@pytest.mark.parametrize("fault", [None, VendorFailed("broken")])
async def test_a_heard_reply_is_gone_without_the_collector(fault: VendorFailed | None) -> None:
    """A reply and the history it answered are let go of as soon as it was heard, well or not, however big they are."""
    house = House()
    if fault is not None:
        house.bot.cues.append(Cue(fault=fault))
    gc.collect()
    gc.disable()
    try:
        reply = await house.ask(user("a"))
        gone = weakref.ref(reply)
        with suppress(VendorFailed), Listener([reply]) as listener:
            while not reply.complete:
                await hear(listener, 5)
            await hear(listener, 5)
        await reply.ended
        house.bot.cues.clear()
        if fault is not None:
            fault.__traceback__ = None  # the test's own hold on it
        del reply, listener
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


async def test_replies_that_nobody_heard_are_forgotten() -> None:
    """Of replies whose end nobody heard a bounded number is kept, without the histories they answered."""
    house = House()
    heard = weakref.WeakSet[Reply]()
    for number in range(130):
        reply = await house.ask(user(f"{number}"), body=b"%d" % number)
        heard.add(reply)
        await reply.ended
    await asyncio.sleep(0)
    del reply
    gc.collect()

    assert len(heard) == MOST_REMEMBERED
    assert all(reply.ask.messages == () for reply in heard)


async def test_an_older_reply_that_was_gone_on_from_hides_no_younger_one() -> None:
    """Of two equal replies whose ends nobody heard a repeated request is told the one that nobody has gone on from."""
    house = House()
    replies = [await house.ask(user("a"), body=b"1") for _ in range(2)]
    for reply in replies:
        await reply.ended
    chat = [user("a"), Message("assistant", replies[0].text)]
    assert await house.said("b", chat) == "continued exact"
    left = await house.ask(user("a"), body=b"1", repeated=True)

    assert left in replies
    assert await house.ask(user("a"), body=b"1", repeated=True) is left


async def test_many_chats_that_begin_alike_are_all_kept() -> None:
    """Any number of chats may begin with the same question: each is found again by its own reply."""
    house = House()
    chats = [list[Message]() for _ in range(50)]
    for number, chat in enumerate(chats):
        house.bot.cues.append(Cue(pieces=(f"Number {number} ", "speaking to you")))
        await house.said("hi there", chat)

    assert await house.said("b", [user("hi there"), Message("assistant", "Number 7 speaking")]) == "rebuilt ambiguous"
    assert {await house.said("b", chat) for chat in chats} == {"continued exact"}


async def test_in_use_is_told_of_the_same_history_only() -> None:
    """A history that nobody has seen is unknown, also while another chat with the same beginning is being answered."""
    house, chat = House(), list[Message]()
    await house.said("hi there", chat)
    house.bot.cues.append(Cue(pieces=("slow ", "one"), wait=asyncio.Event()))
    await house.ask(*chat, user("b"))
    await asyncio.sleep(0)
    other = [user("hi there"), Message("assistant", "never said")]

    assert await house.said("c", other) == "rebuilt unknown-history"
    house.relay.stop()


async def test_a_cut_reply_goes_on_under_what_was_given() -> None:
    """A reply that ends at a stop text is heard to its end; its conversation stands for what was given."""
    house, gate = House(), asyncio.Event()
    house.bot.cues.append(Cue(pieces=("one END ", "two"), wait=gate, finish=Finish(usage=Usage(7))))
    reply = await house.ask(user("a"), stop=["END"])
    with Listener([reply]) as listener:
        assert await hear(listener) == [Delta("one ")]
        assert await hear(listener, 0.02) == []
        gate.set()
        assert await hear(listener) == [Finish("stop", Usage(7))]

    assert await house.said("b", [user("a"), Message("assistant", "one ")]) == "continued exact"
    assert house.bot.hung_up == 0


@pytest.mark.parametrize("fault", [None, VendorFailed("It broke off")])
async def test_a_cut_reply_that_comes_to_no_end_is_dropped(fault: ProxyError | None) -> None:
    """A cut reply that does not end within `linger`, or fails, is told as ended all the same; its handle is dropped."""
    house = House(linger=0.05)
    wait = None if fault else asyncio.Event()
    house.bot.cues.append(Cue(pieces=("one two three ", "four"), wait=wait, fault=fault))

    text, record = await house.told(user("a"), most=7)

    assert (text, record.outcome, house.parked) == ("one two", "ok", 0)
    assert house.bot.hung_up == (0 if fault else 1)


async def test_a_reply_cut_before_its_first_word_is_empty() -> None:
    """A stop text at the very beginning leaves an empty reply, which is no fault and is not parked."""
    house = House()
    house.bot.cues.append(Cue(pieces=("END of it",)))

    text, record = await house.told(user("a"), stop=["END"])

    assert (text, record.outcome, house.parked) == ("", "ok", 0)


@pytest.mark.parametrize(("text", "asked"), [("END of it", "a"), ("one END two", "### Task: a title")])
async def test_a_cut_reply_that_nobody_could_go_on_from_is_over_at_once(text: str, asked: str) -> None:
    """An empty cut reply, and that to a chat UI's own prompt, is not heard to its end: its conversation is not kept."""
    house = House(linger=5)
    house.bot.cues.append(Cue(pieces=(text, "more"), wait=asyncio.Event()))
    reply = await house.ask(user(asked), stop=["END"])
    with Listener([reply]) as listener:
        async with asyncio.timeout(0.5):
            while not reply.complete:
                await hear(listener)

    assert (house.parked, house.bot.hung_up) == (0, 1)


async def test_a_cut_reply_is_whole_when_it_is_time_to_go() -> None:
    """A cut reply whose grace is over is told as ended: its client has all of it."""
    house = House(linger=5)
    house.bot.cues.append(Cue(pieces=("one END two", "more"), wait=asyncio.Event()))
    reply = await house.ask(user("a"), stop=["END"])
    with Listener([reply]) as listener:
        assert await hear(listener) == [Delta("one ")]
        await house.relay.drain(0.01)
        assert await hear(listener) == [Finish("stop")]

    assert house.parked == 0
