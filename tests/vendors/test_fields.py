"""Every field and error code of the vendors' documents, as the README lists them: where each is sent or read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from proxy.messages import Handle, Message, Turn
from proxy.simulator import Simulator
from proxy.vendors import load

ROOT = Path(__file__).parent.parent.parent
SEEDS = ROOT.parent / "shared" / "seeds"
FILES = {
    "AskHandle": "askhandle",
    "NewOaks AI": "newoaks",
    "Quickchat AI": "quickchat",
    "Mister Turing": "misterturing",
}
DOCUMENTS = {"AskHandle": ["000"], "NewOaks AI": ["001", "004"], "Quickchat AI": ["002"], "Mister Turing": ["003"]}
ROW = re.compile(r"^\| (.+?) \| `(.+?)` \| (request|reply|error) \| (.+) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def rows(where: str, what: str) -> list[tuple[str, str]]:
    return [(vendor, field) for vendor, field, place, fate in ROWS if place == where and fate.startswith(what)]


def test_every_row_says_what_becomes_of_its_field() -> None:
    """A field is sent, read, or not used for a reason; an error code becomes one of ours."""
    assert {vendor for vendor, *_ in ROWS} == set(FILES)
    for vendor, field, where, fate in ROWS:
        pattern = {"request": r"sent|not used: \w", "reply": r"read|not used: \w", "error": r"`vendor_\w+`"}[where]
        assert re.match(pattern, fate), (vendor, field)


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the vendors' documents are not part of the project")
@pytest.mark.parametrize("vendor", FILES)
def test_the_list_is_the_documents(vendor: str) -> None:
    """A listed field stands in its vendor's documents, and what they mark as a field is listed."""
    text = "".join(path.read_text() for name in DOCUMENTS[vendor] for path in SEEDS.glob(f"{name}_*.txt"))
    listed = {field for of, field, *_ in ROWS if of == vendor}
    marked = {*re.findall(r'\\?"(\w+)\\?":', text), *re.findall(r"^(\w+)\*?$\n\n(?:string|dict)", text, re.MULTILINE)}
    samples = {
        "website",
        "userId",
        "id",
        "title",
        "description",
        "source",
        "sourceDirName",
        "slug",
        "permalink",
        "draft",
    }
    samples |= {"unlisted", "tags", "version", "sidebarPosition", "frontMatter", "sidebar_position", "sidebar"}
    samples |= {"previous", "next", "Type"}

    inferred = {"AskHandle": {"token", "Authorization"}, "Mister Turing": {"external_id"}}.get(vendor, set())
    assert {field for field in listed - inferred if field not in text} == set()
    assert marked - samples - listed == set()


def options(simulator: Simulator, vendor: str) -> list[dict[str, Any]]:
    askhandle, newoaks, legacy, current, alan = (
        simulator.askhandle,
        simulator.newoaks,
        simulator.quickchat_legacy,
        simulator.quickchat,
        simulator.misterturing,
    )
    topic = {"kb_topic": "billing"}
    entries: dict[str, list[dict[str, Any]]] = {
        "AskHandle": [{"username": askhandle.username, "password": askhandle.password, "poll_interval": 0.01}],
        "NewOaks AI": [{"secret_key": newoaks.secret_key, "chatbot_id": newoaks.chatbot_id}],
        "Quickchat AI": [
            {
                "api_key": legacy.api_key,
                "scenario_id": legacy.scenario_id,
                **topic,
                "base_url": "http://sim/quickchat-legacy",
            },
            {"token": current.token, "scenario_id": current.scenario_id, **topic},
        ],
        "Mister Turing": [{"api_key": alan.api_key, "assistant_id": alan.assistant_id}],
    }
    return entries[vendor]


BASES = {"AskHandle": "askhandle/api/v1", "NewOaks AI": "newoaks", "Quickchat AI": "quickchat"}
BASES["Mister Turing"] = "misterturing/v4.0"


def names(value: object) -> set[str]:
    """Every key in a JSON value."""
    if isinstance(value, Mapping):
        return {*value, *(name for inner in value.values() for name in names(inner))}
    return {name for inner in value for name in names(inner)} if isinstance(value, list) else set()


async def sent_by(vendor: str) -> set[str]:
    """The names of all that an adapter sends in a conversation of two turns, and in its set-up."""
    simulator = Simulator()
    seen: set[str] = set()

    class Recorded(httpx2.ASGITransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            body = await request.aread()
            seen.update(name.title() for name in request.headers)
            seen.update(names(orjson.loads(body)) if body else ())
            return await super().handle_async_request(request)

    for more in options(simulator, vendor):
        entry = {"vendor": FILES[vendor], "base_url": f"http://sim/{BASES[vendor]}", **more}
        kind = load(FILES[vendor])
        bot = kind(kind.Options.model_validate(entry), transport=Recorded(simulator.app))
        contact = {"email": "ada@example.test", "phone_number": "1", "nickname": "Ada"}
        turn = Turn([Message("user", "Hello")], priming="Be kind.", contact=contact, metadata={"plan": "gold"})
        handle: Handle | None = None
        for _ in range(2):
            turn = Turn(turn.new, (), handle, turn.priming, "", "", contact, turn.metadata, stream=bool(handle))
            async for event in bot.reply(turn):
                handle = event if isinstance(event, Handle) else handle
        if vendor == "Mister Turing":
            await bot.setup("A new one", "for the test")
        await bot.aclose()
    assert [found for sim in simulator.vendors.values() for found in sim.violations] == []
    return seen


@pytest.mark.parametrize("vendor", FILES)
async def test_what_is_listed_as_sent_is_sent(vendor: str) -> None:
    """A request field listed as sent is seen on the wire, and one listed as not used is not."""
    seen = await sent_by(vendor)

    assert {field for of, field in rows("request", "sent") if of == vendor} - seen == set()
    assert {field for of, field in rows("request", "not used") if of == vendor} & seen == set()


def names_in_source(vendor: str) -> set[str]:
    """Every name in quotes that an adapter and the ground it stands on use, in lower case."""
    files = [ROOT / "proxy" / "vendors" / f"{name}.py" for name in (FILES[vendor], "base")]
    return {name.lower() for path in files for name in re.findall(r'"(\w+)"', path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("vendor", FILES)
def test_what_is_listed_as_read_is_read(vendor: str) -> None:
    """A reply field is named in its vendor's adapter if it is listed as read, and not if it is listed as not used."""
    read = {field.lower() for of, field in rows("reply", "read") if of == vendor}
    unused = {field.lower() for of, field in rows("reply", "not used") if of == vendor}

    assert read - names_in_source(vendor) == set()
    assert unused & names_in_source(vendor) == set()


@pytest.mark.parametrize(
    ("vendor", "code", "fate"), [(vendor, field, fate) for vendor, field, where, fate in ROWS if where == "error"]
)
async def test_an_error_code_becomes_what_the_list_says(vendor: str, code: str, fate: str) -> None:
    """A documented status, answered to a message, becomes the error that is listed."""
    simulator = Simulator()
    kind = load(FILES[vendor])
    answers = httpx2.MockTransport(lambda request: httpx2.Response(int(code), json={}))
    entry = {"vendor": FILES[vendor], "base_url": "http://sim", **options(simulator, vendor)[-1]}
    bot = kind(kind.Options.model_validate(entry), transport=answers)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its code is looked at
        async for _ in bot.reply(Turn([Message("user", "Hello")])):
            pass

    assert getattr(caught.value, "code", "") == re.findall(r"`(vendor_\w+)`", fate)[0]
    await bot.aclose()
