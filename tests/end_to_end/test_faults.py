"""What goes wrong on the wire between proxy and vendor: vendor, plain or streaming, place and fault, as a table."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from proxy.app import create_app
from proxy.cli import Vendors
from proxy.config import load
from proxy.simulator import Simulator
from proxy.telemetry import Receive, Scope, Send
from tests.conftest import demo_models, served
from tests.end_to_end import broken
from tests.end_to_end.broken import REPLY, Exchange, Fault, Names, Papers, Vendor, Wire, eventually, wires
from tests.end_to_end.callers import MODELS, Answer, Chat, Refused, Way, raw_plain, raw_stream

WAYS: Mapping[str, Way] = {"plain": raw_plain, "stream": raw_stream}
OPENERS = ("askhandle", "misterturing", "newoaks")  # the others open with the first message
LIMIT = 200_000
PATIENT = {"connect_timeout": 10, "first_byte_timeout": 20, "idle_timeout": 20, "timeout": 40, "poll_timeout": 20}
HASTY = {"connect_timeout": 1.2, "first_byte_timeout": 1.2, "idle_timeout": 1.2, "timeout": 2.2, "poll_timeout": 5}
POLLED = {**HASTY, "timeout": 20}
PROMPTLY = 8.0  # seconds for what takes none, on a busy machine; far from PATIENT's
HASTILY = 6.0  # seconds until a deadline of HASTY's was noticed at the latest, on a busy machine


@dataclass(frozen=True)
class Row:
    """A row of the interface's error table, and whether a taken conversation is parked again."""

    status: int
    word: str = "api_error"
    retry: bool = False
    parked: bool = False


ROWS: Mapping[str, Row] = {
    "vendor_rate_limited": Row(429, "rate_limit_error", retry=True, parked=True),
    "vendor_auth_failed": Row(502, parked=True),
    "vendor_refused": Row(502, parked=True),
    "vendor_unavailable": Row(502, retry=True, parked=True),
    "vendor_failed": Row(502),
    "vendor_timeout": Row(504),
}


@dataclass(frozen=True)
class Wired:
    """A proxy before a vendor on the wire. `tasks` are those of the proxy's loop."""

    url: str
    vendor: Vendor
    plain: Wire
    safe: Wire
    canary: Wire
    names: Names
    papers: Papers | None
    tasks: Callable[[], set[Any]]

    def calm(self) -> bool:
        """Whether nobody is connected to the vendor any more."""
        return eventually(lambda: self.plain.live == self.safe.live == 0)


def entries(plain: str, safe: str, named: str) -> dict[str, dict[str, Any]]:
    """Every vendor four times: patient, hasty, by TLS, by a name; and one that is polled."""
    built: dict[str, dict[str, Any]] = {}
    for model, demo in demo_models("", Simulator()).items():
        entry = {**demo, "breaker": {"failures": 0}, "max_reply_bytes": LIMIT, "poll_interval": 0.05}
        for suffix, base, times in (
            ("", plain, PATIENT),
            ("-hasty", plain, HASTY),
            ("-polled", plain, POLLED),
            ("-tls", safe, {**PATIENT, "connect_timeout": 1}),
            ("-named", named, PATIENT),
        ):
            more = {**entry, **times, "base_url": f"{base}/{model}"}
            keys = more if model == "askhandle" else {key for key in more if not key.startswith("poll_")}
            built[f"{model}{suffix}"] = {key: more[key] for key in keys}
    return built


