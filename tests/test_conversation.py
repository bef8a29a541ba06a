"""Partitions, stages and what becomes of entries that were found."""

from dataclasses import replace

import pytest

from proxy.conversation import Conversation, Partition, Terms
from proxy.messages import Attachment, Handle, Message, Parked
from proxy.transcript import Chain, cut

PARTITION = Partition("tenant", "model", "bot", "user", "", {"priming": "Be kind."})
ASKED = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]


def conversation(*messages: Message, partition: Partition = PARTITION, idle_ttl: float = 1000) -> Conversation:
    terms = Terms(idle_ttl, scoped=bool(partition.scope))
    chain = Chain(b"key", partition.digest())
    return Conversation(cut(messages), chain, terms, priming=partition.forwarded.get("priming", ""))


def label(of: Conversation) -> str:
    return next(of.stages()).labels[0]


@pytest.mark.parametrize(
    "other",
    [
        replace(PARTITION, tenant="other"),
        replace(PARTITION, model="other"),
        replace(PARTITION, bot="other"),
        replace(PARTITION, end_user="other"),
        replace(PARTITION, scope="other"),
        replace(PARTITION, forwarded={"priming": "Be rude."}),
        Partition("tenantmodel", "", "bot", "user", "", {"priming": "Be kind."}),
    ],
)
def test_partitions_never_meet(other: Partition) -> None:
    """Equal histories in partitions that differ in anything have different labels."""
    assert label(conversation(*ASKED)) != label(conversation(*ASKED, partition=other))


def test_inside_a_scope_the_system_prompt_may_change() -> None:
    """Inside a scope a changed system prompt parts nothing: the entry is found, and known to have been told another."""
    inside = replace(PARTITION, scope="chat-1")
    first = conversation(ASKED[0], partition=inside)
    entry = first.parked(Handle({}), ASKED[1].text, now=0)

    for told, changed in (("Be kind.", False), ("Be rude.", True), ("", True)):
        asked = conversation(*ASKED, partition=replace(inside, forwarded={"priming": told}))
        stage = next(asked.stages())
        assert entry.labels[0] in stage.labels
        assert [match.priming_changed for match in asked.matches(stage, [entry], now=1)] == [changed]


def test_a_parked_handle_is_found_by_the_next_turn() -> None:
    """The entry made after a turn lies under the label that the next turn looks up."""
    first = conversation(Message("user", "a"))

    parked = first.parked(Handle({"id": 1}), "b", now=0)

    assert label(conversation(*ASKED)) == parked.labels[0]


def test_a_first_turn_looks_nothing_up() -> None:
    """Without a history there is nothing to continue."""
    first = conversation(Message("user", "a"))

    assert list(first.stages()) == []
    assert first.unmatched(in_use=False).how == "opened"


@pytest.mark.parametrize(("age", "taken"), [(0, True), (949, True), (951, False), (2000, False)])
def test_a_handle_near_its_end_is_left_alone(age: float, taken: bool) -> None:
    """An entry is taken only while the vendor spoke less than the idle time less 5 % ago."""
    asked = conversation(*ASKED)
    stage = next(asked.stages())
    entry = Parked("1", Handle({}), stage.labels, {}, spoken_at=0, ttl=2000)

    assert bool(list(asked.matches(stage, [entry], now=age))) == taken


def test_the_grace_is_a_minute_at_most() -> None:
    """With long idle times only the last minute is left alone."""
    asked = conversation(*ASKED, idle_ttl=10_000)
    stage = next(asked.stages())
    entry = Parked("1", Handle({}), stage.labels, {}, spoken_at=0, ttl=20_000)

    assert list(asked.matches(stage, [entry], now=9_930))
    assert not list(asked.matches(stage, [entry], now=9_950))


def test_rebuilding_says_why() -> None:
    """What could not be continued is rebuilt with the whole history, and the reason is told."""
    asked = conversation(*ASKED)

    assert asked.unmatched(in_use=False).reason == "unknown-history"
    assert asked.unmatched(in_use=True).reason == "in-use"
    assert asked.unmatched(in_use=False).untold == asked.chat.history

    stale = Parked("1", Handle({}), [], {}, spoken_at=0, ttl=1)
    assert list(asked.matches(next(asked.stages()), [stale], now=9999)) == []
    assert asked.unmatched(in_use=False).reason == "expired"


def interrupted(said: str, *replies: str) -> list[str]:
    """How a chat goes on whose client knows `said`, where its conversations said `replies` in full."""
    first = conversation(Message("user", "a"))
    entries = [first.parked(Handle({}), reply, now=0) for reply in replies]
    asked = conversation(Message("user", "a"), Message("assistant", said), Message("user", "c"))
    stages = list(asked.stages())
    found = [[entry for entry in entries if {*stage.labels} & {*entry.labels}] for stage in stages]
    pairs = zip(stages, found, strict=True)
    went = [match.reason for stage, seen in pairs for match in asked.matches(stage, seen, now=1)]
    return went or [asked.unmatched(in_use=False).reason]


