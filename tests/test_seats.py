"""Taking handles while replies are still being spoken."""

import asyncio
from contextlib import ExitStack

import pytest

from proxy import seats
from proxy.messages import Delta, Message
from proxy.reply import Listener
from tests.scripted import Cue, House, hear, user


async def interrupted(house: House, *, listening: bool = False, ends: float | None = 0.0) -> str:
    """How the next request goes on when it arrives while the reply that its client cut short is still being spoken."""
    gate = asyncio.Event()
    house.bot.cues.append(Cue(pieces=("I will tell you ", "everything"), wait=gate))
    reply = await house.ask(user("a"))
    with ExitStack() as stack:
        (heard,) = await hear(stack.enter_context(Listener([reply])))
        assert isinstance(heard, Delta)
        if not listening:
            stack.close()
        if ends is not None:
            asyncio.get_running_loop().call_later(ends, gate.set)
        return await house.said("b", [user("a"), Message("assistant", heard.text)])


async def test_a_request_waits_for_the_reply_that_its_client_interrupted() -> None:
    """A reply cut short by its client's next words is awaited, and the chat goes on in the same conversation."""
    house = House()

    assert await interrupted(house, ends=0.1) == "continued interrupted"
    assert list(house.bot.conversations) == [1]
    assert house.bot.conversations[1][:3] == ["a", "I will tell you everything", "b"]


async def test_it_waits_no_longer_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted reply that takes too long, or that somebody listens to, is not waited for."""
    monkeypatch.setattr(seats, "HANG_UP_NOTICED", 0.02)
    monkeypatch.setattr(seats, "LONGEST_WAIT", 0.05)

    assert await interrupted(House(), ends=None) == "rebuilt in-use"
    assert await interrupted(House(), ends=None, listening=True) == "rebuilt in-use"
    assert await interrupted(House(linger=0), ends=None) == "rebuilt unknown-history"


async def test_a_beginning_of_a_running_reply_and_of_a_parked_one_is_ambiguous() -> None:
    """Running replies count as candidates beside the parked ones."""
    house = House()
    house.bot.cues.append(Cue(pieces=("I will tell you ", "nothing")))
    await house.told(user("a"))

    assert await interrupted(house, ends=0.05) == "rebuilt ambiguous"