@contextmanager
def proxied(models: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], set[Any]]]]:
    """The proxy on a real socket, and a look at its tasks."""
    config = load(json.dumps({"models": models}), vendors=Vendors(), environ={})
    inner = create_app(config)
    loops: set[asyncio.AbstractEventLoop] = set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loops.add(asyncio.get_running_loop())
        await inner(scope, receive, send)

    with served(app) as url:
        yield url, lambda: {task for loop in loops for task in asyncio.all_tasks(loop)}


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    """The scene of all tests; in the end no task and no socket is left of them."""
    papers = broken.papers(tmp_path_factory.mktemp("papers"))
    trusting = httpx2.create_ssl_context()
    if papers:
        trusting.load_verify_locations(papers.root)
    names = Names()
    with pytest.MonkeyPatch.context() as patch, wires(2) as (plain, safe), wires(1) as (canary,):
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        patch.setattr("proxy.vendors.base._tls", lambda: trusting)
        patch.setattr(socket, "getaddrinfo", names.getaddrinfo)
        plain.canary = f"http://127.0.0.1:{canary.port}"
        plain.listen()
        safe.listen(papers.trusted if papers else None)
        canary.listen()
        addresses = (f"http://127.0.0.1:{plain.port}", f"https://127.0.0.1:{safe.port}")
        models = entries(*addresses, f"http://{names.name}:{plain.port}")
        with proxied(models) as (url, tasks):
            for model in [name for name in models if papers or not name.endswith("-tls")]:
                assert asyncio.run(Chat(url, model).say("Hello")).text.split() == REPLY.split()
            scene = Wired(url, plain.vendor, plain, safe, canary, names, papers, tasks)
            assert scene.calm()
            assert eventually(lambda: len(tasks()) <= 3)
            before = len(tasks()), descriptors()
            yield scene
            assert eventually(lambda: len(tasks()) <= before[0]), tasks()
            assert eventually(lambda: descriptors() <= before[1])


@pytest.fixture
def scene(built: Wired) -> Iterator[Wired]:
    """The scene with a healthy vendor. Afterwards it was hung up on, and no conversation holds a question twice."""
    built.vendor.reset()
    yield built
    assert built.calm()
    assert built.vendor.stuck == []
    assert built.vendor.heard_twice() == []
    assert not any(built.vendor.faults.values()), "a fault was never met"


async def refused(chat: Chat, text: str, *, within: float = PROMPTLY) -> Answer:
    """The answer to a turn that fails, and in time; the turn is taken back."""
    began = time.monotonic()
    with pytest.raises(Refused) as caught:
        await chat.say(text)
    assert time.monotonic() - began < within
    chat.messages.pop()
    return caught.value.answer


def is_row(answer: Answer, code: str, *, midway: bool = False) -> bool:
    """Whether an error is told as its row says; `midway`: after the first delta, inside the stream."""
    row = ROWS[code]
    assert answer.whole
    if midway:
        assert answer.status == 200
        assert any(choice["delta"].get("content") for chunk in answer.data[:-1] for choice in chunk["choices"])
        assert "[DONE]" not in answer.data
        told = answer.data[-1]["error"]
    else:
        assert answer.status == row.status, answer.body
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-should-retry"] == str(row.retry).lower()
        assert ("retry-after" in answer.headers) is (row.status == 429)
        told = answer.json["error"]
    assert (told["code"], told["type"], told["param"]) == (code, row.word, None)
    assert told["message"].endswith(f" (parley: {code})")
    return True


def chat_with(scene: Wired, model: str, way: str) -> Chat:
    return Chat(scene.url, model, WAYS[way], more={"user": uuid4().hex})


# --- the table


@dataclass(frozen=True)
class Wrong:
    """A fault of the wire, and its code at the send, "" where it does no harm.

    `begins`: good text comes before it. `hasty`: it takes a deadline to see it. `works`: models it does no harm to.
    """

    fault: Fault
    code: str = "vendor_failed"
    begins: bool = False
    hasty: bool = False
    works: tuple[str, ...] = ()
    retry_after: tuple[int, int] = (1, 1)  # least and most; for 429 only

    def at_send(self, model: str) -> str:
        """The code while the message is sent."""
        return "" if model in self.works else self.code

    def at_opening(self) -> str:
        """The code where only a conversation was to be opened: nothing was delivered."""
        return "vendor_unavailable" if self.code in ("vendor_failed", "vendor_timeout") else self.code

    def midway(self, model: str, way: str) -> bool:
        """Whether it is told inside the stream."""
        return self.begins and way == "stream" and model in STREAMED

    def bot(self, model: str) -> str:
        """The name of the bot that meets it."""
        return f"{model}-hasty" if self.hasty else model

    async def strikes(self, scene: "Wired", chat: Chat, text: str, code: str, *, midway: bool = False) -> None:
        """The turn fails with this code, in time, after one call."""
        calls = len(scene.vendor.operations)
        answer = await refused(chat, text, within=HASTILY if self.hasty else PROMPTLY)
        assert is_row(answer, code, midway=midway)
        if code == "vendor_rate_limited":
            least, most = self.retry_after
            assert least <= int(answer.headers["retry-after"]) <= most
        assert len(scene.vendor.operations) == calls + 1


async def limited_until(line: Exchange) -> None:
    """429 with a date, which is seven seconds from now."""
    await broken.status(429, f"retry-after: {formatdate(time.time() + 7, usegmt=True)}")(line)


