"""Every deadline at its own time, for every vendor and both ways of asking: what strikes, which key it names, when.

What a fault does to the conversation is in test_faults.py; here only one deadline of a bot is near at a time.
"""

import asyncio
import select
import socket
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from proxy.simulator import Simulator
from tests.conftest import demo_models
from tests.end_to_end import broken
from tests.end_to_end.broken import REPLY, Exchange, Fault, Vendor, Wire, eventually, wires
from tests.end_to_end.callers import MODELS, Answer, Chat, Heard, Refused, call, calling
from tests.end_to_end.test_faults import OPENERS, STREAMED, WAYS, is_row, proxied

NEAR, FAR = 1.2, 25.0  # seconds: a deadline that a busy machine keeps, and one that no test lives to see
LATE = 4.0  # seconds after its deadline at which a turn must have ended, on a busy machine
DEADLINES = ("connect_timeout", "first_byte_timeout", "idle_timeout", "timeout")
NEARBY: Mapping[str, Mapping[str, float]] = {
    **{key: {key: NEAR} for key in (*DEADLINES, "poll_timeout")},
    "turn": {"timeout": 2.5 * NEAR},
}
T = TypeVar("T")
POLLS = {"poll_interval": 0.05, "poll_timeout": FAR}


@dataclass(frozen=True)
class Scene:
    """A proxy with a bot for every vendor and entry of NEARBY, `VENDOR-KEY`, before a vendor on the wire."""

    url: str
    vendor: Vendor
    wire: Wire


@pytest.fixture(scope="module")
def built() -> Iterator[Scene]:
    with wires(1) as (wire,):
        wire.listen()
        models: dict[str, dict[str, Any]] = {}
        for (model, demo), key in product(demo_models("", Simulator()).items(), NEARBY):
            if key != "poll_timeout" or model == "askhandle":
                times = {**dict.fromkeys(DEADLINES, FAR), **(POLLS if model == "askhandle" else {}), **NEARBY[key]}
                place = {"base_url": f"http://127.0.0.1:{wire.port}/{model}", "breaker": {"failures": 0}}
                models[f"{model}-{key}"] = {**demo, **place, **times}
        with proxied(models) as (url, _):
            yield Scene(url, wire.vendor, wire)


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    """The scene with a healthy vendor; afterwards it was hung up on."""
    built.vendor.reset()
    yield built
    assert eventually(lambda: built.wire.live == 0)
    assert built.vendor.stuck == []
    assert built.vendor.heard_twice() == []


@dataclass
class Turn:
    """A chat's turn, and what became of it. `seconds`: how long it took."""

    model: str
    way: str
    chat: Chat
    answer: Answer | None = None
    seconds: float = 0.0

    async def begins(self) -> Heard:
        """The first turn; once more where this machine was too slow for a near deadline, and nothing was delivered."""
        try:
            return await self.chat.say("One is said.")
        except Refused as refused:
            if refused.answer.headers["x-should-retry"] != "true":
                raise
            self.chat.messages.pop()
            return await self.chat.say("One is said.")

    async def fails(self) -> None:
        began = time.monotonic()
        with pytest.raises(Refused) as caught:
            await self.chat.say("Two is said.")
        self.seconds = time.monotonic() - began
        self.chat.messages.pop()
        self.answer = caught.value.answer

    def told(self, code: str, *, midway: bool = False) -> str:
        """The message, once all else of the error is as its row says."""
        assert self.answer is not None
        assert is_row(self.answer, code, midway=midway), self
        return str((self.answer.data[-1] if midway else self.answer.json)["error"]["message"])


async def turns(scene: Scene, key: str, models: Sequence[str] = MODELS, *, opened: bool = True) -> list[Turn]:
    """Chats with the bots for which this deadline is near, both ways; `opened`: each has had a turn."""
    made = []
    for model, way in product(models, WAYS):
        chat = Chat(scene.url, f"{model}-{key}", WAYS[way], more={"user": uuid4().hex})
        made.append(Turn(model, way, chat))
    if opened:
        assert {heard.how for heard in await together(turn.begins() for turn in made)} == {"opened"}
    return made


