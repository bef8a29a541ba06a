"""The plugs: what bots, stores and counters promise."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from proxy.messages import Event, Parked, Turn

PER_HEAD = 32  # entries with the same first label that a store keeps at most
FOUND = PER_HEAD + 1  # entries of one label that it finds at most: more than a head can have, so who counts can tell


class Bot(Protocol):
    """One configured chatbot at one vendor, safe for many concurrent turns. Turns and events are named tuples."""

    @property
    def identity(self) -> str:
        """Vendor, base URL, bot id and a digest of the configured credential: equal for equal bots only."""

    def check(self, turn: Turn) -> None:
        """Raise InvalidRequest for content this bot cannot carry. Pure; called before any conversation is looked up."""

    def forwarded(self, turn: Turn) -> Mapping[str, str]:
        """What of this turn, its messages apart, this bot puts into the vendor's conversation. Pure."""

    def reply(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Speak: a Handle once it is known, Deltas, and exactly one Finish, last.

        Without `turn.handle` a conversation is opened first. A given handle is yielded again only if the vendor
        changed it. Raises VendorError; ConversationExpired only if a handle was sent and no Delta was yielded.
        Closing the generator hangs up on the vendor.
        """

    async def start(self) -> None:
        """What is to be done once, before the first turn. Raises VendorError; the bot may be asked all the same."""

    async def aclose(self) -> None:
        """Give up all connections."""


class ConversationStore(Protocol):
    """Parked handles, bounded in number and in age. It may lose entries; it never brings one back.

    Each call raises StoreUnavailable when the store cannot be reached or does not answer in time.
    """

    async def secret(self) -> bytes:
        """32 random bytes, made once for all who share this store. Asked anew each time: a sign of life, too."""

    async def find(self, labels: Sequence[str]) -> Sequence[Parked]:
        """Entries with any of these labels, newest first, `FOUND` of each at most. A hint: may be stale when read."""

    async def take(self, id: str) -> Parked | None:
        """Remove an entry and return it; of many callers one gets it, the others None."""

    async def take_newest(self, label: str) -> Parked | None:
        """Remove the entry with this label that was spoken last and return it, in one step; None if there is none."""

    async def put(self, parked: Parked) -> None:
        """Park an entry until its time is over. Of one head, which is the first label, the oldest go."""

    async def aclose(self) -> None:
        """Let go of files and sockets."""


class RateCounter(Protocol):
    """Requests a minute, counted by name."""

    async def wait(self, name: str, per_minute: int) -> float:
        """Count one request. Returns the seconds until it may be made again, 0 if it may be made now."""

    async def aclose(self) -> None:
        """Let go of sockets."""
