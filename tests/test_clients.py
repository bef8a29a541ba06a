"""What real clients send back, played turn by turn: one file in tests/clients per client and manner.

A file is JSON for people to read and extend:

- `client`, `version`, `source` (where the manner is described), `note`;
- `keeps`: what the client does to a reply before it sends it back, names of `KEEPS` in order; `retells`: the same for
  its user's earlier messages; `keys`: the keys of an assistant message on the wire; `window`: it sends the last N only;
- `config`: sections of the configuration; `headers` and `body`: what goes with every request;
- `turns`: `messages` to the letter as they are on the wire, the `reply` that the bot gives, what is to be expected
  (`expect`: the two headers, or the code of the error) and the text that its conversation must be `sent`: all of it,
  or pieces (`sent_has`) and what must not be there (`sent_lacks`).

A turn may also have: `headers`, `body` (its own); `fault` (code of the vendor's fault, instead of a reply) and `error`
(the error's text, if the client keeps it as a reply); `spoken` (all that it keeps of the reply), `bare` (all that it
keeps of its newest message); `follows` (the turn, counted from 1, whose request and reply it goes on from, if it is not
the one before), `resumes` (the turn whose vendor conversation is used, if it is not that one's); `breaks` (why the
history is not what the client was given); `why` (why a history need not be recognised).
`{{today:%d %B %Y}}` and `{{yesterday:...}}` stand for dates, `{{filler:900}}` for that many sentences.

`python -m tests.test_clients` prints how many turns each tier answers.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import cleandoc
from itertools import dropwhile
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.app import assemble
from proxy.config import Config, ModelOptions
from proxy.errors import ProxyError, VendorFailed, VendorRateLimited, VendorUnavailable
from proxy.stores.memory import MemoryStore
from tests.doors import KEYS
from tests.scripted import Cue, ScriptedBot

FOLDER = Path(__file__).parent / "clients"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
MODELS = ("shop", "it/help")
FAULTS: Sequence[type[ProxyError]] = (VendorFailed, VendorRateLimited, VendorUnavailable)
PIECE = 7  # characters; a reply comes in pieces of this length
FILLER = "Give the flowers fresh water every other day. "

KEYS_OF_A_FIXTURE = "client version source note keeps retells keys window config headers body turns"
KEYS_OF_A_TURN = (
    "messages reply expect sent sent_has sent_lacks headers body fault error spoken bare follows resumes breaks why"
)

Json = dict[str, Any]
Content = str | tuple[str, ...] | None

_THOUGHT = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)

# What clients.md says of a client's way to keep a reply. Some keep nothing of it: no message at all.
KEEPS: Mapping[str, Callable[[str], list[Content]]] = {
    "exact": lambda text: [text],
    "strip": lambda text: [text.strip()],
    "cleandoc": lambda text: [cleandoc(text)],
    "cut-thought": lambda text: [_THOUGHT.sub("", text)],
    "write-thought-anew": lambda text: [_THOUGHT.sub(r"<think>\n\1\n</think>\n\n", text)],
    "drop-empty": lambda text: [text] if text else [],
    "null-empty": lambda text: [text or None],
    "parts": lambda text: [(text,) if text else ()],
}


@dataclass(frozen=True)
class Seen:
    """What came of one turn. `heard` is all that its vendor conversation, number `id`, was ever sent."""

    how: str
    reason: str
    text: str
    code: str
    error: str
    id: tuple[str, int] | None
    heard: Sequence[str]

    @property
    def tier(self) -> str:
        return f"error {self.code}" if self.code else f"{self.how} {self.reason}".strip()


def load(name: str) -> Json:
    fixture: Json = json.loads(filled((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    return fixture


def filled(text: str) -> str:
    """The text of a file with what its placeholders stand for."""
    now = datetime.now(UTC)
    text = re.sub(r"\{\{today:(.*?)\}\}", lambda found: now.strftime(found[1]), text)
    text = re.sub(r"\{\{yesterday:(.*?)\}\}", lambda found: (now - timedelta(days=1)).strftime(found[1]), text)
    return re.sub(r"\{\{filler:(\d+)\}\}", lambda found: FILLER * int(found[1]), text)


# --- playing


@asynccontextmanager
async def vendors_of(fixture: Json) -> AsyncIterator[tuple[httpx2.AsyncClient, dict[str, ScriptedBot]]]:
    """Real doors before a scripted bot for each model."""
    options = {name: ModelOptions(vendor="scripted") for name in MODELS}
    config = Config.model_validate({"keys": KEYS, "models": options, **fixture.get("config", {})})
    bots = {name: ScriptedBot(identity=name) for name in MODELS}
    app = assemble(config, dict(bots), MemoryStore(max_parked=100))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://parley.test") as http:
        yield http, bots


async def play(fixture: Json, *, stream: bool) -> list[Seen]:
    """The whole chat, one turn after the other, as the client would send it."""
    async with vendors_of(fixture) as (http, bots):
        return [await ask(http, bots, fixture, turn, stream=stream) for turn in fixture["turns"]]


async def ask(
    http: httpx2.AsyncClient, bots: Mapping[str, ScriptedBot], fixture: Json, turn: Json, *, stream: bool
) -> Seen:
    body = {"model": "shop", **fixture.get("body", {}), **turn.get("body", {})}
    bot = bots[body["model"]]
    bot.cues.append(cue(turn))
    before = {id: len(said) for id, said in bot.conversations.items()}
    answer = await http.post(
        "/v1/chat/completions",
        json={**body, "messages": turn["messages"], "stream": stream},
        headers={"authorization": "Bearer sk-all", **fixture.get("headers", {}), **turn.get("headers", {})},
    )
    grown = [id for id, said in bot.conversations.items() if len(said) > before.get(id, 0)]
    assert len(grown) <= 1, "one turn goes into one conversation"
    text, error = streamed(answer) if stream and answer.is_success else folded(answer)
    return Seen(
        how=answer.headers.get("x-parley-conversation", ""),
        reason=answer.headers.get("x-parley-reason", ""),
        text=text,
        code=error.get("code", ""),
        error=error.get("message", ""),
        id=(body["model"], grown[0]) if grown else None,
        heard=bot.conversations[grown[0]][::2] if grown else [],
    )


def cue(turn: Json) -> Cue:
    if "fault" in turn:
        (kind,) = (kind for kind in FAULTS if kind.code == turn["fault"])
        return Cue(("",), fault=kind(turn.get("error", "").partition(" (parley:")[0] or "A fault"))
    reply = turn["reply"]
    return Cue(tuple(reply[at : at + PIECE] for at in range(0, len(reply), PIECE)) or ("",))


def folded(answer: httpx2.Response) -> tuple[str, Json]:
    """The text of an answer, and the error if it is one."""
    body = answer.json()
    return ("", body["error"]) if answer.is_error else (body["choices"][0]["message"]["content"], {})


def streamed(answer: httpx2.Response) -> tuple[str, Json]:
    """The same of a stream, which may also break off with an error."""
    *lines, end = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    return (text, {}) if end == "[DONE]" else (text, json.loads(end)["error"])


# --- how turns hang together


def before(turns: Sequence[Json], index: int) -> int:
    """The turn whose request and reply this one goes on from: the one before, those behind the user's back apart."""
    if "follows" in turns[index]:
        return int(turns[index]["follows"]) - 1
    return next(i for i in reversed(range(index)) if turns[i]["expect"].get("conversation") != "utility")