async def together(tasks: Iterable[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*tasks))


async def all_fail(scene: Scene, made: Sequence[Turn], *faults: tuple[str, Fault], at: float = NEAR) -> None:
    """All turns meet these faults, and end at the near deadline: not before it, and not long after."""
    for on, fault in faults:
        for _ in made:
            scene.vendor.fail(fault, on=on)
    await together(turn.fails() for turn in made)
    for turn in made:
        assert 0.9 * at <= turn.seconds < at + LATE, turn


# --- what comes too late


async def silent_after_the_head(line: Exchange) -> None:
    """Headers are no answer yet."""
    await line.head()
    await line.hung_up()


SLOW: Sequence[tuple[str, Fault, bool]] = [  # the key, the fault, and whether text comes before it
    ("first_byte_timeout", broken.stall_at_once, False),
    ("first_byte_timeout", broken.drip_headers, False),
    ("first_byte_timeout", silent_after_the_head, False),
    ("idle_timeout", broken.stall_in_body, True),
    ("timeout", broken.stall_at_once, False),
    ("timeout", broken.drip_body, True),
]


@pytest.mark.parametrize(("key", "fault", "begins"), SLOW, ids=[f"{key}-{fault.__name__}" for key, fault, _ in SLOW])
async def test_deadline_strikes(scene: Scene, key: str, fault: Fault, begins: bool) -> None:
    """A turn ends at the one deadline that is near, with a 504 (or an event, after text) that names its key."""
    made = await turns(scene, key)
    await all_fail(scene, made, ("ask", fault))
    for turn in made:
        told = turn.told("vendor_timeout", midway=begins and turn.way == "stream" and turn.model in STREAMED)
        assert f"`{key}`" in told
        assert "raise it" in told
    assert eventually(lambda: scene.wire.live == 0), "not hung up on"


async def test_opening_and_asking_share_one_time(scene: Scene) -> None:
    """`timeout` is for the whole turn: what the opening took is no longer there for the question."""

    async def slowly(line: Exchange) -> None:
        await asyncio.sleep(1.5 * NEAR)
        await broken.healthy(line)

    made = await turns(scene, "turn", OPENERS, opened=False)
    await all_fail(scene, made, ("open", slowly), ("ask", broken.stall_at_once), at=2.5 * NEAR)
    for turn in made:
        assert "`timeout`" in turn.told("vendor_timeout")
        assert turn.seconds < 3.5 * NEAR, "the question had a time of its own"


