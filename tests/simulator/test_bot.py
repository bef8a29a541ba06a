"""The bot: what it says is a function of the conversation."""

import pytest

from proxy.simulator.bot import Conversation, answer, clip, pieces


def talk(*texts: str, **fields: str) -> str:
    conversation = Conversation("c")
    for text in texts:
        conversation.add("user", text, fields)
        reply = answer(conversation)
        conversation.add("bot", reply)
    return reply


def test_counts_and_quotes() -> None:
    """The bot numbers the message, quotes it and the one before."""
    reply = talk("I like tea.", "And milk.")
    assert "message 2 of our conversation" in reply
    assert 'You said: "And milk."' in reply
    assert 'Before that you said: "I like tea."' in reply


def test_quotes_the_question() -> None:
    """The bot quotes the last paragraph only and says that context came along."""
    reply = talk("Earlier conversation:\nUser: hi\n\nHow are\nyou?")
    assert 'You said: "How are you?". Some context came along' in reply
    assert "context" not in talk("How are you?")


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        (("my name is Ada", "hm", "What is my name?"), {}),
        (("User: my name is Ada\n\nwho am I?",), {}),
        (("my name is Bob", "No, my name is Ada.", "what's my name"), {}),
        (("What is my name?",), {"message_context": "The users name is Ada."}),
    ],
)
def test_remembers_a_name(texts: tuple[str, ...], fields: dict[str, str]) -> None:
    """The bot knows the name told last, in a message, a context block or a context field."""
    assert "Your name is Ada." in talk(*texts, **fields)


def test_knows_no_name() -> None:
    """The bot admits that it was not told a name."""
    assert "You have not told me your name." in talk("Who am I?")


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("say hello", "hello"),
        ("say  <b>two</b> \U0001f642\nlines \n", " <b>two</b> \U0001f642\nlines \n"),
        ("Context.\n\nsay x", "x"),
        ("Context.\n\nrecite one\n\ntwo\n", "one\n\ntwo\n"),
    ],
)
def test_says_what_it_is_told(text: str, reply: str) -> None:
    """The bot repeats verbatim what a test tells it to say."""
    assert talk(text) == reply


def test_does_not_obey_context() -> None:
    """A command in an earlier paragraph is no command."""
    assert talk("say no\n\nHow are you?") != "no"


def test_markup() -> None:
    """With markup a reply has breaks, tags and entities, but not where it says what it was told to."""
    conversation = Conversation("c")
    conversation.add("user", "a < b")
    reply = answer(conversation, markup=True)
    assert "<br>" in reply
    assert "<b>1</b>" in reply
    assert "Hello &amp; welcome" in reply
    assert "a &lt; b" in reply
    conversation.add("user", "say a < b")
    assert answer(conversation, markup=True) == "a < b"


def test_has_no_answer() -> None:
    """The bot cannot answer the unanswerable."""
    assert talk("Something unanswerable?") == "I am sorry, I have no answer to that."


def test_clips() -> None:
    """Quotes are one line of at most 60 characters."""
    assert clip("a\n b") == "a b"
    assert len(clip("x" * 100)) == 60
    assert clip("x" * 100).endswith("x…")


def test_pieces() -> None:
    """Pieces fall as in NewOaks' printed sample (documented) and add up to the text."""
    sample = ["\n", "Hello", "!", " How", " can", " I", " assist", " you", "?"]
    assert pieces("\nHello! How can I assist you?") == sample
    for text in (" a  b\r\n\n\tc ", "漢字 🙂 é", "x" * 250_000, ""):
        assert "".join(pieces(text)) == text