STREAMED = ("newoaks", "misterturing")  # their text comes out before the answer has ended
SHORT_TEXT = ("misterturing",)  # raw text that ends early, in order, looks like shorter text
WRONG: Mapping[str, Wrong] = {
    "reset-at-once": Wrong(broken.reset_at_once),
    "reset-in-headers": Wrong(broken.reset_in_headers),
    "reset-in-body": Wrong(broken.reset_in_body, begins=True),
    "close-at-once": Wrong(broken.close_at_once),
    "close-in-headers": Wrong(broken.close_in_headers),
    "close-in-body": Wrong(broken.close_in_body, begins=True),
    "stall-at-once": Wrong(broken.stall_at_once, "vendor_timeout", hasty=True),
    "stall-in-headers": Wrong(broken.stall_in_headers, "vendor_timeout", hasty=True),
    "stall-in-body": Wrong(broken.stall_in_body, "vendor_timeout", begins=True, hasty=True),
    "drip-headers": Wrong(broken.drip_headers, "vendor_timeout", hasty=True),
    "drip-body": Wrong(broken.drip_body, "vendor_timeout", begins=True, hasty=True),
    "endless-continue": Wrong(broken.endless_continue, "vendor_timeout", hasty=True),
    "endless-headers": Wrong(broken.endless_headers),
    "endless-header-line": Wrong(broken.endless_header_line),
    "endless-body": Wrong(broken.endless_body, begins=True),
    "fifty-megabytes": Wrong(broken.fifty_megabytes, begins=True),
    "truncated": Wrong(broken.truncated, begins=True, works=SHORT_TEXT),
    "html": Wrong(broken.html),
    "invalid-utf8": Wrong(broken.invalid_utf8),
    "invalid-utf8-later": Wrong(broken.invalid_utf8_later, begins=True),
    # a whole envelope or summary is the end of NewOaks' answer, whatever comes after
    "length-too-large": Wrong(broken.length_too_large, begins=True, works=("newoaks",)),
    "length-too-small": Wrong(broken.length_too_small, begins=True, works=SHORT_TEXT),
    "two-lengths": Wrong(broken.two_lengths),
    "chunks-garbled": Wrong(broken.chunks_garbled, begins=True),
    "chunks-cut": Wrong(broken.chunks_cut, begins=True),
    "gzip-garbled": Wrong(broken.gzip_garbled),
    "not-http": Wrong(broken.not_http),
    "another-type": Wrong(broken.another_type, ""),
    "byte-by-byte": Wrong(broken.byte_by_byte, ""),
    "bytes-one-by-one": Wrong(broken.bytes_one_by_one, ""),
    "gzip-good": Wrong(broken.gzip_good, ""),
    **{f"redirect-{number}": Wrong(broken.redirect(number)) for number in (301, 302, 303, 307, 308)},
    **{f"status-{number}": Wrong(broken.status(number), "vendor_refused") for number in (400, 409, 410, 422)},
    **{f"status-{number}": Wrong(broken.status(number), "vendor_auth_failed") for number in (401, 403)},
    **{f"status-{number}": Wrong(broken.status(number), "vendor_timeout") for number in (408, 504)},
    **{f"status-{number}": Wrong(broken.status(number)) for number in (425, 500, 501, 502, 503)},
    "status-429": Wrong(broken.status(429, "retry-after: 7"), "vendor_rate_limited", retry_after=(7, 7)),
    "status-429-date": Wrong(limited_until, "vendor_rate_limited", retry_after=(3, 8)),
    "status-429-odd": Wrong(broken.status(429, "retry-after: in a while"), "vendor_rate_limited"),
    "status-429-stalled": Wrong(
        broken.status_stalled(429, "retry-after: 7"), "vendor_rate_limited", hasty=True, retry_after=(7, 7)
    ),
    "status-400-endless": Wrong(broken.status_endless(400), "vendor_refused"),
    "status-500-html": Wrong(broken.status(500, body=b"<html>\xff" * 10_000)),
}
ENVELOPES: Mapping[str, Wrong] = {
    "no-code": Wrong(broken.envelope()),
    **{f"code-{code}": Wrong(broken.envelope(Code=code)) for code in (0, 200, 425, 500, 503, "x")},
    **{f"code-{code}": Wrong(broken.envelope(Code=code), "vendor_refused") for code in (400, 409, 410, 422, "422")},
    **{f"code-{code}": Wrong(broken.envelope(Code=code), "vendor_auth_failed") for code in (401, 403)},
    "code-408": Wrong(broken.envelope(Code=408), "vendor_timeout"),
    "code-429": Wrong(broken.envelope(Code=429), "vendor_rate_limited"),
    "midway": Wrong(broken.envelope_midway, begins=True),
}
ALL = {**WRONG, **ENVELOPES}
BUGS: Mapping[str, str] = {}


