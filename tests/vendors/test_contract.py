"""What every bot promises, tried on every bot before its simulated vendor. Which bots there are: members.py."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pytest

from proxy.errors import (
    ConversationExpired,
    InvalidRequest,
    NoAnswer,
    ProxyError,
    VendorAuthFailed,
    VendorError,
    VendorFailed,
    VendorRateLimited,
    VendorRefused,
    VendorTimeout,
    VendorUnavailable,
)
from proxy.messages import Attachment, Delta, Event, Finish, Handle, Message, Turn
from proxy.simulator import Simulator
from proxy.vendors.base import HttpBot
from tests.conftest import served
from tests.vendors.members import MEMBERS, PROMPTLY, SIMULATED, Heard, Member, Scene, hear, scene_of, until

PRIVATE = "It rains in Zwolle"  # asked and answered wherever something goes wrong; no error may tell
SHORT = 0.2  # seconds; only ever the limit of a call that would last for ever
SMALL = 5000  # bytes; more than any reply here that is none of "huge" and "endless"


@dataclass(frozen=True)
class Fault:
    """What a vendor does wrong and what must come of it.

    `order` says how hard it does it, `options` are the bot's; the error names what is in `names`.
    """

    kind: str
    error: type[VendorError]
    delivered: bool
    order: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    names: str = ""
    retry_after: float | None = None


def limit(kind: str, error: type[VendorError], key: str, value: float, **order: Any) -> Fault:
    """A fault that the limit under this key of the configuration ends."""
    return Fault(kind, error, True, order=order, options={key: value}, names=f"`{key}`")


FAULTS: Mapping[str, Fault] = {
    "limited": Fault("limited", VendorRateLimited, False, order={"seconds": 30}, retry_after=30),
    "limited-date": Fault("limited-date", VendorRateLimited, False, order={"seconds": 30}, retry_after=30),
    "unauthorized": Fault("unauthorized", VendorAuthFailed, False),
    "refused": Fault("refused", VendorRefused, False),
    "failed": Fault("failed", VendorFailed, True),
    "unavailable": Fault("unavailable", VendorFailed, True),
    "request-timeout": Fault("request-timeout", VendorTimeout, True),
    "gateway-timeout": Fault("gateway-timeout", VendorTimeout, True),
    "envelope-failed": Fault("envelope-failed", VendorFailed, True),
    "envelope-limited": Fault("envelope-limited", VendorRateLimited, False, order={"seconds": 30}, retry_after=30),
    "envelope-unauthorized": Fault("envelope-unauthorized", VendorAuthFailed, False),
    "error-in-stream": Fault("error-in-stream", VendorFailed, True),
    "endless": limit("endless", VendorFailed, "max_reply_bytes", SMALL),
    "huge": limit("huge", VendorFailed, "max_reply_bytes", SMALL, megabytes=0.02),
    "garbled": Fault("garbled", VendorFailed, True),
    "html": Fault("html", VendorFailed, True),
    "wrong-type": Fault("wrong-type", VendorFailed, True),
    "truncated": Fault("truncated", VendorFailed, True),
    "cut-off": Fault("cut-off", VendorFailed, True),
    "invalid-utf8": Fault("invalid-utf8", VendorFailed, True),
    "redirect": Fault("redirect", VendorFailed, True, names="`base_url`"),
    "empty": Fault("empty", NoAnswer, True),
    "blank": Fault("blank", NoAnswer, True),
    "null": Fault("null", NoAnswer, True),
    "hand-off": Fault("hand-off", NoAnswer, True),
    "terminated": Fault("terminated", NoAnswer, True),
}
LATE: Mapping[str, Fault] = {  # with 20 ms between the pieces of an answer
    "slow-to-begin": limit("slow", VendorTimeout, "first_byte_timeout", SHORT),
    "slow-altogether": limit("slow", VendorTimeout, "timeout", SHORT),
    "stall": limit("stall", VendorTimeout, "idle_timeout", SHORT),
    "stall-altogether": limit("stall", VendorTimeout, "timeout", SHORT),
    "drip": limit("endless", VendorTimeout, "timeout", SHORT),
}
HARMLESS = ("summary-extends", "summary-differs", "summary-missing")
IN_BODY = {"garbled", "html", "wrong-type", "truncated", "cut-off", "endless"}  # need more than an answer's head
IN_SPEECH = {"huge", "invalid-utf8", "empty", "blank", "null", "error-in-stream", "hand-off", "terminated"}
ELSEWHERE = {"slow", "stall", "forgotten", "new-id"}  # have tests of their own

LETTERS = {
    "newlines": "\n\none\ntwo\n\n\nthree",
    "other line ends": "one\r\ntwo\rthree\u2028four\u2029five\x85six\x0bseven\x0ceight",
    "white space": "  \t two blanks and a tab before,  two within, some after \n ",
    "html": "<p>a &amp; b<br/>&lt;c&gt;</p><script>1 < 2</script>",
    "json": '{"content": "no", "Success": false, "Code": 500, "reply": null, "errors": {"root": []}}',
    "events": 'data: {"content": "no"}\n\ndata: [DONE]\n\nevent: end\nid: 1\nretry: 5\n: ping\n\n[DONE]',
    "braces": '}}{{ "{" \\" \\\\ \\u007b [}] \'{\'',
    "beyond ASCII": "Grüße, 你好世界, こんにちは, 안녕, שלום, e\u0301, \ufeff",
    "beyond the BMP": "👩‍👩‍👧‍👦 🇳🇱 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠮷野家 🙂",
    "long": "A sentence of many. " * 50,
}


class Row(NamedTuple):
    """What goes wrong, with which operation of which member."""

    id: str
    member: Member
    on: str
    name: str

    @property
    def fault(self) -> Fault:
        return FAULTS[self.name]


def rows(operations: Callable[[Member], Sequence[str]], faults: Iterable[str]) -> list[Row]:
    """Every fault of every such operation, for every member that can meet it."""
    return [
        Row(f"{name}-{on}-{fault}", member, on, fault)
        for name, member in MEMBERS.items()
        for on in operations(member)
        for fault in faults
        if (FAULTS[fault].kind if fault in FAULTS else fault) in member.kinds
        if not {fault, f"{on}-{fault}"} & member.never.keys()
    ]


def met(chosen: Iterable[Row]) -> pytest.MarkDecorator:
    """The scene is set for these rows."""
    params = [pytest.param(row.member, row.on, row.name, id=row.id) for row in chosen]
    return pytest.mark.parametrize(("scene", "on", "name"), params, indirect=["scene"])


def only(holds: Callable[[Member], bool]) -> pytest.MarkDecorator:
    """The scene is set for these members."""
    chosen = [pytest.param(member, id=name) for name, member in MEMBERS.items() if holds(member)]
    return pytest.mark.parametrize("scene", chosen, indirect=True)


ASKING = rows(lambda _: ("ask",), FAULTS)
SPEECHLESS = [name for name, fault in FAULTS.items() if fault.kind not in IN_SPEECH]
POLLING = rows(lambda member: member.polls, SPEECHLESS)
# Conversations are opened in one way, however the answers will come.
OPENING = {(row.member.model, row.on, row.name): row for row in reversed(rows(lambda member: member.opens, SPEECHLESS))}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Simulator, str]]:
    """All simulated vendors on a real socket, and their URL."""
    simulator = Simulator()
    with pytest.MonkeyPatch.context() as environment, served(simulator.app) as url:
        # Nobody here speaks TLS: to read all authorities for every bot would take ten times as long as its test.
        environment.delenv("SSL_CERT_FILE", raising=False)
        environment.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("authorities")))
        yield simulator, url


@pytest.fixture(params=[pytest.param(member, id=name) for name, member in MEMBERS.items()])
async def scene(request: pytest.FixtureRequest, simulated: tuple[Simulator, str]) -> AsyncIterator[Scene]:
    """Every member in turn, before a vendor as new."""
    async with scene_of(request.param, *simulated) as set_up:
        yield set_up


async def known(scene: Scene, bot: HttpBot[Any] | None = None) -> Handle:
    """A conversation that the vendor knows."""
    return (await hear(bot or scene.bot(), scene.turn("say hello"))).handles[0]


async def failure(scene: Scene, bot: HttpBot[Any], turn: Turn) -> tuple[VendorError, Sequence[Event]]:
    """The error that this turn ends with, promptly and telling nothing that is private, and what came before it."""
    events = []
    with pytest.raises(ProxyError) as caught:
        async with asyncio.timeout(PROMPTLY):
            async for event in bot.reply(turn):
                events.append(event)
    assert isinstance(caught.value, VendorError)
    assert not any(isinstance(event, Finish) for event in events)
    assert bot.title in caught.value.message
    shown = "\n".join(told(caught.value))
    assert not [private for private in (PRIVATE, *scene.secrets()) if private in shown]
    return caught.value, events


def told(error: BaseException | None) -> Iterator[str]:
    """Everything that an error and those it came from may show."""
    while error is not None:
        yield from (str(error), repr(error), repr(vars(error)))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def meet(scene: Scene, fault: Fault, turn: Turn, on: str = "ask") -> VendorError:
    """Let the vendor do that to this turn; what the bot makes of it fits the fault."""
    options = {**fault.options, **(scene.member.hasty if fault.error is NoAnswer else {})}
    bot = scene.bots[-1] if scene.bots and not options else scene.bot(**options)
    times = 2 if scene.member.renews and fault.error is VendorAuthFailed and on != "token" else 1
    before = scene.count(on)
    scene.vendor.fail(fault.kind, times=times, on=on, **fault.order)
    error, _ = await failure(scene, bot, turn)
    assert type(error) is fault.error
    assert error.delivered is fault.delivered
    assert fault.names in error.message
    assert error.retry_after == (fault.retry_after and pytest.approx(fault.retry_after, abs=3))
    if fault.error is VendorAuthFailed:
        assert all(f"`{key}`" in error.message for key in bot.options.credential)
    assert scene.count(on) == before + times
    if fault.kind == "endless":
        await until(lambda: scene.vendor.hung_up == 1)
    return error


async def goes_on(scene: Scene, fault: Fault, handle: Handle | None = None) -> None:
    """The bot that met the fault serves the next turn; another does if it was made not to wait for answers."""
    bot = scene.bot() if fault.error is NoAnswer else scene.bots[-1]
    assert (await hear(bot, scene.turn("say yes", handle))).text == "yes"


async def test_new_conversation(scene: Scene) -> None:
    """A turn without handle gives a handle, then text, then one end, and the text is what the vendor said."""
    heard = await hear(scene.bot(), scene.turn("hello there"))
    assert heard.order == [Handle, Delta, Finish]
    assert len(heard.handles) == 1
    assert heard.text == scene.said
    assert all(event.text for event in heard.events if isinstance(event, Delta))
    assert scene.heard() == ["hello there"]
    assert isinstance(heard.events[-1], Finish)
    assert heard.events[-1].reason == "stop"


async def test_known_conversation(scene: Scene) -> None:
    """A turn with a handle goes into that conversation, and into no other, as often as one likes."""
    bot = scene.bot()
    handle = await known(scene, bot)
    for text in ("my name is Ada", "what is my name?"):
        heard = await hear(bot, scene.turn(text, handle))
        assert heard.order == [Delta, Finish]
        assert heard.text == scene.said
    assert "Ada" in heard.text
    assert scene.heard() == ["say hello", "my name is Ada", "what is my name?"]
    assert len(scene.conversations) == 1
    assert all(scene.count(operation) <= 1 for operation in scene.member.opens)


async def test_handle_is_all_there_is(scene: Scene) -> None:
    """A handle that went through another process continues the conversation at another bot object."""
    handle = await known(scene)
    heard = await hear(scene.bot(), scene.turn("and now?", Handle(dict(handle.data))))
    assert heard.handles == []
    assert scene.heard() == ["say hello", "and now?"]
    assert all(type(value) in (str, int) for value in handle.data.values())


@only(lambda member: "new-id" in member.kinds)
async def test_changed_handle(scene: Scene) -> None:
    """A handle that the vendor changes is told once, and is the one that goes on."""
    bot = scene.bot()
    handle = await known(scene, bot)
    scene.vendor.fail("new-id")
    heard = await hear(bot, scene.turn("second", handle))
    assert heard.order == [Handle, Delta, Finish]
    assert heard.handles != [handle]
    assert (await hear(bot, scene.turn("third", heard.handles[0]))).handles == []
    assert scene.heard() == ["say hello", "second", "third"]


@pytest.mark.parametrize("recap", ["", "[Earlier]\nUser: hi\n[End]"])
async def test_question_stands_last(scene: Scene, recap: str) -> None:
    """A new conversation is told system prompt, recap and context before the question, parted by blank lines."""
    new = (Message("system", "Only cats."), Message("user", "Look:"), Message("user", "say miaow"))
    heard = await hear(scene.bot(), scene.turn("", new=new, priming="Be kind.", recap=recap))
    assert heard.text == "miaow"
    parts = ["" if scene.member.context else "Be kind.", recap, "Only cats.", "Look:", "say miaow"]
    assert scene.heard() == ["\n\n".join(filter(None, parts))]
    if scene.member.context:
        assert scene.conversations[0].heard[0].fields[scene.member.context] == "Be kind."


@pytest.mark.parametrize("recap", ["", "[Meanwhile]\nUser: hi\n[End]"])
async def test_system_prompt_is_told_once(scene: Scene, recap: str) -> None:
    """A known conversation is told what it has missed, and the system prompt only where that has a field of its own."""
    bot = scene.bot()
    handle = (await hear(bot, scene.turn("hello", priming="Be kind."))).handles[0]
    await hear(bot, scene.turn("say miaow", handle, priming="Be kind.", recap=recap))
    assert scene.heard()[1] == "\n\n".join(filter(None, [recap, "say miaow"]))
    if scene.member.context:
        assert [entry.fields[scene.member.context] for entry in scene.conversations[0].heard] == ["Be kind."] * 2


async def test_to_the_letter(scene: Scene) -> None:
    """Replies come out to the letter, whatever they look like, and so do questions."""
    bot = scene.bot()
    texts = {name: text for name, text in LETTERS.items() if name not in scene.member.never}
    heard = {name: (await hear(bot, scene.turn(f"recite {text}"))).text for name, text in texts.items()}
    assert heard == texts
    assert scene.heard() == [f"recite {text}" for text in texts.values()]


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_split_characters(scene: Scene, size: int) -> None:
    """Characters that are cut across network reads come out whole."""
    text = LETTERS["beyond the BMP"] + LETTERS["beyond ASCII"] + LETTERS["braces"] + LETTERS["events"]
    heard = await hear(scene.bot(shreds=size), scene.turn(f"recite {text}"))
    assert heard.text == text
    assert heard.order == [Handle, Delta, Finish]


@pytest.mark.parametrize("wholly", [True, False])
async def test_forgotten_conversation(scene: Scene, wholly: bool) -> None:
    """A conversation that the vendor has forgotten is told as expired before any text; anew it goes on."""
    bot = scene.bot()
    handle = await known(scene, bot)
    if wholly:
        scene.vendor.forget()
    else:
        scene.vendor.fail("forgotten")
    error, events = await failure(scene, bot, scene.turn(f"say {PRIVATE}", handle))
    assert type(error) is ConversationExpired
    assert not error.delivered
    assert events == []
    assert scene.count("ask") == 2
    heard = await hear(bot, scene.turn("say anew"))
    assert heard.text == "anew"
    assert heard.handles not in ([], [handle])


async def test_nothing_to_forget(scene: Scene) -> None:
    """A new conversation never expires, whatever its vendor says of it."""
    scene.vendor.fail("forgotten")
    try:
        await hear(scene.bot(), scene.turn("hello"))
    except ConversationExpired:
        pytest.fail("a conversation expired that there was not")
    except VendorError:
        assert scene.heard() == []


@met(row for row in ASKING if not row.member.twin)
async def test_fault_in_a_new_conversation(scene: Scene, on: str, name: str) -> None:
    """A fault in a new conversation is told as what it is, and `delivered` never denies what the vendor took in."""
    fault = FAULTS[name]
    error = await meet(scene, fault, scene.turn(f"say {PRIVATE}"), on)
    assert error.delivered or scene.heard() == []


@met(row for row in ASKING if row.fault.kind in IN_BODY | IN_SPEECH or not row.member.twin)
async def test_fault_in_a_known_conversation(scene: Scene, on: str, name: str) -> None:
    """A fault in a known conversation is told as what it is; if the turn was not delivered, the handle goes on."""
    fault = FAULTS[name]
    handle = await known(scene)
    error = await meet(scene, fault, scene.turn(f"say {PRIVATE}", handle), on)
    assert error.delivered or scene.heard() == ["say hello"]
    await goes_on(scene, fault, None if error.delivered else handle)


@met(OPENING.values())
async def test_fault_while_opening(scene: Scene, on: str, name: str) -> None:
    """A fault of a call that opens a conversation means that nothing was delivered, and nothing is sent then."""
    fault = FAULTS[name]
    kind = VendorUnavailable if fault.error in (VendorFailed, VendorTimeout) else fault.error
    await meet(scene, replace(fault, error=kind, delivered=False), scene.turn(f"say {PRIVATE}"), on)
    assert scene.heard() == []
    assert scene.count("ask") == 0
    await goes_on(scene, fault)


@pytest.mark.parametrize(
    ("scene", "on"),
    [
        pytest.param(member, on, id=f"{name}-{on}")
        for name, member in MEMBERS.items()
        for on in (*member.opens[:1], "ask")
        if not member.twin and not (on == "ask" and member.renews)  # who must log in first would be late for that
    ],
    indirect=["scene"],
)
async def test_late_answer(scene: Scene, on: str) -> None:
    """Whichever limit an answer is late for, before it or within, ends the turn, is named, and hangs up."""
    handle = await known(scene) if on == "ask" else None
    before = scene.count(on)
    scene.vendor.gap = 0.02
    met: dict[str, asyncio.Task[tuple[VendorError, Sequence[Event]]]] = {}
    async with asyncio.TaskGroup() as group:
        for name, fault in LATE.items():
            scene.vendor.fail(fault.kind, on=on)
            bot = scene.bot(**fault.options)
            met[name] = group.create_task(failure(scene, bot, scene.turn(f"say {PRIVATE}", handle)))
            await until(lambda: scene.count(on) == before + len(met))
    errors = {name: task.result()[0] for name, task in met.items()}
    kind = VendorTimeout if on == "ask" else VendorUnavailable
    assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(LATE, kind)
    assert [name for name, fault in LATE.items() if fault.names not in errors[name].message] == []
    assert all(error.delivered is (on == "ask") for error in errors.values())
    await until(lambda: scene.vendor.hung_up == len(LATE))
    scene.vendor.gap = 0.0
    assert (await hear(scene.bot(), scene.turn("say yes"))).text == "yes"


@met(rows(lambda _: ("ask",), HARMLESS))
async def test_harmless_fault(scene: Scene, on: str, name: str) -> None:
    """An end that is not as documented spoils no reply."""
    scene.vendor.fail(name, on=on)
    heard = await hear(scene.bot(), scene.turn("hello"))
    assert heard.text == scene.said
    assert heard.order == [Handle, Delta, Finish]


@met(POLLING)
async def test_fault_of_every_poll(scene: Scene, on: str, name: str) -> None:
    """Once a message was taken in, no fault of the polls denies that, and none makes its conversation expire."""
    fault = FAULTS[name]
    handle = await known(scene)
    scene.vendor.fail(fault.kind, times=1000, on=on, **fault.order)
    bot = scene.bot(**fault.options, poll_timeout=0.06, poll_interval=0.02)
    error, _ = await failure(scene, bot, scene.turn(f"say {PRIVATE}", handle))
    assert isinstance(error, (NoAnswer, VendorFailed, VendorTimeout))
    assert error.delivered
    assert "`timeout`" not in error.message  # it has not been reached
    assert scene.count("ask") == 2
    scene.vendor.release()


@met(row for row in POLLING if row.fault.error in (VendorFailed, VendorTimeout, VendorRateLimited))
async def test_fault_of_one_poll(scene: Scene, on: str, name: str) -> None:
    """A poll that fails spoils no reply: the next one brings it."""
    fault = FAULTS[name]
    scene.vendor.fail(fault.kind, on=on, seconds=0 if fault.retry_after else None)
    heard = await hear(scene.bot(**fault.options), scene.turn("hello"))
    assert heard.text == scene.said
    assert scene.count("ask") == 1


@only(lambda member: member.renews)
async def test_renewed_credential(scene: Scene) -> None:
    """A credential that was refused is fetched anew, once, and the vendor takes the turn in once."""
    bot = scene.bot()
    handle = await known(scene, bot)
    for on in ("open", "ask"):
        scene.vendor.fail("unauthorized", on=on)
    assert (await hear(bot, scene.turn("say yes"))).text == "yes"
    scene.vendor.fail("unauthorized")
    assert (await hear(bot, scene.turn("say again", handle))).text == "again"
    assert scene.heard() == ["say hello", "say again", "say yes"]
    assert scene.count("token") == 4


def test_every_fault_has_its_row() -> None:
    """Whatever a simulated vendor can do wrong is tried, or a reason is given why it is not."""
    tried = {fault.kind for fault in FAULTS.values()} | set(HARMLESS) | ELSEWHERE
    assert {member.model for member in MEMBERS.values()} == SIMULATED.keys()
    for member in MEMBERS.values():
        assert member.kinds <= tried
        assert member.never.keys() <= {*FAULTS, *LETTERS, *(f"{on}-{name}" for on in member.opens for name in FAULTS)}
        assert all(member.never.values())


@only(lambda member: not member.twin)
async def test_nobody_there(scene: Scene, unused_tcp_port: int) -> None:
    """A vendor that cannot be reached has seen nothing, and the error names the key to look at."""
    bot = scene.bot(base_url=f"http://127.0.0.1:{unused_tcp_port}")
    error, events = await failure(scene, bot, scene.turn(f"say {PRIVATE}"))
    assert type(error) is VendorUnavailable
    assert not error.delivered
    assert "`base_url`" in error.message
    assert events == []


async def asking(scene: Scene, bot: HttpBot[Any], handle: Handle, *kinds: str) -> list[asyncio.Task[Heard]]:
    """A turn for each of these faults, all at the same time, all hanging in theirs."""
    before = scene.count("ask")
    for kind in kinds:
        scene.vendor.fail(kind)
    tasks = [asyncio.create_task(hear(bot, scene.turn(f"say {PRIVATE}", handle))) for _ in kinds]
    await until(lambda: scene.count("ask") == before + len(kinds))
    await asyncio.sleep(0.02)  # for what "stall" sends to arrive
    return tasks


async def cancelled(tasks: Iterable[asyncio.Task[Heard]]) -> None:
    """Cancel all of these; they end with it, at once."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(PROMPTLY):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)