@pytest.mark.parametrize(
    ("said", "replies", "went"),
    [
        ("one two", ["one two three"], ["interrupted"]),
        ("one  two\nthr", ["one two three"], ["interrupted"]),
        ("one", ["one two three"], ["unknown-history"]),
        ("one too", ["one two three"], ["unknown-history"]),
        ("one two three four", ["one two three"], ["unknown-history"]),
        ("one two", ["one two three", "one two three"], ["interrupted", "interrupted"]),
        ("one two", ["one two three", "one two four"], ["ambiguous"]),
        ("one two", ["one two", "one two four"], ["exact"]),
        ("x " * 2048, ["x " * 9000], ["interrupted"]),
        ("x " * 2049, ["x " * 9000], ["unknown-history"]),
    ],
)
def test_a_reply_cut_short_is_recognised(said: str, replies: list[str], went: list[str]) -> None:
    """A history whose last reply is the beginning of exactly one that was given, of two words or more, continues it."""
    assert interrupted(said, *replies) == went


@pytest.mark.parametrize("partition", [PARTITION, replace(PARTITION, scope="chat-1")])
def test_without_marks_no_text_is_parked(partition: Partition) -> None:
    """With marks off an entry holds no text, and only whole histories are looked up, in a scope or not."""
    chain = Chain(b"key", partition.digest())
    plain = Conversation(cut(ASKED), chain, Terms(9, marks=False, scoped=bool(partition.scope)), priming="Be kind.")
    entry = plain.parked(Handle({}), "the reply", now=0)

    assert len(entry.labels) == 1
    assert [name for name, mark in entry.marks.items() if name != "priming" or "kind" in mark] == []
    assert [stage.reason for stage in plain.stages()] == ["exact"]


def talk(*texts: str) -> list[Message]:
    """Texts of a user and an assistant in turn."""
    return [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("seen", "untold"),
    [
        (6, []),
        (4, ["e", "f"]),
        (3, None),
        (2, None),
    ],
)
def test_a_conversation_that_knows_the_beginning_is_caught_up(seen: int, untold: list[str] | None) -> None:
    """A conversation that stands for an earlier head, of half the history at least, gets a recap of the rest."""
    chat = talk(*"abcdefg")
    entry = conversation(*chat[: seen - 1]).parked(Handle({}), chat[seen - 1].text, now=0) if seen % 2 == 0 else None
    asked = conversation(*chat)
    went = [
        match
        for stage in asked.stages()
        for match in asked.matches(stage, [entry] if entry and {*stage.labels} & {*entry.labels} else [], now=1)
    ]

    assert [message.text for message in went[0].untold] == untold if untold is not None else went == []


def test_the_longest_beginning_is_preferred() -> None:
    """Of several conversations that know a beginning the one that knows most is caught up first."""
    chat = talk(*"abcdefghi")
    entries = [conversation(*chat[: n - 1]).parked(Handle({"n": n}), chat[n - 1].text, now=n) for n in (4, 6)]
    asked = conversation(*chat)
    stage = list(asked.stages())[-1]

    handles = [match.parked.handle.data["n"] for match in asked.matches(stage, entries, now=9) if match.parked]
    assert (stage.reason, handles) == ("caught-up", [6, 4])


def test_without_recap_nobody_is_caught_up() -> None:
    """Where no recap may be told, earlier heads are not looked up."""
    chain = Chain(b"key", PARTITION.digest())
    asked = Conversation(cut(talk(*"abcdefg")), chain, Terms(9, recap=False))

    assert [stage.reason for stage in asked.stages()] == ["exact"]


def test_an_entry_outlives_its_use() -> None:
    """An entry is kept twice as long as it may be resumed, so that `expired` can be told from `unknown-history`."""
    parked = conversation(Message("user", "a"), idle_ttl=50).parked(Handle({}), "b", now=7)

    assert (parked.spoken_at, parked.ttl) == (7, 100)


SCOPED = replace(PARTITION, scope="chat-1")


def went(parked: list[tuple[list[Message], str]], asked: list[Message], partition: Partition = SCOPED) -> list[str]:
    """How a request may be continued when these chats, each with the reply it got, are parked in its partition."""
    entries = [conversation(*chat, partition=partition).parked(Handle({}), said, now=0) for chat, said in parked]
    chat = conversation(*asked, partition=partition)
    ways = []
    for stage in chat.stages():
        found = [entry for entry in entries if {*stage.labels} & {*entry.labels}]
        ways += [match.reason or match.how for match in chat.matches(stage, found, now=1)]
    return ways or [chat.unmatched(in_use=False).reason]


WRAPPED = "Use this: cats purr. Question: why do cats purr? Answer briefly."


@pytest.mark.parametrize(
    ("sent", "kept", "way"),
    [
        (WRAPPED, "why do cats purr?", "contained"),
        (WRAPPED, "  why do\ncats purr?", "contained"),
        (WRAPPED, "cats", "unknown-history"),
        (WRAPPED, "why do dogs bark?", "unknown-history"),
        ("x" * 40_000 + " why do cats purr?", "why do cats purr?", "contained"),
        ("why do cats purr? " + "x" * 40_000, "why do cats purr?", "contained"),
        ("ä" * 20_000 + " why do cats purr? " + "ä" * 20_000, "why do cats purr?", "unknown-history"),
    ],
)
def test_a_question_is_recognised_in_what_was_wrapped_around_it(sent: str, kept: str, way: str) -> None:
    """Inside a scope the last user message may be a part, of 8 characters at least, of the one that was sent."""
    before = talk("hello", "hi")
    asked = [*before, *talk(kept, "so they do", "more")]

    assert went([([*before, Message("user", sent)], "so they do")], asked) == [way]


