"""What renditions of a history have in common, and when a tier of matching holds: from the rules, not the product.

The texts that the machine makes up are tame, so that this can be short.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.messages import Message

THOUGHTS = re.compile(r"\s*<think>.*?(</think>\s*|\Z)", re.DOTALL)
OUR_ERROR = re.compile(r"\(parley: \w+\)$")
TOKEN = re.compile(r"\b[a-z]\d+\b")  # every text has one or more, so that a recap tells whose it is


class Row(NamedTuple):
    """A message, as far as it counts."""

    role: str
    text: str
    attachments: tuple[bytes, ...] = ()


Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Past:
    """A request's messages without the priming: what was said, and what is asked now."""

    history: Rows
    turn: Rows


def plain(message: Message) -> str:
    text = unicodedata.normalize("NFC", message.text.replace("\u200b", "").replace("\ufeff", ""))
    if message.role == "assistant":
        while thoughts := THOUGHTS.match(text):
            text = text[thoughts.end() :]
    return " ".join(text.split())


def rows(messages: Iterable[Message]) -> Rows:
    """Empty ones and our own errors dropped, neighbours of one role merged."""
    found: list[Row] = []
    for message in messages:
        row = Row(message.role, plain(message), tuple(part.data or b"" for part in message.attachments))
        # Dropped as it came: that is step 2, and white space is made one only after it.
        if not (row.text or row.attachments) or (row.role == "assistant" and OUR_ERROR.search(message.text.rstrip())):
            continue
        if found and found[-1].role == row.role:
            before = found.pop()
            row = Row(row.role, f"{before.text} {row.text}".strip(), before.attachments + row.attachments)
        found.append(row)
    return tuple(found)


def past(messages: Sequence[Message]) -> Past:
    """The priming taken off, cut behind the last assistant message."""
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    all_rows = rows(messages[start:])
    end = max((i + 1 for i, row in enumerate(all_rows) if row.role == "assistant"), default=0)
    return Past(all_rows[:end], all_rows[end:])


def tokens(told: Rows) -> list[str]:
    return [token for row in told for token in TOKEN.findall(row.text)]


def tiers(stands_for: Rows, history: Rows, *, scoped: bool) -> set[str]:
    """The tiers by which a conversation that stands for one history may be continued under another."""
    if not history or not stands_for:
        return set()
    if stands_for == history:
        # All of them hold: it may have come back after a look for exactly this, and be found by the next.
        return {"exact", "interrupted", "contained", "window"} if scoped else {"exact", "interrupted"}
    found = set()
    if _is_interrupted(stands_for, history):
        found.add("interrupted")
    if scoped and _is_contained(stands_for, history):
        found.add("contained")
    if scoped and _is_window(stands_for, history):
        found.add("window")
    if len(stands_for) < len(history) <= 2 * len(stands_for) and history[: len(stands_for)] == stands_for:
        found.add("caught-up")
    return found


def may_be_cut(row: Row) -> bool:
    """Whether a last assistant message is long enough to be known as the beginning of a reply."""
    return row.role == "assistant" and len(row.text.split()) >= 2


def _is_interrupted(stands_for: Rows, history: Rows) -> bool:
    last = history[-1]
    return (
        may_be_cut(last)
        and stands_for[:-1] == history[:-1]
        and stands_for[-1].role == "assistant"
        and stands_for[-1].text.startswith(last.text)
    )


def _is_contained(stands_for: Rows, history: Rows) -> bool:
    at = max((i for i, row in enumerate(history) if row.role == "user"), default=-1)
    if len(stands_for) != len(history) or at < 0 or stands_for[at].role != "user":
        return False
    short, long = history[at], stands_for[at]
    same = stands_for[:at] == history[:at] and stands_for[at + 1 :] == history[at + 1 :]
    same = same and short.attachments == long.attachments  # a question that lost its picture is another one
    return same and len(short.text) >= 8 and short.text in long.text


def _is_window(stands_for: Rows, history: Rows) -> bool:
    before_last = max((i for i, row in enumerate(stands_for[:-1]) if row.role == "assistant"), default=-1)
    exchange = len(stands_for) - before_last - 1  # the last turn and its reply
    return exchange <= len(history) < len(stands_for) and stands_for[-len(history) :] == history
