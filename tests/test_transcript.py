"""The canonical form, the chain, what is cut and how it is told."""

from collections.abc import Sequence
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.messages import Attachment, Message, Role, ToolCall, Turn
from proxy.transcript import Chain, canonical, canonical_text, compose, cut, pack, recap, undated


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


CHAIN = Chain(b"key", b"partition")


def head(*messages: Message) -> bytes:
    return CHAIN.head_of(canonical(messages))


SAME = [
    pytest.param(bot("Hi there"), bot("\n Hi \t there \r\n"), id="white space"),
    pytest.param(bot("a\r\nb"), bot("a\nb"), id="line ends"),
    pytest.param(bot("e\u0301"), bot("\u00e9"), id="normal form"),
    pytest.param(bot("a\u200bb\ufeff"), bot("ab"), id="invisible characters"),
    pytest.param(bot("<think>hm</think>\n\nYes"), bot("Yes"), id="thoughts"),
    pytest.param(bot("\ufeff<think>hm</think>Yes"), bot("Yes"), id="thoughts behind a BOM"),
    pytest.param(bot("<think>\n\nhm\n\n</think>\n\n<think>so</think>Yes"), bot("Yes"), id="several thoughts"),
    pytest.param(
        Message("assistant", "", (), (ToolCall("add", '{"b":1,"a":2}'),)),
        Message("assistant", "", (), (ToolCall("add", '{"a": 2, "b": 1}'),)),
        id="arguments written anew",
    ),
    pytest.param(
        Message("user", "see", (Attachment("image", url="https://x/y.png?v=1&X-Amz-Signature=1"),)),
        Message("user", "see", (Attachment("image", url="https://x/y.png?v=1&X-Amz-Signature=2#top"),)),
        id="URL signed anew",
    ),
]

