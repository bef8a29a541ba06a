"""A reply as its client is given it: converted, cut where the client said, and held back while it says nothing."""

from collections.abc import Sequence
from typing import Literal

from proxy.errors import NoAnswer, VendorFailed
from proxy.markup import MarkupFilter
from proxy.messages import Delta, Event, Finish, Handle, Message
from proxy.transcript import canonical_text


class Speech:
    """What a bot has said so far. `stop` are texts that end the reply, `most` is how many bytes of it are given.

    Once it is `cut` nothing more goes out, but the bot may be heard to its end, so that its conversation can go on.
    """

    def __init__(self, *, markdown: bool = False, stop: Sequence[str] = (), most: int | None = None) -> None:
        self.handle: Handle | None = None
        self.cut: Literal["", "stop", "length"] = ""
        self._finish: Finish | None = None
        self._pieces: list[str] = []
        self._left = most
        self._stop = Stop(stop) if stop else None
        self._markup = MarkupFilter() if markdown else None
        self._blank = ""

    @property
    def text(self) -> str:
        """All that was given."""
        return "".join(self._pieces)

    @property
    def ended(self) -> bool:
        """Whether the bot has come to its end."""
        return self._finish is not None

    @property
    def finish(self) -> Finish:
        """The end as the client is told it. Raises VendorFailed if there was none, and nothing was cut."""
        if self.cut:
            told = self._finish or Finish()
            return Finish(self.cut, told.usage, told.extra)
        if self._finish is None:
            raise VendorFailed("The bot's reply came to no end: its adapter is at fault")
        return self._finish

    def heard(self, event: Event) -> Sequence[Delta]:
        """What of this event goes on to the client now. Raises NoAnswer at the end of a reply that says nothing."""
        if isinstance(event, Delta):
            return self._given(event.text if self._markup is None else self._markup.feed(event.text))
        if isinstance(event, Handle):
            self.handle = event
            return ()
        self._finish = event
        rest = self._given("" if self._markup is None else self._markup.flush())
        if not self.cut and not canonical_text(Message("assistant", self.text)):
            raise NoAnswer("The bot's reply was blank; ask again in other words, or look at it at its vendor")
        return rest

    def _given(self, text: str) -> Sequence[Delta]:
        if self.cut:
            return ()
        if self._stop is not None:
            text, met = self._stop.before(text, last=self.ended)
            self.cut = "stop" if met else ""
        if self._left is not None:
            text = self._fitting(text, self._left)
        if not self._pieces:
            text = self._blank + text
            self._blank = "" if text.strip() else text  # a blank reply is a fault: it keeps its status
        if not text or self._blank:
            return ()
        self._pieces.append(text)
        return (Delta(text),)

    def _fitting(self, text: str, left: int) -> str:
        encoded = text.encode()
        self._left = left - len(encoded)
        if self._left >= 0:
            return text
        self.cut = "length"
        return encoded[:left].decode(errors="ignore")  # never a part of a character


class Stop:
    """Looks for texts that end a reply, also where they come in pieces."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._kept = ""  # what may be the beginning of one of them

    def before(self, piece: str, *, last: bool) -> tuple[str, bool]:
        """What may be given of the reply now, and whether one of the texts was met."""
        text = self._kept + piece
        met = [(at + len(stop), at) for stop in self._texts if (at := text.find(stop)) >= 0]
        if met:  # the one that is complete first, as whoever reads along would stop; so pieces make no difference
            return text[: min(met)[1]], True
        kept = 0 if last else max(self._overlap(text, stop) for stop in self._texts)
        self._kept = text[len(text) - kept :]
        return text[: len(text) - kept], False

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How many characters at the end of the text are the beginning of a stop text."""
        longest = min(len(text), len(stop) - 1)
        return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