def cases(table: Mapping[str, Wrong], models: tuple[str, ...], *, ways: bool) -> list[Any]:
    """The table times the models; both ways, or one after the other."""
    alternating = cycle(WAYS)
    made = []
    for name in table:
        for model in models:
            for way in WAYS if ways else (next(alternating),):
                key = f"{model}-{way}-{name}"
                marks = [pytest.mark.xfail(reason=BUGS[name], strict=True)] if name in BUGS else []
                made.append(pytest.param(model, way, name, id=key, marks=marks))
    return made


AT_SEND = [*cases(WRONG, MODELS, ways=True), *cases(ENVELOPES, ("newoaks",), ways=True)]
AT_OPENING = [*cases(WRONG, OPENERS, ways=False), *cases(ENVELOPES, ("newoaks",), ways=False)]


@pytest.mark.parametrize(("model", "way", "name"), AT_SEND)
async def test_fault_at_the_send(scene: Wired, model: str, way: str, name: str) -> None:
    """A fault while a known chat speaks has its row, in time; the retry is continued only if nothing was delivered."""
    wrong = ALL[name]
    code = wrong.at_send(model)
    parked = not code or ROWS[code].parked
    chat = chat_with(scene, wrong.bot(model), way)
    assert (await chat.say("One is said.")).how == "opened"
    scene.vendor.fail(wrong.fault, taken=not code or not parked)
    if code:
        await wrong.strikes(scene, chat, "Two is said.", code, midway=wrong.midway(model, way))
    else:
        heard = await chat.say("Two is said.")
        assert heard.how == "continued exact"
        assert heard.text
        assert REPLY.startswith(heard.text.strip())
        assert heard.text.strip() == REPLY or model in wrong.works
    again = "Two is said." if code else "Three is said."
    assert (await chat.say(again)).how == ("continued exact" if parked else "rebuilt unknown-history")
    assert scene.canary.seen == 0
    assert max(scene.vendor.sent) < 20 << 20


@pytest.mark.parametrize(("model", "way", "name"), AT_OPENING)
async def test_fault_at_the_opening(scene: Wired, model: str, way: str, name: str) -> None:
    """A fault while a conversation is opened has its row, in time, and no question is delivered by it."""
    wrong = ALL[name]
    chat = chat_with(scene, wrong.bot(model), way)
    scene.vendor.fail(wrong.fault, on="open")
    if code := wrong.at_opening():
        await wrong.strikes(scene, chat, "One is said.", code)
        assert scene.vendor.operations == ["open"]
    assert (await chat.say("One is said.")).how == "opened"
    assert (await chat.say("Two is said.")).how == "continued exact"
    assert scene.canary.seen == 0


@pytest.mark.parametrize(("model", "way", "name"), cases(WRONG, ("quickchat", "quickchat-legacy"), ways=False))
async def test_fault_at_a_first_message(scene: Wired, model: str, way: str, name: str) -> None:
    """A fault while a message opens a conversation has its row, in time; the retry opens another."""
    wrong = WRONG[name]
    chat = chat_with(scene, wrong.bot(model), way)
    scene.vendor.fail(wrong.fault, on="open")
    code = wrong.at_send(model)
    if code:
        await wrong.strikes(scene, chat, "One is said.", code)
    assert (await chat.say("One is said.")).how == "opened"
    assert (await chat.say("Two is said.")).how == "continued exact"
    assert len(scene.vendor.heard) == (2 if code else 1)