@pytest.mark.parametrize("kind", ["slow", "stall"])
async def test_cancelled_turn(scene: Scene, kind: str) -> None:
    """A turn that is cancelled, before the answer's head or within its body, hangs up, and the bot goes on."""
    bot = scene.bot()
    handle = await known(scene, bot)
    await cancelled(await asking(scene, bot, handle, kind))
    await until(lambda: scene.vendor.hung_up == 1)
    assert (await hear(bot, scene.turn("say yes"))).text == "yes"


@only(lambda member: bool(member.opens))
async def test_cancelled_while_opening(scene: Scene) -> None:
    """A turn that is cancelled while its conversation is being opened hangs up and is never sent."""
    bot = scene.bot()
    for times, operation in enumerate(scene.member.opens, 1):
        scene.vendor.fail("slow", on=operation)
        before = scene.count(operation)
        task = asyncio.create_task(hear(bot, scene.turn("hello")))
        await until(lambda: scene.count(operation) == before + 1)  # noqa: B023 - it is over before they change
        await cancelled([task])
        await until(lambda: scene.vendor.hung_up == times)  # noqa: B023
    assert scene.count("ask") == 0
    assert (await hear(bot, scene.turn("say yes"))).text == "yes"


@only(lambda member: bool(member.polls))
async def test_cancelled_between_polls(scene: Scene) -> None:
    """A turn that is cancelled while its answer is awaited polls no more, and the bot goes on."""
    bot = scene.bot()
    handle = await known(scene, bot)
    (poll,) = scene.member.polls
    polls = scene.count(poll)
    scene.vendor.fail("empty")
    task = asyncio.create_task(hear(bot, scene.turn("hello", handle)))
    await until(lambda: scene.count(poll) >= polls + 3)
    await cancelled([task])
    await asyncio.sleep(0.02)
    polls = scene.count(poll)
    await asyncio.sleep(0.05)
    assert scene.count(poll) == polls
    assert (await hear(bot, scene.turn("say yes"))).text == "yes"