def test_only_the_last_question_may_be_wrapped() -> None:
    """A message that differs elsewhere is another chat, and so is a question that lost its picture."""
    parked = [([*talk("hello", "hi"), Message("user", WRAPPED)], "so they do")]

    for other in (talk("hello!", "hi"), talk("hello", "hi!")):
        assert went(parked, [*other, *talk("why do cats purr?", "so they do", "more")]) == ["unknown-history"]
    assert went(parked, talk("hello", "hi", "why do cats purr?", "so they do not", "more")) == ["unknown-history"]
    picture = (Attachment("image", url="https://example.com/cat.png"),)
    seen = [([*talk("hello", "hi"), Message("user", WRAPPED, picture)], "so they do")]
    assert went(seen, talk("hello", "hi", "why do cats purr?", "so they do", "more")) == ["unknown-history"]


def test_a_question_that_may_be_one_of_two_is_ambiguous() -> None:
    """A part of two different messages that were sent continues neither; equal chats are one."""
    asked = talk("why do cats purr?", "so they do", "more")
    one, other = ([Message("user", WRAPPED)], "so they do"), ([Message("user", WRAPPED + " Now.")], "so they do")

    assert went([one, other], asked) == ["ambiguous"]
    assert went([one, one], asked) == ["contained", "contained"]


@pytest.mark.parametrize(
    ("kept", "way"),
    [
        (slice(2, None), "window"),
        (slice(3, None), "window"),
        (slice(4, None), "window"),
        (slice(5, None), "unknown-history"),
        (slice(0, None), "exact"),
    ],
)
def test_a_client_that_forgets_the_oldest_is_recognised(kept: slice, way: str) -> None:
    """Inside a scope a history may be the end of a conversation, with its last full exchange at least."""
    chat = talk("a", "b", "c", "d", "e", "f")

    assert went([(chat[:5], "f")], [*chat[kept], Message("user", "g")])[0] == way


def test_a_window_must_fit_in_every_message() -> None:
    """A message changed anywhere in the window is another chat; so is one before the beginning of the conversation."""
    chat = talk("a", "b", "c", "d", "e", "f")

    for i in range(2, 6):
        other = [*chat[:i], Message(chat[i].role, "?"), *chat[i + 1 :]][2:]
        assert went([(chat[:5], "f")], [*other, Message("user", "g")])[0] != "window"
    assert went([(chat[2:5], "f")], [*chat, Message("user", "g")])[0] != "window"


def test_a_window_that_may_be_further_up_is_none() -> None:
    """A history that is the end of a conversation, but an earlier part of it too, may be an edit and is no window."""
    twice = talk("refund", "Sorry?", "refund", "Sorry?")

    assert went([(twice[:3], "Sorry?")], talk("refund", "Sorry?", "refund"))[0] == "unknown-history"
    longer = talk("a", "b", "refund", "Sorry?", "refund", "Sorry?")
    assert went([(longer[:5], "Sorry?")], talk("refund", "Sorry?", "refund", "Sorry?", "next"))[0] == "window"


def test_a_window_has_a_limit() -> None:
    """A window of more messages than are remembered of a conversation is not recognised."""
    chat = talk(*(str(n) for n in range(300)))

    for length, way in ((198, "window"), (200, "window"), (202, "unknown-history")):
        assert went([(chat[:-1], chat[-1].text)], [*chat[-length:], Message("user", "g")])[0] == way


def test_the_tiers_of_a_scope_need_one() -> None:
    """Outside a scope neither a wrapped question nor a window is recognised."""
    chat = talk("a", "b", WRAPPED, "so they do")
    parked = [(chat[:3], "so they do")]

    assert went(parked, [*chat[2:], Message("user", "g")], PARTITION) == ["unknown-history"]
    assert went(parked, talk("a", "b", "why do cats purr?", "so they do", "g"), PARTITION) == ["unknown-history"]


def test_a_renamed_handle_is_only_found_by_its_whole_history() -> None:
    """A handle that the vendor changed by itself is no candidate where anything is left open."""
    chat = talk("a", "one two three")
    entry = conversation(*chat[:1], partition=SCOPED).parked(Handle({}), chat[1].text, now=0, renamed=True)
    ways = {}
    for asked in (chat, talk("a", "one two"), [*chat, *talk("b", "never said")]):
        tried = conversation(*asked, Message("user", "next"), partition=SCOPED)
        matches = [match.reason or match.how for stage in tried.stages() for match in tried.matches(stage, [entry], 1)]
        ways[asked[-1].text] = matches

    assert ways["one two three"][:1] == ["exact"]
    assert ways["one two"][1:] == ways["never said"][1:] == []
