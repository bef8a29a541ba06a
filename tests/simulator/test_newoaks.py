"""NewOaks: the printed samples (documented), and what is refused."""

from typing import Any

import httpx2
import orjson
import pytest

from proxy.simulator import Simulator

from .callers import ASK, KEY, OPEN, SERIAL, ask

ANSWER = "Hello! How can I assist you today?"


def objects(reply: httpx2.Response) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in reply.text.splitlines()]


async def test_opens(client: httpx2.AsyncClient) -> None:
    """A session opens with an integer in the documented envelope."""
    reply = await client.post(OPEN, json=SERIAL, headers=KEY)
    envelope = {"Version": "1.0.0", "Success": True, "Code": 200, "Message": ""}
    assert reply.json() == {"Data": {"SessionID": 123456}, **envelope}


async def test_answers(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A plain reply has the printed sample's fields and types, and the transcript holds both sides."""
    data = (await ask(client, f"say {ANSWER}", stream=False)).json()["Data"]
    assert {name: type(value) for name, value in data.items()} == {
        "messageid": int, "content": str, "totalToken": int, "noAnswer": bool,
    }  # fmt: skip
    assert (data["content"], data["noAnswer"]) == (ANSWER, False)
    (conversation,) = simulator.newoaks.conversations.values()
    assert [(entry.role, entry.text) for entry in conversation.entries] == [("user", f"say {ANSWER}"), ("bot", ANSWER)]
    assert conversation.entries[0].fields["stream"] is False
    assert simulator.newoaks.violations == []


async def test_has_no_answer(client: httpx2.AsyncClient) -> None:
    """`noAnswer` is told in the plain reply only (documented)."""
    plain = (await ask(client, "unanswerable")).json()["Data"]
    assert plain["noAnswer"]
    assert all("noAnswer" not in value for value in objects(await ask(client, "unanswerable", stream=True)))


async def test_streams_the_sample(client: httpx2.AsyncClient) -> None:
    """A stream is the printed sample: bare objects, then a summary equal to their sum."""
    reply = await ask(client, "say \nHello! How can I assist you?", stream=True)
    assert reply.headers["content-type"] == "text/event-stream"
    *deltas, last = objects(reply)
    assert [delta["content"] for delta in deltas] == [
        "\n", "Hello", "!", " How", " can", " I", " assist", " you", "?",
    ]  # fmt: skip
    assert list(last) == ["QuestionID", "AnswerID", "Answer", "TotalToken"]
    assert last["Answer"] == "\nHello! How can I assist you?"


@pytest.mark.parametrize("cuts", [None, 1, 7, 1000])
async def test_framings(client: httpx2.AsyncClient, simulator: Simulator, cuts: int | None) -> None:
    """The same objects come as lines or as SSE events, cut at any byte."""
    lines = (await ask(client, "say Hi there", stream=True)).text.splitlines()
    simulator.newoaks.framing, simulator.newoaks.cuts = "sse", cuts
    events = (await ask(client, "say Hi there", stream=True)).text.removesuffix("\n\n").split("\n\n")
    assert events[:-1] == [f"data: {line}" for line in lines[:-1]]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": f"Bearer {KEY['Authorization']}"}, 401), ({"Authorization": "wrong"}, 401)],
)
async def test_credential(
    client: httpx2.AsyncClient, simulator: Simulator, headers: dict[str, str], status: int
) -> None:
    """Only the bare key is accepted (documented), anything else is a violation."""
    reply = await client.post(OPEN, json=SERIAL, headers=headers)
    assert (reply.status_code, reply.json()["Code"], reply.json()["Success"]) == (status, status, False)
    assert len(simulator.newoaks.violations) == 1


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"sessionID": "123456"}, 400, "sessionID"),
        ({"sessionID": True}, 400, "sessionID"),
        ({"stream": "true"}, 400, "stream"),
        ({"SessionID": 123456}, 400, "SessionID"),
        ({"content": None}, 400, "content"),
        ({"model": "x"}, 400, "model"),
        ({"content": ""}, 200, "content"),
        ({"sessionID": 1}, 200, "session 1"),
        ({"chatAskType": "Smell"}, 200, "chatAskType"),
        ({"fileIds": [1]}, 200, "fileIds"),
    ],
)
async def test_refuses(
    client: httpx2.AsyncClient, simulator: Simulator, fields: dict[str, Any], status: int, named: str
) -> None:
    """What the documents forbid is refused by name: form by HTTP status, business in the envelope."""
    reply = await ask(client, **fields)
    body = reply.json()
    assert (reply.status_code, body["Success"]) == (status, False)
    assert 400 <= body["Code"] < 500
    assert named in body["Message"]
    assert simulator.newoaks.violations == [f"POST /chat/Chat/ClientAsk: {body['Message']}"]
    assert all(not conversation.entries for conversation in simulator.newoaks.conversations.values())


async def test_nulls(client: httpx2.AsyncClient) -> None:
    """`chatAskType` and `fileIds` may be null (documented)."""
    assert (await ask(client, "hello", chatAskType=None, fileIds=None)).json()["Success"]


async def test_unknown_chatbot(client: httpx2.AsyncClient) -> None:
    """An unknown chatbot is a business error."""
    reply = await client.post(OPEN, json={"serialNumber": "x" * 32}, headers=KEY)
    assert (reply.status_code, reply.json()["Code"]) == (200, 404)


async def test_forgets(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A forgotten session is refused without being a violation, its entries stay readable."""
    reply = await ask(client, "hello")
    simulator.newoaks.forget()
    reply = await client.post(ASK, json={"sessionID": 123456, "content": "again"}, headers=KEY)
    assert (reply.status_code, reply.json()["Code"]) == (200, 404)
    assert simulator.newoaks.violations == []
    assert simulator.newoaks.conversations[123456].heard[0].text == "hello"


@pytest.mark.parametrize(
    ("fault", "said", "answer"),
    [
        ("summary-extends", "one two", "one two three four"),
        ("summary-differs", "one two three four", "Something else altogether."),
        ("summary-missing", "one two three four", None),
    ],
)
async def test_summary(
    client: httpx2.AsyncClient, simulator: Simulator, fault: str, said: str, answer: str | None
) -> None:
    """The summary may extend what was streamed, differ from it or be missing."""
    simulator.newoaks.fail(fault)
    values = objects(await ask(client, "say one two three four", stream=True))
    assert "".join(value.get("content", "") for value in values) == said
    assert values[-1].get("Answer") == answer


async def test_error_in_stream(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A stream may end in an object with Success:false, a plain reply in such an envelope."""
    simulator.newoaks.fail("error-in-stream", times=2)
    values = objects(await ask(client, "say one two three four", stream=True))
    assert [values[0], values[-1]["Success"]] == [{"content": "one"}, False]
    assert (await ask(client, "hello")).json()["Code"] == 500


@pytest.mark.parametrize(
    ("fault", "code"),
    [("refused", 400), ("envelope-failed", 500), ("envelope-limited", 429), ("envelope-unauthorized", 401)],
)
async def test_envelope_faults(client: httpx2.AsyncClient, simulator: Simulator, fault: str, code: int) -> None:
    """Business faults come with HTTP 200; after `envelope-failed` the bot has heard the message all the same."""
    simulator.newoaks.fail(fault)
    reply = await ask(client, "hello")
    assert (reply.status_code, reply.json()["Success"], reply.json()["Code"]) == (200, False, code)
    assert len(simulator.newoaks.conversations[123456].heard) == (fault == "envelope-failed")