def resumed(turns: Sequence[Json], index: int) -> int:
    """The turn whose vendor conversation this one must go on in."""
    if "resumes" in turns[index]:
        return int(turns[index]["resumes"]) - 1
    earlier = before(turns, index)
    return resumed(turns, earlier) if "error" in turns[earlier]["expect"] else earlier


def chat_of(messages: Sequence[Json]) -> list[tuple[str, Content, str]]:
    """Role, content and tool calls (arguments parsed) of what comes after the system prompt."""
    chat = dropwhile(lambda message: message["role"] in ("system", "developer"), messages)
    return [(message["role"], content_of(message), calls_of(message)) for message in chat]


def content_of(message: Json) -> Content:
    content = message.get("content")
    if isinstance(content, list):
        return tuple(part["text"] for part in content if part["type"] == "text")
    assert content is None or isinstance(content, str)
    return content


def calls_of(message: Json) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return json.dumps([(call["name"], json.loads(call["arguments"])) for call in calls], sort_keys=True)


def kept(text: str, names: Sequence[str]) -> list[Content]:
    contents: list[Content] = [text]
    for name in names:
        contents = [out for content in contents for out in KEEPS[name](plain(content))]
    return contents


def plain(content: Content) -> str:
    return "".join(content) if isinstance(content, tuple) else content or ""


def given_back(fixture: Json, turn: Json) -> list[tuple[str, Content, str]]:
    """What the client makes of a request and its reply when it sends them again."""
    chat = chat_of(turn["messages"])
    if "retells" in fixture:
        chat = [
            (role, kept(plain(text), fixture["retells"])[0] if role == "user" else text, calls)
            for role, text, calls in chat
        ]
    if "bare" in turn:
        assert turn["bare"] in plain(chat[-1][1])
        chat[-1] = ("user", turn["bare"], "[]")
    if "spoken" in turn:
        assert turn["reply"].startswith(turn["spoken"])
    said = turn.get("spoken", turn.get("error"))
    replies = kept(turn.get("reply", ""), fixture["keeps"]) if said is None else [said]
    return chat if "fault" in turn and said is None else [*chat, *(("assistant", reply, "[]") for reply in replies)]