async def test_pieces_in_time_are_no_silence(scene: Scene) -> None:
    """`first_byte_timeout` and `idle_timeout` bound each wait, not the answer: one that takes longer comes whole."""

    async def steadily(line: Exchange) -> None:
        await line.head(f"content-length: {len(line.good.body)}")
        step = -(-len(line.good.body) // 8)
        for start in range(0, len(line.good.body), step):
            await line.send(line.good.body[start : start + step])
            await asyncio.sleep(NEAR / 6)

    made = [*await turns(scene, "idle_timeout"), *await turns(scene, "first_byte_timeout")]
    for _ in made:
        scene.vendor.fail(steadily)
    began = time.monotonic()
    heard = await together(turn.chat.say("Two is said.") for turn in made)
    assert time.monotonic() - began > NEAR
    assert {(one.how, " ".join(one.text.split())) for one in heard} == {("continued exact", REPLY)}


# --- connecting


@contextmanager
def full(wire: Wire) -> Iterator[None]:
    """The vendor's port with a queue of connections that nobody accepts: the system answers no more of them."""
    wire.down()
    with ExitStack() as stack:
        door = stack.enter_context(socket.socket())
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", wire.port))
        door.listen(0)
        for _ in range(20):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(door.getsockname())
            if not select.select([], [waiting], [], 0.2)[1]:
                break
        else:
            pytest.skip("this system accepts for a listener that does not")
        yield
    wire.listen()


async def test_connect_timeout(scene: Scene) -> None:
    """A vendor that takes no connection is unavailable in time; nothing was delivered, and the chat goes on."""
    made = await turns(scene, "connect_timeout")
    with full(scene.wire):
        await all_fail(scene, made)
    for turn in made:
        assert "connect_timeout" in turn.told("vendor_unavailable").lower().replace("connecttimeout", "connect_timeout")
    after = await together(turn.chat.say("Two is said.") for turn in made)
    assert {heard.how for heard in after} == {"continued exact"}


# --- polling


async def no_answer_yet(line: Exchange) -> None:
    await line.whole(broken.dump({"uuid": "q1", "support_answer": ""}))


@pytest.mark.parametrize(
    ("key", "code"), [("poll_timeout", "vendor_no_answer"), ("timeout", "vendor_timeout")], ids=["polls", "turn"]
)
@pytest.mark.parametrize("fault", [no_answer_yet, broken.stall_at_once], ids=["nothing-yet", "stalled"])
async def test_polling_ends(scene: Scene, fault: Fault, key: str, code: str) -> None:
    """A bot that is polled in vain, or whose polls hang, is given up at the nearer deadline, which is named."""
    made = await turns(scene, key, ("askhandle",))
    scene.vendor.late = True
    scene.vendor.faults["poll"] = [(fault, True)] * 500
    await all_fail(scene, made)
    for turn in made:
        assert turn.answer is not None
        error = turn.answer.json["error"]
        assert (turn.answer.status, error["code"]) == (502 if code == "vendor_no_answer" else 504, code)
        assert turn.answer.headers["x-should-retry"] == "false"
        assert f"`{key}`" in error["message"]
    assert await asyncio.to_thread(eventually, lambda: scene.wire.live == 0)  # what was on its way has arrived
    polls = scene.vendor.operations.count("poll")
    await asyncio.sleep(0.2)
    assert scene.vendor.operations.count("poll") == polls, "it is polled for nobody"
    assert scene.vendor.operations.count("ask") == 2 * len(made)


# --- a deadline of the client's own


async def test_a_clients_own_timeout_is_its_own(scene: Scene) -> None:
    """A client that gives up and asks once more hears the running reply, at every vendor: the bot is asked once."""

    async def halting(line: Exchange) -> None:
        middle = len(line.good.body) // 2
        await line.head(f"content-length: {len(line.good.body)}")
        await line.send(line.good.body[:middle])
        await asyncio.sleep(0.8)
        await line.send(line.good.body[middle:])

    async def impatient(turn: Turn) -> Answer:
        messages = [*turn.chat.messages, {"role": "user", "content": "Two is said."}]
        body = {"model": turn.chat.model, "messages": messages, "stream": turn.way == "stream", **turn.chat.more}
        async with calling(scene.url, body) as line:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(line.answer(), 0.4)
            line.leave()
        return await call(scene.url, body, headers=["x-stainless-retry-count: 1"])

    made = await turns(scene, "connect_timeout")
    for _ in made:
        scene.vendor.fail(halting)
    for turn, answer in zip(made, await together(map(impatient, made)), strict=True):
        assert answer.status == 200, turn
        assert answer.headers["x-parley-conversation"] == "continued"
        text = spoken(answer) if turn.way == "stream" else answer.json["choices"][0]["message"]["content"]
        assert " ".join(text.split()) == REPLY
    assert scene.vendor.operations.count("ask") == 2 * len(OPENERS) * 2 + 2 * (len(MODELS) - len(OPENERS))
    assert sorted(scene.vendor.heard.values()) == [["One is said.", "Two is said."]] * len(made)


def spoken(answer: Answer) -> str:
    """The text of a stream, which has its end."""
    assert answer.data[-1] == "[DONE]"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer.data[:-1])
