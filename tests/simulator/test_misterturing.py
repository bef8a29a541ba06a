"""Mister Turing: assistants, the text stream, and what is refused."""

from typing import Any

import httpx2
import pytest

from proxy.simulator import Simulator
from proxy.simulator.misterturing import API_KEY, ASSISTANT_ID

from .callers import BEARER, TURING, chat, talk


async def test_answers(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """The answer is pure text under the documented content type."""
    reply = await chat(client, "recite Good\n\nday, 漢字 🙂")
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.content.decode() == "Good\n\nday, 漢字 🙂"
    assert simulator.misterturing.violations == []


async def test_cuts_characters(wire: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Characters of several bytes are cut across writes."""
    simulator.misterturing.gap = 0.01
    body = {"message": "say aé漢字🙂", "conversation_id": await talk(wire)}
    async with wire.stream("POST", f"{TURING}/chat/", json=body, headers=BEARER) as reply:
        chunks = [chunk async for chunk in reply.aiter_bytes()]
    assert b"".join(chunks).decode() == "aé漢字🙂"
    with pytest.raises(UnicodeDecodeError):
        chunks[0].decode()


@pytest.mark.parametrize(
    ("framing", "text"), [("raw", "One\ntwo"), ("sse", "data: One\n\ndata: \ndata: \n\ndata: two\n\n")]
)
async def test_framings(client: httpx2.AsyncClient, simulator: Simulator, framing: Any, text: str) -> None:
    """The stream is text as it is, or SSE events in which line breaks are kept."""
    simulator.misterturing.framing = framing
    assert (await chat(client, "say One\ntwo")).text == text


@pytest.mark.parametrize("field", ["conversation_id", "external_id", "data.id", ""])
async def test_id_field(client: httpx2.AsyncClient, simulator: Simulator, field: str) -> None:
    """The new conversation's id stands where it was told to."""
    simulator.misterturing.id_field = field
    body = {"assistant_id": ASSISTANT_ID}
    value = (await client.post(f"{TURING}/conversation/", json=body, headers=BEARER)).json()
    for name in filter(None, field.split(".")):
        value = value[name]
    assert value in simulator.misterturing.conversations


async def test_creates_and_deploys(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A new assistant has an external_id and preferences (documented) and can be deployed and talked to."""
    reply = await client.post(f"{TURING}/", json={"name": "Pet", "description": "a pet"}, headers=BEARER)
    body = {"assistant_id": reply.json()["external_id"]}
    assert "assistant_preferences" in reply.json()
    opened = await client.post(f"{TURING}/conversation/", json=body, headers=BEARER)
    handle = opened.json()["conversation_id"]
    assert (await client.post(f"{TURING}/deploy/", json=body, headers=BEARER)).status_code == 200
    assert (await chat(client, conversation_id=handle)).status_code == 200
    assert simulator.misterturing.violations == []


async def test_without_conversation(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A message without conversation_id is allowed (documented) and answered in a conversation of its own."""
    for _ in range(2):
        reply = await client.post(f"{TURING}/chat/", json={"message": "Hello"}, headers=BEARER)
        assert "message 1 of" in reply.text
    assert simulator.misterturing.violations == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": API_KEY}, {"Authorization": "Bearer wrong"}])
async def test_credential(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    """Without the key the answer is 403 (documented)."""
    reply = await client.post(f"{TURING}/conversation/", json={"assistant_id": ASSISTANT_ID}, headers=headers)
    assert reply.status_code == 403


async def test_refused_credential(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """The fault of a refused credential has this vendor's status."""
    simulator.misterturing.fail("unauthorized")
    assert (await chat(client)).status_code == 403


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"message": ""}, 400),
        ({"message": None}, 400),
        ({"stream": True}, 400),
        ({"conversation_id": 7}, 400),
        ({"conversation_id": "unknown"}, 404),
    ],
)
async def test_refuses(client: httpx2.AsyncClient, simulator: Simulator, fields: dict[str, Any], status: int) -> None:
    """What the documents forbid is refused and noted."""
    assert (await chat(client, **fields)).status_code == status
    assert len(simulator.misterturing.violations) == 1


@pytest.mark.parametrize("path", ["", "/chat", "/conversation", "/deploy"])
async def test_needs_the_slash(client: httpx2.AsyncClient, path: str) -> None:
    """Paths end in a slash (documented)."""
    assert (await client.post(TURING + path, json={}, headers=BEARER)).status_code == 404


async def test_forgets(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A forgotten conversation is not found."""
    handle = await talk(client)
    simulator.misterturing.fail("forgotten")
    assert (await chat(client, conversation_id=handle)).status_code == 404
    assert (await chat(client, conversation_id=handle)).status_code == 404
    assert simulator.misterturing.violations == []


@pytest.mark.parametrize(
    ("fault", "content"),
    [("empty", b""), ("null", b""), ("blank", b" \n "), ("wrong-type", b'["hello"]'), ("invalid-utf8", b"he\xffllo")],
)
async def test_spoilt(client: httpx2.AsyncClient, simulator: Simulator, fault: str, content: bytes) -> None:
    """The text may be empty, blank, no UTF-8, or no text at all."""
    simulator.misterturing.fail(fault)
    assert (await chat(client, "say hello")).content == content