@pytest.mark.parametrize(("model", "way", "name"), AT_OPENING)
async def test_fault_at_the_first_send(scene: Wired, model: str, way: str, name: str) -> None:
    """A fault at the send right after the opening has its row; what was opened is not spoken into again."""
    wrong = ALL[name]
    chat = chat_with(scene, wrong.bot(model), way)
    scene.vendor.fail(wrong.fault)
    if code := wrong.at_send(model):
        answer = await refused(chat, "One is said.", within=HASTILY if wrong.hasty else PROMPTLY)
        assert is_row(answer, code, midway=wrong.midway(model, way))
        assert scene.vendor.operations == ["open", "ask"]
        assert (await chat.say("One is said.")).how == "opened"
        assert list(scene.vendor.heard.values()) == [["One is said."]] * 2
    else:
        assert (await chat.say("One is said.")).how == "opened"
        assert (await chat.say("Two is said.")).how == "continued exact"


POLLS = {name: wrong for name, wrong in WRONG.items() if name != "drip-body"}  # that one lasts until `poll_timeout`


@pytest.mark.parametrize(("model", "way", "name"), cases(POLLS, ("askhandle",), ways=False))
async def test_fault_at_a_poll(scene: Wired, model: str, way: str, name: str) -> None:
    """A fault while the answer is polled for is got over, or is no reason to repeat a message that was taken in."""
    wrong = POLLS[name]
    chat = chat_with(scene, f"{model}-polled", way)
    await chat.say("One is said.")
    scene.vendor.late = True
    scene.vendor.fail(wrong.fault, on="poll")
    final = ROWS[wrong.code].parked if wrong.code else False  # refused, or to come back after `poll_timeout`
    if final and name != "status-429-odd":
        assert is_row(await refused(chat, "Two is said."), "vendor_failed")
        assert (await chat.say("Two is said.")).how == "rebuilt unknown-history"
    else:
        assert (await chat.say("Two is said.")).how == "continued exact"
        assert (await chat.say("Three is said.")).how == "continued exact"
    assert [sum("Two is said." in text for text in texts) for texts in scene.vendor.heard.values()] in ([1], [1, 1])


# --- conversations that are said to be unknown


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
async def test_unknown_conversation(scene: Wired, model: str, way: str) -> None:
    """A 404 to a send means a lost conversation: told anew at once, and only once; without one it is a refusal."""
    chat = chat_with(scene, model, way)
    scene.vendor.fail(broken.status(404), on="ask" if model in OPENERS else "open", taken=False)
    assert is_row(await refused(chat, "One is said."), "vendor_refused")
    await chat.say("One is said.")
    scene.vendor.fail(broken.status(404), taken=False)
    assert (await chat.say("Two is said.")).how == "rebuilt vendor-forgot"
    assert (await chat.say("Three is said.")).how == "continued exact"
    scene.vendor.fail(broken.status(404), taken=False)
    scene.vendor.fail(broken.status(404), on="ask" if model in OPENERS else "open", taken=False)
    assert is_row(await refused(chat, "Four is said."), "vendor_refused")
    assert (await chat.say("Four is said.")).how == "rebuilt unknown-history"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", OPENERS)
async def test_unknown_bot(scene: Wired, model: str, way: str) -> None:
    """A 404 to an opening is a refusal."""
    chat = chat_with(scene, model, way)
    scene.vendor.fail(broken.status(404), on="open")
    assert is_row(await refused(chat, "One is said."), "vendor_refused")
    assert (await chat.say("One is said.")).how == "opened"


# --- size