def recognisable() -> Iterator[tuple[str, int]]:
    """All turns from the second on whose history is one that a client was given, and that no rule gives up."""
    for name in NAMES:
        for index, turn in enumerate(load(name)["turns"]):
            if index and "why" not in turn and "breaks" not in turn and set(turn["expect"].values()) != {"utility"}:
                yield name, index


# --- tests


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_client_keeps_its_conversation(name: str, stream: bool) -> None:
    """A client as it is gets every reply to the letter, and only what is new goes into its vendor conversation."""
    fixture = load(name)
    turns = fixture["turns"]

    seen = await play(fixture, stream=stream)

    for index, (turn, came) in enumerate(zip(turns, seen, strict=True)):
        at = f"{name}, turn {index + 1}"
        told = {"error": came.code} if came.code else {"conversation": came.how, "reason": came.reason}
        assert {key: value for key, value in told.items() if value} == turn["expect"], at
        if came.code:
            assert came.error == turn.get("error", came.error), at
            continue
        assert came.text == turn["reply"], at
        if came.how in ("continued", "caught-up"):
            earlier = seen[resumed(turns, index)]
            assert (came.id, came.heard[:-1]) == (earlier.id, earlier.heard), at
        else:
            assert came.id not in [other.id for other in seen[:index]], at
            assert len(came.heard) == 1, at
        assert came.heard[-1] == turn.get("sent", came.heard[-1]), at
        assert [piece for piece in turn.get("sent_has", ()) if piece not in came.heard[-1]] == [], at
        assert [piece for piece in turn.get("sent_lacks", ()) if piece in came.heard[-1]] == [], at
        newest = turn["messages"][-1]
        if newest["role"] == "user":  # the vendor's retrieval reads the end
            assert came.heard[-1].endswith(plain(content_of(newest))), at


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_is_honest(name: str) -> None:
    """A request in a fixture is what its client makes of the request and the reply before it, by the named rules."""
    fixture = load(name)
    turns = fixture["turns"]

    for index, turn in enumerate(turns):
        if index == 0 or "breaks" in turn or turn["expect"].get("conversation") == "utility":
            continue
        expected = given_back(fixture, turns[before(turns, index)])
        chat = chat_of(turn["messages"])
        if "window" in fixture:
            assert chat == [*expected, chat[-1]][-fixture["window"] :], f"{name}, turn {index + 1}"
            continue
        new = chat[len(expected) :]
        assert chat[: len(expected)] == expected, f"{name}, turn {index + 1}"
        assert new, f"{name}, turn {index + 1}"
        assert "assistant" not in {role for role, _, _ in new}, f"{name}, turn {index + 1}"


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_is_well_formed(name: str) -> None:
    """A fixture has no unknown keys, says what is sent wherever that matters, and gives a reason for what is lost."""
    fixture = load(name)
    turns = fixture["turns"]

    assert {"client", "version", "source", "keeps", "turns"} <= set(fixture) <= set(KEYS_OF_A_FIXTURE.split())
    assert {key for turn in turns for key in turn} <= set(KEYS_OF_A_TURN.split())
    assert len(turns) >= 4
    for index, turn in enumerate(turns):
        how = turn["expect"].get("conversation")
        assert how not in ("continued", "caught-up") or {"sent", "sent_has"} & set(turn), f"turn {index + 1}"
        assert how != "rebuilt" or {"why", "breaks"} & set(turn), f"turn {index + 1}"
        for message in turn["messages"]:
            if message["role"] == "assistant" and "keys" in fixture:
                assert list(message) == fixture["keys"], f"turn {index + 1}"


async def test_what_clients_send_back_is_recognised() -> None:
    """Every history that clients were seen to send back finds its conversation, whatever the client did to it."""
    played = {name: await play(load(name), stream=False) for name in NAMES}

    missed = {
        f"{name}, turn {index + 1}": played[name][index].tier
        for name, index in recognisable()
        if "error" not in load(name)["turns"][index]["expect"] and played[name][index].how != "continued"
    }

    assert missed == {}


# --- the table


async def table() -> str:
    """How many turns of all fixtures each tier answers."""
    tiers = Counter([seen.tier for name in NAMES for seen in await play(load(name), stream=False)])
    lines = [f"{tier:<32} {turns:>5} {turns / tiers.total():>7.1%}" for tier, turns in tiers.most_common()]
    return "\n".join([f"{'tier':<32} {'turns':>5} {'share':>7}", *lines, f"{'all':<32} {tiers.total():>5} {1:>7.1%}"])


if __name__ == "__main__":
    print(asyncio.run(table()))
