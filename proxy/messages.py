"""The words this program is written in: plain values, no I/O, nothing of OpenAI's or any vendor's.

What is made most often, for every message or piece, is a named tuple: a frozen dataclass takes more than twice as
long to make. What a store keeps is a dataclass, since that is what orjson writes with its names.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant", "tool"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Attachment:
    """Something in a message that is not text: its bytes, or the URL a client named (never fetched by us).

    `path` is where it stood in the client's request, for an error that must name it.
    """

    kind: Literal["image", "audio", "file"]
    media_type: str = ""
    data: bytes | None = None
    url: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant asked for; `arguments` is JSON text as the client sent it."""

    name: str
    arguments: str


class Message(NamedTuple):
    """One message of a chat. `developer` has become `system` and `function` has become `tool`."""

    role: Role
    text: str
    attachments: Sequence[Attachment] = ()
    tool_calls: Sequence[ToolCall] = ()


@dataclass(frozen=True, slots=True)
class Handle:
    """A vendor's own reference to one of its conversations; opaque to all but that vendor's adapter."""

    data: Mapping[str, str | int]


class Delta(NamedTuple):
    """The next piece of a reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What the vendor says a turn cost, in tokens; vendors here give one total and no split."""

    total_tokens: int


class Finish(NamedTuple):
    """The end of a reply. `extra` holds what a vendor told beside it, such as `{"no_answer": True}`."""

    reason: Literal["stop", "length"] = "stop"
    usage: Usage | None = None
    extra: Mapping[str, bool | int | str] = _NOTHING


Event = Handle | Delta | Finish


class Ask(NamedTuple):
    """What a client wants: the whole chat as it sees it, and who it is.

    `tenant` is the name of the caller's key, `scope` a conversation id that the client happens to send ("" if none),
    `end_user` the person behind the client. `stream` says whether the reply is wanted piece by piece. `body` gives a
    digest of all the client sent, `stream` apart, for whoever has to compare it: with `repeated` (the client says that
    it tries again) or with an equal `idempotency_key` an equal body is the same ask once more. A reply ends where one
    of `stop` begins, and after `most` bytes. Of several replies to one request `choice` tells which this is; all but 0
    get a conversation of their own.
    """

    tenant: str
    messages: Sequence[Message]
    end_user: str = ""
    scope: str = ""
    contact: Mapping[str, str] = _NOTHING
    metadata: Mapping[str, str] = _NOTHING
    stream: bool = False
    body: Callable[[], bytes] = bytes
    repeated: bool = False
    idempotency_key: str = ""
    stop: Sequence[str] = ()
    most: int | None = None
    choice: int = 0


class Turn(NamedTuple):
    """What a bot is asked now.

    `new` are the messages to send, `history` what came before them, `handle` the vendor conversation that has
    seen that history (None: open one). `priming` is the system prompt to be handed over and `recap` the block
    that tells a conversation what it has not seen; both are "" when there is nothing to tell. `end_user` and
    `contact` (email, phone_number, nickname) name the person, `metadata` is what the client attached, and
    `stream` says whether the client wants the reply piece by piece. `priming_changed`: the conversation was told
    another system prompt than this one.
    """

    new: Sequence[Message]
    history: Sequence[Message] = ()
    handle: Handle | None = None
    priming: str = ""
    recap: str = ""
    end_user: str = ""
    contact: Mapping[str, str] = _NOTHING
    metadata: Mapping[str, str] = _NOTHING
    stream: bool = False
    priming_changed: bool = False

    @property
    def primes(self) -> bool:
        """Whether a conversation that remembers its system prompt must be told this one."""
        return self.handle is None or self.priming_changed


@dataclass(frozen=True, slots=True)
class Parked:
    """A handle at rest in a store.

    It may be found under any of its `labels`; `marks` is what tolerant matching compares; `spoken_at` is when the
    vendor last spoke (seconds since the epoch) and `ttl` how many seconds after that it may still be resumed.
    """

    id: str
    handle: Handle
    labels: Sequence[str]
    marks: Mapping[str, str]
    spoken_at: float
    ttl: float


@dataclass(frozen=True, slots=True)
class BotLoad:
    """What goes on at one bot now: turns that it is answering, turns in line, and whether it is left alone."""

    model: str
    running: int
    waiting: int
    resting: bool


@dataclass(slots=True)
class TurnRecord:
    """One turn at one bot, filled in while it runs. Times are seconds of a monotonic clock.

    `how` and `reason` are what `x-parley-conversation` and `x-parley-reason` tell; `outcome` is "ok", an error code,
    "left" (nobody listened any more) or "" while it runs. `renamed`: the vendor changed its conversation's id.
    """

    model: str
    how: str = ""
    reason: str = ""
    outcome: str = ""
    started: float = field(default_factory=time.monotonic)
    first_delta: float | None = None
    ended: float | None = None
    deltas: int = 0
    parked: bool = False
    renamed: bool = False
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: the name it goes by in partitions and logs, and the patterns of the model names it may use.

    `digest` is the SHA-256 of its secret, which is kept nowhere; `requests_per_minute` None is as many as it likes.
    """

    name: str
    digest: bytes = b""
    models: Sequence[str] = ("*",)
    requests_per_minute: int | None = None

    def may_use(self, model: str) -> bool:
        """Whether one of its patterns fits this model's name."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)