def high_water(*, anew: bool = False) -> int:
    """The most memory this process has had, in bytes, since that was last asked `anew`."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells how much memory there was")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
async def test_gzip_bomb(scene: Wired, model: str, way: str) -> None:
    """A hundred megabytes in a hundred packed kilobytes are an answer over its limit, and are never held."""
    chat = chat_with(scene, model, way)
    await chat.say("One is said.")
    broken.bomb()  # made ahead: that takes memory too
    scene.vendor.fail(broken.gzip_bomb)
    before = high_water(anew=True)
    assert is_row(await refused(chat, "Two is said."), "vendor_failed")
    assert high_water() - before < 32 << 20
    assert (await chat.say("Two is said.")).how == "rebuilt unknown-history"


# --- the connection itself


@contextmanager
def refusing(wire: Wire, context: ssl.SSLContext | None = None) -> Iterator[None]:
    wire.down()
    try:
        yield
    finally:
        wire.listen(context)


@contextmanager
def nameless(scene: Wired) -> Iterator[None]:
    scene.names.known = False
    try:
        yield
    finally:
        scene.names.known = True


@contextmanager
def without_tls(wire: Wire, context: ssl.SSLContext, manners: Fault) -> Iterator[None]:
    wire.manners = manners
    wire.listen()
    try:
        yield
    finally:
        wire.manners = None
        wire.listen(context)


@contextmanager
def self_signed(wire: Wire, papers: Papers) -> Iterator[None]:
    wire.listen(papers.stranger)
    try:
        yield
    finally:
        wire.listen(papers.trusted)


def safe(change: Callable[[Wire, Papers], AbstractContextManager[None]]) -> "Cut":
    """A change to the port that speaks TLS, if there can be one here."""

    def cut(scene: Wired) -> AbstractContextManager[None]:
        assert scene.papers is not None
        return change(scene.safe, scene.papers)

    return cut


Cut = Callable[[Wired], AbstractContextManager[None]]
UNREACHABLE: Mapping[str, tuple[str, Cut]] = {
    "refused": ("", lambda scene: refusing(scene.plain)),
    "no-such-name": ("-named", nameless),
    "tls-refused": ("-tls", safe(lambda wire, papers: refusing(wire, papers.trusted))),
    "no-tls": ("-tls", safe(lambda wire, papers: without_tls(wire, papers.trusted, broken.plain_talk))),
    "tls-stalled": ("-tls", safe(lambda wire, papers: without_tls(wire, papers.trusted, broken.stall_at_once))),
    "tls-reset": ("-tls", safe(lambda wire, papers: without_tls(wire, papers.trusted, broken.reset_at_once))),
    "self-signed": ("-tls", safe(self_signed)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", UNREACHABLE)
async def test_unreachable_vendor(scene: Wired, name: str, model: str, way: str) -> None:
    """A vendor that no connection leads to is unavailable, and the chat goes on in its conversation afterwards."""
    suffix, cut = UNREACHABLE[name]
    if suffix == "-tls" and scene.papers is None:
        pytest.skip("openssl is not there to make certificates")
    chat, other = (chat_with(scene, model + suffix, way) for _ in range(2))
    assert (await chat.say("One is said.")).how == "opened"
    with cut(scene):
        for answer in await asyncio.gather(refused(chat, "Two is said."), refused(other, "One else is said.")):
            assert is_row(answer, "vendor_unavailable")
    assert (await chat.say("Two is said.")).how == "continued exact"
    assert (await other.say("One else is said.")).how == "opened"
    assert list(scene.vendor.heard.values()) == [["One is said.", "Two is said."], ["One else is said."]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
async def test_reset_before_the_request_was_read(scene: Wired, model: str, way: str) -> None:
    """A connection that is reset when it was made is told by how much was sent, and the chat goes on accordingly."""
    chat = chat_with(scene, model, way)
    await chat.say("One is said.")
    scene.plain.manners = broken.reset_at_once
    try:
        answer = await refused(chat, "Two is said.")
    finally:
        scene.plain.manners = None
    code = answer.json["error"]["code"]
    assert code in ("vendor_unavailable", "vendor_failed")
    assert is_row(answer, code)
    assert (await chat.say("Two is said.")).how == (
        "continued exact" if ROWS[code].parked else "rebuilt unknown-history"
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fault", [broken.closed_later, broken.reset_later], ids=["closed", "reset"])
async def test_connection_that_ended_between_turns(scene: Wired, fault: Fault, model: str, way: str) -> None:
    """A connection that the vendor gave up between two turns is noticed before the next one is sent."""
    chat = chat_with(scene, model, way)
    await chat.say("One is said.")
    scene.vendor.fail(fault)
    await chat.say("Two is said.")
    assert scene.calm()
    assert (await chat.say("Three is said.")).how == "continued exact"
    assert list(scene.vendor.heard.values()) == [["One is said.", "Two is said.", "Three is said."]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fault", [broken.close_at_once, broken.reset_at_once], ids=["closed", "reset"])
async def test_used_connection_that_ends_with_the_next_turn(scene: Wired, fault: Fault, model: str, way: str) -> None:
    """A turn that went into a used connection, which then ended, is not quietly sent again."""
    chat = chat_with(scene, model, way)
    scene.vendor.keeps_alive = True
    await chat.say("One is said.")
    calls, lines = len(scene.vendor.operations), scene.plain.seen
    scene.vendor.fail(fault)
    assert is_row(await refused(chat, "Two is said."), "vendor_failed")
    assert (len(scene.vendor.operations), scene.plain.seen) == (calls + 1, lines)
    scene.vendor.keeps_alive = False
    assert (await chat.say("Two is said.")).how == "rebuilt unknown-history"
