"""Speaking once, listening any number of times, leaving."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from proxy.errors import ShuttingDown, VendorFailed
from proxy.messages import Ask, Delta, Finish, TurnRecord
from proxy.reply import Listener, ListenerLeft, Reply, Said
from tests.scripted import hear


class Script:
    """Events on cue."""

    def __init__(self) -> None:
        self.cues: asyncio.Queue[Said | Exception | None] = asyncio.Queue()
        self.closed = False

    def say(self, *events: Said | Exception | None) -> None:
        for event in events:
            self.cues.put_nowait(event)

    async def play(self, reply: Reply) -> None:
        try:
            while (event := await self.cues.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                reply.say(event)
        finally:
            self.closed = True

    def reply(self, linger: float = 10) -> Reply:
        reply = Reply(Ask("tenant", ()), b"head", TurnRecord("model"), linger=linger)
        reply.speak(partial(self.play, reply))
        return reply


A, B, END = Delta("a"), Delta("b"), Finish()


async def everything(reply: Reply) -> list[Said]:
    heard: list[Said] = []
    with Listener([reply]) as listener:
        while not heard or heard[-1] != END:
            heard += await hear(listener)
    return heard


async def test_every_listener_hears_the_reply_from_its_beginning() -> None:
    """A reply is heard whole by those who were there, who joined late, and who came after its end."""
    script = Script()
    reply = script.reply()
    early = asyncio.create_task(everything(reply))
    script.say(A)
    await asyncio.sleep(0.01)
    late = asyncio.create_task(everything(reply))
    script.say(B, END, None)

    assert await early == await late == await everything(reply) == [A, B, END]


async def test_what_was_said_at_once_is_heard_at_once() -> None:
    """Events that come without a pause between them are heard together."""
    script = Script()
    script.say(A, B)
    with Listener([script.reply(linger=0)]) as listener:
        await asyncio.sleep(0)
        heard: Sequence[Said] = await hear(listener)

    assert heard == [A, B]


async def test_silence_is_heard_as_nothing() -> None:
    """Hearing ends empty-handed after its timeout, and goes on afterwards."""
    script = Script()
    with Listener([script.reply()]) as listener:
        assert await hear(listener, 0.01) == []
        script.say(A)
        assert await hear(listener, 1) == [A]


async def test_a_fault_is_raised_after_what_was_said() -> None:
    """All that was said before a fault is heard before it, by every listener."""
    script = Script()
    reply = script.reply()
    script.say(A, VendorFailed("it broke off"))
    for _ in range(2):
        with Listener([reply]) as listener:
            assert await hear(listener) == [A]
            with pytest.raises(VendorFailed):
                await hear(listener)


async def test_an_unheard_reply_is_stopped_after_lingering() -> None:
    """When the last listener has left, the speaker is stopped once `linger` is over, and its generator closed."""
    script = Script()
    reply = script.reply(linger=0.02)
    with Listener([reply]) as listener:
        script.say(A)
        await hear(listener)
    await asyncio.sleep(0.01)
    assert not reply.ended.done()

    await asyncio.sleep(0.03)

    assert reply.ended.cancelled()
    assert script.closed
    with Listener([reply]) as late:
        assert await hear(late) == [A]
        with pytest.raises(ShuttingDown):
            await hear(late)


async def test_a_new_listener_stops_the_clock() -> None:
    """A reply that is listened to again in time runs on."""
    script = Script()
    reply = script.reply(linger=0.02)
    with Listener([reply]):
        pass
    with Listener([reply]) as listener:
        await asyncio.sleep(0.04)
        script.say(END, None)
        assert await hear(listener) == [END]


async def test_one_of_two_may_leave() -> None:
    """A reply runs on for the listener that stays."""
    script = Script()
    reply = script.reply(linger=0)
    with Listener([reply]) as stays:
        with Listener([reply]):
            pass
        await asyncio.sleep(0.01)
        script.say(A)
        assert await hear(stays) == [A]


async def test_a_lingering_reply_may_end() -> None:
    """An unheard reply that ends in time is not stopped, and its record says that nobody heard."""
    script = Script()
    reply = script.reply(linger=0.05)
    with Listener([reply]):
        pass
    script.say(END, None)
    await asyncio.sleep(0.08)

    assert not reply.ended.cancelled()
    assert not reply.record.heard


async def test_leaving_wakes_a_waiting_listener() -> None:
    """A listener told to leave stops hearing at once."""
    with Listener([Script().reply()]) as listener:
        waiting = asyncio.create_task(hear(listener))
        await asyncio.sleep(0)
        listener.leave()
        with pytest.raises(ListenerLeft):
            await waiting