@only(lambda member: member.piecewise)
async def test_closed_in_the_midst(scene: Scene) -> None:
    """A reply that is closed in the midst of its text hangs up, and the bot goes on."""
    bot = scene.bot()
    scene.vendor.fail("stall")
    reply = bot.reply(scene.turn("a long reply, please"))
    async with asyncio.timeout(PROMPTLY):
        assert isinstance(await anext(reply), Handle)
        assert isinstance(await anext(reply), Delta)
        await reply.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}  # it is done, and not left to the garbage collector
    await until(lambda: scene.vendor.hung_up == 1)
    assert (await hear(bot, scene.turn("say yes"))).text == "yes"


async def test_closed_after_the_handle(scene: Scene) -> None:
    """A reply that is closed at its handle leaves a conversation to go on with and a free connection."""
    bot = scene.bot(max_connections=1, connect_timeout=PROMPTLY)
    reply = bot.reply(scene.turn("hello"))
    handle = await anext(reply)
    assert isinstance(handle, Handle)
    await reply.aclose()
    assert scene.count("ask") == (0 if scene.member.opens else 1)
    heard = await hear(bot, scene.turn("say yes", handle))
    assert heard.text == "yes"
    assert heard.handles == []


@only(lambda member: not member.twin)
async def test_never_begun(scene: Scene) -> None:
    """A reply that nobody asks for sends nothing."""
    await scene.bot().reply(scene.turn("hello")).aclose()
    assert scene.vendor.calls == []


