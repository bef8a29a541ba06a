"""A message history as a value: how it is cut, its canonical form, the chained digest, the recap. Pure."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import groupby, takewhile
from json import dumps, loads
from operator import attrgetter
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from proxy.messages import Attachment, Message, ToolCall, Turn

SCHEME = b"parley-1"  # part of every digest: a change of the canonical form must not match what was parked before it
DIGEST_BYTES = 16

_THINKING = re.compile(r"\s*(?:<think>.*?(?:</think>|\Z)\s*)+", re.DOTALL)
_INVISIBLE = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
_OUR_ERROR = re.compile(r"\(parley: [a-z_]+\)\s*\Z")
_SIGNATURE_PARAMETER = re.compile(
    r"x-(amz|goog|oss|cos)-|(sig|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|token|se|sp|sv|sr|st"
    r"|spr|skoid|sktid|skt|ske|sks|skv)\Z",
    re.IGNORECASE,
)


class Chat(NamedTuple):
    """A message list, cut: the system prompt, what the bot should have seen, and what it is asked now."""

    priming: str
    history: Sequence[Message]
    turn: Sequence[Message]


class Canonical(NamedTuple):
    """What two renditions of the same message have in common."""

    role: str
    text: str
    calls: tuple[str, ...]
    attachments: tuple[str, ...]


def cut(messages: Sequence[Message]) -> Chat:
    """Take the priming out, drop empty messages and our own error texts, cut after the last assistant message."""
    priming = list(takewhile(lambda message: message.role == "system", messages))
    kept = [message for message in messages[len(priming) :] if not says_nothing(message)]
    end = max((i + 1 for i, message in enumerate(kept) if message.role == "assistant"), default=0)
    text = "\n\n".join(message.text for message in priming if message.text.strip())
    return Chat(text, tuple(kept[:end]), tuple(kept[end:]))


def canonical(messages: Iterable[Message]) -> Sequence[Canonical]:
    """The canonical form of messages, neighbours of one role merged. All counting of messages is done on this."""
    return tuple([_merged(list(neighbours)) for _, neighbours in groupby(messages, key=attrgetter("role"))])


def _merged(same: Sequence[Message]) -> Canonical:
    first = same[0]
    if len(same) == 1 and not first.tool_calls and not first.attachments:
        return tuple.__new__(Canonical, (first.role, canonical_text(first), (), ()))  # half the time of Canonical(...)
    return Canonical(
        first.role,
        " ".join(filter(None, map(canonical_text, same))),
        tuple([_canonical_call(call) for message in same for call in message.tool_calls]),
        tuple([_canonical_attachment(attachment) for message in same for attachment in message.attachments]),
    )


def canonical_text(message: Message) -> str:
    """NFC, no invisible characters, every run of white space one blank; an assistant's leading thoughts removed.

    Each step undoes what some client was seen to do to the replies that it sends back.
    """
    text = message.text
    if text.isascii():
        if text.isprintable() and "  " not in text and "<think>" not in text:
            return text.strip(" ")  # as most are; the rest would be the same in twice the time
    else:
        text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    if message.role == "assistant" and "<think>" in text and (thoughts := _THINKING.match(text)):
        text = text[thoughts.end() :]
    return " ".join(text.split())


class Chain:
    """The keyed, chained digest of one partition: `h_i = H(h_{i-1}, canonical(message_i))`, 128 bit BLAKE2b."""

    def __init__(self, key: bytes, partition: bytes) -> None:
        self._key = key
        self.start = self._digest(SCHEME, partition)

    def heads(self, entries: Iterable[Canonical]) -> Iterator[bytes]:
        """The digest after each canonical message."""
        head = self.start
        for entry in entries:
            head = self._digest(head, _encoded(entry))
            yield head

    def head_of(self, entries: Iterable[Canonical], start: bytes | None = None) -> bytes:
        """The digest after the last of the messages."""
        head, key = self.start if start is None else start, self._key
        for entry in entries:  # _digest in place: a long history comes by here in every turn
            head = blake2b(head + _encoded(entry), digest_size=DIGEST_BYTES, key=key).digest()
        return head

    def digests(self, entries: Iterable[Canonical]) -> str:
        """Each message by itself, wherever it stands: 8 bytes, in hexadecimal, one after the other."""
        return "".join(blake2b(_encoded(entry), digest_size=8, key=self._key).hexdigest() for entry in entries)

    def fingerprint(self, text: str) -> str:
        """A text that must be compared later and not be kept."""
        return self._digest(self.start, text.encode()).hex()

    def _digest(self, before: bytes, content: bytes) -> bytes:
        return blake2b(before + content, digest_size=DIGEST_BYTES, key=self._key).digest()


def undated(text: str, today: date) -> str:
    """A system prompt without the date of these days, and the time beside it: front ends put them there each time.

    Nothing else is masked: a date further off is what the prompt is about, an id is usually whose chat it is.
    """
    return _dates_about(today).sub("[date]", text)


@lru_cache(maxsize=4)
def _dates_about(today: date) -> re.Pattern[str]:
    """Yesterday, today and tomorrow in the usual ways of writing, with a weekday, and a time before or after."""
    ways: list[str] = []
    for day in (today + timedelta(days=offset) for offset in (-1, 0, 1)):
        d, m, y = f"0?{day.day}", f"0?{day.month}", day.year
        name = rf"(?:{day:%B}|{day:%b})\.?"
        ways += [rf"{y}[-/.]{m}[-/.]{d}", rf"{d}[-/.]{m}[-/.]{y}", rf"{m}[-/.]{d}[-/.]{y}"]
        ways += [rf"{name} {d}(?:st|nd|rd|th)?,? {y}", rf"{d}(?:st|nd|rd|th|\.)? {name},? {y}"]
    clock = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[ap]\.?m\b\.?)?(?: ?(?:Z|UTC|GMT|[+-]\d{2}:?\d{2})\b)?"
    weekday = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?"
    pattern = rf"(?<!\w)(?:{clock},? (?:on )?)?{weekday}(?:{'|'.join(ways)})(?:(?:,? (?:at )?|T){clock})?(?!\w)"
    return re.compile(pattern, re.IGNORECASE)


def fields_digest(fields: Mapping[str, str]) -> bytes:
    """An unambiguous digest of named texts, in whatever order they come."""
    return blake2b(pack(part for item in sorted(fields.items()) for part in item), digest_size=DIGEST_BYTES).digest()


def pack(parts: Iterable[str]) -> bytes:
    """Texts joined so that no two different lists give the same bytes."""
    encoded = [part.encode() for part in parts]
    return b"".join([b"%d:%b" % (len(part), part) for part in encoded])


def compose(turn: Turn, *, priming: bool) -> str:
    """The one text a bot is sent for this turn, parted by blank lines, the question last.

    `priming=False` leaves the system prompt out: for vendors with a field of its own for it, and for every message
    of a conversation but the first.
    """
    context = [message.text for message in turn.new if message.role == "system"]
    question = [message.text for message in turn.new if message.role != "system"]
    parts = [turn.priming if priming else "", turn.recap, *context, *question]
    return "\n\n".join(part for part in parts if part.strip())


RECAP_WORDING = "[What was said earlier in this conversation]"
_RECAP_END = "[End of what was said earlier]"
_SPEAKER = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def recap(messages: Sequence[Message], *, max_chars: int, wording: str = "") -> str:
    """A block that tells a new vendor conversation what was said before; the newest is kept where it must be cut."""
    lines: list[str] = []
    left = max_chars
    if not max_chars:
        return ""
    for message in reversed(messages):
        line = f"{_SPEAKER[message.role]}: {_told(message)}"
        if len(line) > left:
            lines += [f"… {line[-left:]}"] if left > 0 and not lines else ["…"]
            break
        lines.append(line)
        left -= len(line) + 1
    return "\n".join([wording or RECAP_WORDING, *reversed(lines), _RECAP_END]) if lines else ""


def says_nothing(message: Message) -> bool:
    """Whether a message counts as never said: it is empty, or one of our own error texts."""
    if message.attachments or message.tool_calls:
        return False
    if message.role == "assistant" and "(parley: " in message.text and _OUR_ERROR.search(message.text):
        return True
    return not message.text[:1].isalnum() and not canonical_text(message)


def _encoded(entry: Canonical) -> bytes:
    if not entry.calls and not entry.attachments:
        return f"{entry.role}\n{entry.text}".encode()
    return b"+" + pack((entry.role, entry.text, str(len(entry.calls)), *entry.calls, *entry.attachments))


def _canonical_call(call: ToolCall) -> str:
    try:
        arguments = dumps(loads(call.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{call.name}({arguments})"


def _canonical_attachment(attachment: Attachment) -> str:
    if attachment.data is not None:
        return f"{attachment.kind} {blake2b(attachment.data, digest_size=DIGEST_BYTES).hexdigest()}"
    try:
        parts = urlsplit(attachment.url)
    except ValueError:
        return f"{attachment.kind} {attachment.url}"
    query = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNATURE_PARAMETER.match(k)]
    return f"{attachment.kind} {parts._replace(query=urlencode(query), fragment='').geturl()}"


def _told(message: Message) -> str:
    parts = [f"[{attachment.kind}]" for attachment in message.attachments]
    parts += [f"[called {call.name}({call.arguments})]" for call in message.tool_calls]
    return " ".join([*parts, message.text]) if message.text else " ".join(parts)
