"""Partitions, stages and what becomes of entries that were found."""

from dataclasses import replace

import pytest

from proxy.conversation import Conversation, Partition
from proxy.messages import Handle, Message, Parked
from proxy.transcript import Chain, cut

PARTITION = Partition("tenant", "model", "bot", "user", "", {"priming": "Be kind."})
ASKED = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]


def conversation(*messages: Message, partition: Partition = PARTITION, idle_ttl: float = 1000) -> Conversation:
    return Conversation(cut(messages), Chain(b"key", partition.digest()), idle_ttl=idle_ttl)


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


def test_a_scope_does_not_overlook_what_is_forwarded() -> None:
    """Inside a scope a changed system prompt parts too: the vendor has to be told of it."""
    inside = replace(PARTITION, scope="chat-1")

    assert inside.digest() != replace(inside, forwarded={}).digest()


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


def test_without_marks_no_text_is_parked() -> None:
    """With marks off an entry holds no text, and only exact heads are looked up."""
    plain = Conversation(cut(ASKED), Chain(b"key", PARTITION.digest()), idle_ttl=9, marks=False)
    entry = plain.parked(Handle({}), "the reply", now=0)

    assert (len(entry.labels), entry.marks) == (1, {})
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
    asked = Conversation(cut(talk(*"abcdefg")), chain, idle_ttl=9, recap=False)

    assert [stage.reason for stage in asked.stages()] == ["exact"]


def test_an_entry_outlives_its_use() -> None:
    """An entry is kept twice as long as it may be resumed, so that `expired` can be told from `unknown-history`."""
    parked = conversation(Message("user", "a"), idle_ttl=50).parked(Handle({}), "b", now=7)

    assert (parked.spoken_at, parked.ttl) == (7, 100)