@only(lambda member: not member.twin)
async def test_many_cancelled_turns(scene: Scene) -> None:
    """Twenty turns that are cancelled give all their connections back to the twenty that follow."""
    bot = scene.bot(max_connections=20, connect_timeout=PROMPTLY)
    handle = await known(scene, bot)
    await cancelled(await asking(scene, bot, handle, *["slow", "stall"] * 10))
    await until(lambda: scene.vendor.hung_up == 20)
    heard = await asyncio.gather(*(hear(bot, scene.turn(f"say {n}")) for n in range(20)))
    assert [reply.text for reply in heard] == [str(n) for n in range(20)]


@only(lambda member: not member.twin)
async def test_parallel_conversations(scene: Scene) -> None:
    """Thirty people at the same time each have a conversation of their own."""
    bot = scene.bot()

    async def person(name: str) -> str:
        opened = await hear(bot, scene.turn(f"my name is {name}"))
        return (await hear(bot, scene.turn("what is my name?", opened.handles[0]))).text

    names = [f"Person{n}x" for n in range(30)]
    replies = await asyncio.gather(*map(person, names))
    assert all(name in reply for name, reply in zip(names, replies, strict=True))
    assert [len(conversation.heard) for conversation in scene.conversations] == [2] * 30


@only(lambda member: not member.twin)
async def test_nothing_private_is_shown(scene: Scene) -> None:
    """Neither a bot nor its options show a secret, not even one in a configured header."""
    bot = scene.bot(headers={"x-gateway": "header-secret"})
    await hear(bot, scene.turn(f"say {PRIVATE}"))
    shown = f"{bot!r} {bot} {bot.options!r} {bot.options} {bot.identity}"
    assert not [private for private in (PRIVATE, "header-secret", *scene.secrets()) if private in shown]


