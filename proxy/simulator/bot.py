"""The bot behind every pretended vendor: remembers its conversation and shows it in each reply. Pure, no HTTP."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
NAME = re.compile(r"\b(?:my|users?|user['\N{RIGHT SINGLE QUOTATION MARK}]s) name is ([^\W\d_][\w'-]*)", re.IGNORECASE)
ASKS_NAME = re.compile(r"\b(?:what(?:['\N{RIGHT SINGLE QUOTATION MARK}]s| is) my name|who am i)\b", re.IGNORECASE)
COMMAND = re.compile(r"(?:\A|\n[ \t\r]*\n)(?:recite (.*)|say ((?:(?!\n[ \t\r]*\n).)*\s*))\Z", re.DOTALL)
PIECE = re.compile(r"\n+|[ \t]*\w+|[^\w\n]")


@dataclass(frozen=True)
class Entry:
    """One thing said: `text` exactly as received or sent, `fields` what else came with it."""

    role: Literal["user", "bot"]
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Conversation:
    """What user and bot said, oldest first. `forgotten`: the vendor no longer knows it, the test still does."""

    handle: str | int
    entries: list[Entry] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    forgotten: bool = False
    paused: bool = False

    @property
    def heard(self) -> list[Entry]:
        """What the user said."""
        return [entry for entry in self.entries if entry.role == "user"]

    def add(self, role: Literal["user", "bot"], text: str, fields: Mapping[str, Any] | None = None) -> None:
        self.entries.append(Entry(role, text, fields or {}))


def answer(conversation: Conversation, markup: bool = False) -> str:
    """The bot's reply to the last thing the user said; `markup` puts HTML around what is not a test's own text.

    Commands for tests, in the last paragraph: `say TEXT` is answered by TEXT, verbatim; `recite TEXT` likewise, but
    TEXT runs from that paragraph to the end of the message, blank lines included.
    """
    command = COMMAND.search(conversation.heard[-1].text)
    if command:
        return "".join(command.groups(""))
    sentences = _sentences(conversation)
    if markup:
        text = "<br>".join(html.escape(sentence) for sentence in sentences)
        return re.sub(r"message (\d+)", r"message <b>\1</b>", text, count=1)
    return " ".join(sentences)


def pieces(text: str) -> list[str]:
    """A text in the pieces a bot would stream: words, marks and line breaks, as in NewOaks' printed sample."""
    return PIECE.findall(text)


def _sentences(conversation: Conversation) -> list[str]:
    *earlier, now = conversation.heard
    *context, question = BLANK_LINE.split(now.text.strip())
    if "unanswerable" in question.lower():
        return ["I am sorry, I have no answer to that."]
    greeting = "Hello again" if earlier else "Hello & welcome"
    said = [f"{greeting}, this is message {len(earlier) + 1} of our conversation.", f'You said: "{clip(question)}".']
    if context or "message_context" in now.fields:
        said.append("Some context came along with it.")
    if ASKS_NAME.search(question):
        told = [f"{entry.fields.get('message_context', '')}\n{entry.text}" for entry in conversation.heard]
        names = NAME.findall("\n".join(told))
        said.append(f"Your name is {names[-1]}." if names else "You have not told me your name.")
    if earlier:
        said.append(f'Before that you said: "{clip(BLANK_LINE.split(earlier[-1].text.strip())[-1])}".')
    return said


def clip(text: str) -> str:
    """One line of at most 60 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