DIFFERENT = [
    pytest.param(user("Yes"), user("yes"), id="case"),
    pytest.param(user("Yes"), user("Yes."), id="punctuation"),
    pytest.param(user("ab"), user("a b"), id="words"),
    pytest.param(user("<think>a</think>b"), user("b"), id="a user's thoughts"),
    pytest.param(user("a"), bot("a"), id="role"),
    pytest.param(
        Message("user", "", (Attachment("image", data=b"1"),)),
        Message("user", "", (Attachment("image", data=b"2"),)),
        id="bytes",
    ),
    pytest.param(
        Message("user", "", (Attachment("image", url="https://x/1"),)),
        Message("user", "", (Attachment("image", url="https://x/2"),)),
        id="URL",
    ),
    pytest.param(
        Message("assistant", "", (), (ToolCall("add", "{}"),)),
        Message("assistant", "", (), (ToolCall("sub", "{}"),)),
        id="function",
    ),
    pytest.param(
        Message("assistant", "", (), (ToolCall("f", "1"), ToolCall("g", "2"))),
        Message("assistant", "", (), (ToolCall("f", "1"),)),
        id="number of calls",
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_renditions_of_one_message_have_one_head(one: Message, other: Message) -> None:
    """A head overlooks what clients were seen to change."""
    assert head(one) == head(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_messages_have_different_heads(one: Message, other: Message) -> None:
    """A head keeps apart what says something else."""
    assert head(one) != head(other)


def test_an_unclosed_thought_is_removed_to_the_end() -> None:
    """Canonical text drops a leading thought that was never closed."""
    assert canonical_text(bot("<think>hm, and so on")) == ""


def test_a_url_that_cannot_be_parsed_is_compared_as_it_is() -> None:
    """The canonical form bears a malformed URL."""
    broken = Message("user", "", (Attachment("image", url="https://[x"),))

    assert head(broken) == head(broken)


def test_neighbours_of_one_role_are_one_message() -> None:
    """Canonical messages of one role in a row are merged."""
    assert head(user("a"), user("b"), bot("c")) == head(user("a\nb"), bot("c"))
    assert len(list(canonical([user("a"), user("b"), bot("c")]))) == 2


def test_the_same_words_in_another_order_of_roles_differ() -> None:
    """A head is not fooled by text moved over a border between messages."""
    assert head(user("a"), bot("b"), user("c")) != head(user("a"), bot("b c"))


def test_heads_continue_where_a_chain_was_left() -> None:
    """A chain may be continued from any of its heads."""
    entries = list(canonical([user("a"), bot("b"), user("c"), bot("d")]))
    halfway = CHAIN.head_of(entries[:2])

    assert CHAIN.head_of(entries[2:], halfway) == CHAIN.head_of(entries)
    assert list(CHAIN.heads(entries))[1] == halfway


@pytest.mark.parametrize("other", [Chain(b"other", b"partition"), Chain(b"key", b"other")])
def test_heads_differ_by_key_and_partition(other: Chain) -> None:
    """A head says nothing under another key or in another partition."""
    assert other.head_of(canonical([user("a")])) != head(user("a"))


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_packing_is_unambiguous(one: list[str], other: list[str]) -> None:
    """Two packed lists are equal only if the lists are."""
    assert (pack(one) == pack(other)) == (one == other)


texts = st.text(alphabet="ab \n<think>/\u00e9\u200b", max_size=12)
roles: Sequence[Role] = ("system", "user", "assistant", "tool")
messages = st.lists(st.tuples(st.sampled_from(roles), texts).map(lambda told: Message(*told)), max_size=6)


@given(messages)
def test_canonical_text_is_settled(history: Sequence[Message]) -> None:
    """Canonical text of canonical text is itself, a user's at least: an assistant's may uncover another thought."""
    for message in history:
        text = canonical_text(user(message.text))
        assert canonical_text(user(text)) == text


@given(messages)
def test_cutting_loses_only_what_says_nothing(history: Sequence[Message]) -> None:
    """A cut chat holds every message with words in it exactly once, in order, the turn without any reply."""
    chat = cut(history)
    rest = [*chat.history, *chat.turn]

    assert all(canonical_text(message) for message in rest)
    assert [m for m in history if m in rest][-len(rest) :] == rest or not rest
    assert all(message.role != "assistant" for message in chat.turn)
    assert not chat.history or chat.history[-1].role == "assistant"


def test_cut_takes_the_priming_out() -> None:
    """System messages ahead of the first other one are the priming, joined by a blank line; later ones are not."""
    chat = cut([system("Be kind."), system(" "), system("Be brief."), user("a"), bot("b"), system("Now."), user("c")])

    assert chat.priming == "Be kind.\n\nBe brief."
    assert chat.history == (user("a"), bot("b"))
    assert chat.turn == (system("Now."), user("c"))


def test_cut_drops_empty_messages_and_our_own_errors() -> None:
    """A reply that was an error of ours, and messages without any content, are as if never sent."""
    failed = bot("NewOaks AI was not reached; try again (parley: vendor_unavailable)")

    chat = cut([user("a"), failed, user(" "), bot("")])

    assert chat.history == ()
    assert chat.turn == (user("a"),)


def test_a_user_may_quote_an_error() -> None:
    """Only an assistant's message is dropped for ending in our error mark."""
    quoted = user("what is (parley: vendor_failed)")

    assert cut([quoted]).turn == (quoted,)


def test_compose_puts_the_question_last() -> None:
    """The text for a bot is priming, recap, context and question, parted by blank lines."""
    turn = Turn(new=[user("One"), system("Context"), user("Two")], priming="Priming", recap="Recap")

    assert compose(turn, priming=True) == "Priming\n\nRecap\n\nContext\n\nOne\n\nTwo"
    assert compose(turn, priming=False) == "Recap\n\nContext\n\nOne\n\nTwo"


def test_compose_sends_the_clients_own_text() -> None:
    """A single text is sent to the letter."""
    assert compose(Turn(new=[user("  a\n\n  b ")]), priming=True) == "  a\n\n  b "


def test_recap_tells_who_said_what() -> None:
    """A recap names the speakers in order, attachments by their kind."""
    shown = Message("user", "look", (Attachment("image", data=b"1"),))

    assert recap([shown, bot("nice")], max_chars=100) == (
        "[What was said earlier in this conversation]\n"
        "User: [image] look\nAssistant: nice\n"
        "[End of what was said earlier]"
    )


def test_recap_keeps_the_newest() -> None:
    """A recap that must be cut loses its oldest messages and shows it."""
    told = recap([user("old" * 20), bot("new")], max_chars=20, wording="Before:")

    assert told == "Before:\n…\nAssistant: new\n[End of what was said earlier]"


def test_recap_cuts_a_message_that_is_too_long_by_itself() -> None:
    """The end of the newest message is kept when even that is too long."""
    assert "… xxxxxend\n" in recap([bot("x" * 50 + "end")], max_chars=8)


def test_recap_of_nothing_is_nothing() -> None:
    """No history, no recap."""
    assert recap([], max_chars=100) == ""


TODAY = date(2026, 11, 2)


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-02", "2026-11-01", "2026-11-03", "2026/11/02", "02.11.2026", "2/11/2026", "11/2/2026",
        "November 2, 2026", "Nov 2 2026", "2 November 2026", "2nd Nov. 2026", "Monday, November 2nd, 2026",
        "2026-11-02T14:05:33Z", "2026-11-02 14:05", "11/2/2026, 2:05:33 PM", "Mon, 2 Nov 2026 14:05:33 GMT",
        "14:05 on November 2, 2026", "2026-11-02T14:05:33.123+01:00", "november 2, 2026 at 2:05 p.m.",
    ],
)  # fmt: skip
def test_the_date_of_these_days_is_masked(written: str) -> None:
    """A date of yesterday, today or tomorrow, with a weekday and a time beside it, counts nothing in a prompt."""
    assert undated(f"You help. Now: {written}.", TODAY) in ("You help. Now: [date].", "You help. Now: [date]")


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-04", "2025-11-02", "12026-11-02", "2026-11-021", "14:05", "version 2.11.20265", "November 2",
        "5f0c7c3e-0000-4000-8000-202611020000", "2 of 11", "Monday",
    ],
)  # fmt: skip
def test_nothing_else_is_masked(written: str) -> None:
    """Other dates, times by themselves, ids and numbers stay."""
    assert undated(f"See {written} there", TODAY) == f"See {written} there"