@only(lambda member: not member.twin)
@pytest.mark.parametrize("kind", ["image", "audio", "file"])
async def test_attachments_are_refused(scene: Scene, kind: Literal["image", "audio", "file"]) -> None:
    """Content that a bot cannot carry is refused before anything is sent; what was said earlier does not matter."""
    bot = scene.bot()
    message = Message("user", "what is this?", attachments=(Attachment(kind, url="https://example.com/it"),))
    with pytest.raises(InvalidRequest) as caught:
        bot.check(scene.turn("", new=(message, Message("user", "well?"))))
    assert caught.value.code == "unsupported_value"
    assert caught.value.param
    bot.check(scene.turn("hello", history=(message, Message("assistant", "a cat"))))
    assert scene.vendor.calls == []


@only(lambda member: not member.twin)
async def test_forwarded(scene: Scene) -> None:
    """What goes along besides messages holds the system prompt and depends on nothing but the turn."""
    bot = scene.bot()
    turn = scene.turn("hello", priming="Be kind.", metadata={"plan": "gold"})
    once = dict(bot.forwarded(turn))
    await hear(bot, turn)
    assert once == bot.forwarded(turn) == scene.bot().forwarded(turn)
    assert "Be kind." in once.values()
    assert bot.forwarded(turn._replace(new=(Message("user", "other"),), handle=Handle({}), recap="x")) == once
    assert bot.forwarded(turn._replace(priming="Be brief.")) != once
    assert "Be kind." not in bot.forwarded(turn._replace(priming="")).values()


@only(lambda member: not member.twin)
async def test_identity(scene: Scene) -> None:
    """Bots are told apart by vendor, address, bot and credential, and by nothing else."""
    bot = scene.bot()
    chosen = [key for key, value in scene.entry.items() if value and value == bot.options.bot_id]
    keys = ["base_url", *chosen, *bot.options.credential]
    changed: list[dict[str, Any]] = [{key: f"{scene.entry[key]}2"} for key in keys]
    others = [scene.bot(**other).identity for other in changed]
    assert len({bot.identity, *others}) == len(keys) + 1
    assert bot.identity == scene.bot(base_url=f"{scene.entry['base_url']}/", timeout=7, description="x").identity
    assert scene.entry["vendor"] in bot.identity
