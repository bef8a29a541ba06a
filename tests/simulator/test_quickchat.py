"""Quickchat, both generations: the printed samples (documented), and what is refused."""

from typing import Any

import httpx2
import pytest

from proxy.simulator import Simulator
from proxy.simulator.quickchat import API_KEY, SCENARIO_ID, TOKEN

from .callers import current, legacy


async def test_current(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """Every current reply has conv_id, reply, ord_number and src (documented)."""
    first = (await current(client, "say Hi there! How can I help you today?")).json()
    conversation = first["conv_id"]
    assert first == {
        "conv_id": conversation, "reply": "Hi there! How can I help you today?", "ord_number": 2, "src": 0,
    }  # fmt: skip
    later = (await current(client, conv_id=conversation)).json()
    assert (later["conv_id"], later["ord_number"]) == (conversation, 4)
    assert simulator.quickchat.violations == []


async def test_legacy(client: httpx2.AsyncClient) -> None:
    """A legacy reply names conv_id only at first (documented)."""
    first = (await legacy(client, "say Hey there! 🙂")).json()
    assert first == {"ord_number": 2, "conv_id": first["conv_id"], "reply": "Hey there! 🙂"}
    assert len(first["conv_id"]) == len("abcd1234")
    later = (await legacy(client, "say Hey, great to hear from you again! 😉", conv_id=first["conv_id"])).json()
    assert later == {"ord_number": 4, "reply": "Hey, great to hear from you again! 😉"}


async def test_markup(client: httpx2.AsyncClient) -> None:
    """Ordinary replies hold HTML (documented)."""
    reply = (await current(client, "Fish & chips")).json()["reply"]
    assert "<br>" in reply
    assert "Fish &amp; chips" in reply


async def test_context_and_metadata(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """The seed's context and metadata are taken in (documented), the key is not kept."""
    extra = {
        "message_context": "The users name is John.",
        "client_metadata": {"userId": 12, "website": "mywebsite.com"},
    }
    reply = await legacy(client, "What is my name?", **extra)
    assert "Your name is John." in reply.json()["reply"]
    fields = simulator.quickchat_legacy.conversations[reply.json()["conv_id"]].entries[0].fields
    assert {name: fields[name] for name in extra} == extra
    assert "api_key" not in fields


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"api_key": API_KEY}, 422, "api_key"),
        ({"message_context": "x"}, 422, "message_context"),
        ({"conv_id": None}, 422, "conv_id"),
        ({"text": ""}, 422, "text"),
        ({"client_metadata": dict.fromkeys("abcdef", 1)}, 422, "client_metadata"),
        ({"conv_id": "abcd1234"}, 400, "root"),
        ({"scenario_id": "another"}, 401, "root"),
    ],
)
async def test_current_refuses(
    client: httpx2.AsyncClient, simulator: Simulator, fields: dict[str, Any], status: int, named: str
) -> None:
    """The current endpoint refuses in the REST API's form, and each time a violation is noted."""
    reply = await current(client, **fields)
    assert reply.status_code == status
    (errors,) = reply.json()["errors"].items()
    assert (errors[0], list(errors[1][0])) == (named, ["message", "code"])
    assert len(simulator.quickchat.violations) == 1


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"api_key": "wrong"}, 401, "Unauthorized"),
        ({"scenario_id": "another"}, 401, "Unauthorized"),
        ({"text": ""}, 400, "text"),
        ({"conv_id": "abcd1234"}, 400, "conv_id abcd1234 does not exist"),
        ({"message_context": "x" * 1001}, 400, "message_context must be at most 1000"),
        ({"stream": True}, 400, "stream"),
    ],
)
async def test_legacy_refuses(client: httpx2.AsyncClient, fields: dict[str, Any], status: int, text: str) -> None:
    """The legacy endpoint refuses with the documented statuses, in text."""
    reply = await legacy(client, **fields)
    assert reply.status_code == status
    assert text in reply.text


async def test_limits_are_inclusive(client: httpx2.AsyncClient) -> None:
    """1000 characters and five keys are allowed (documented)."""
    metadata = dict.fromkeys("abcde", 1)
    assert (await legacy(client, message_context="é" * 1000, client_metadata=metadata)).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": TOKEN}, {"Authorization": "Bearer wrong"}])
async def test_token(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    """The current endpoint wants its Bearer token (documented)."""
    reply = await client.post("/quickchat/chat", json={"scenario_id": SCENARIO_ID, "text": "x"}, headers=headers)
    assert (reply.status_code, reply.json()["errors"]["root"][0]["code"]) == (401, "PERMISSION_DENIED")


async def test_bearer_is_of_no_use(client: httpx2.AsyncClient) -> None:
    """The legacy endpoint knows no Bearer header."""
    body = {"scenario_id": SCENARIO_ID, "text": "x"}
    reply = await client.post("/quickchat-legacy/chat", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 400


@pytest.mark.parametrize(("first", "later"), [({"kb_topic": "a"}, {}), ({}, {"kb_topic": "a"})])
async def test_topic(client: httpx2.AsyncClient, first: dict[str, str], later: dict[str, str]) -> None:
    """`kb_topic` stands in every call or in none; its value may change (documented)."""
    conversation = (await legacy(client, client_metadata=first)).json()["conv_id"]
    assert (await legacy(client, conv_id=conversation, client_metadata=later)).status_code == 400
    changed = dict.fromkeys(first, "b")
    assert (await legacy(client, conv_id=conversation, client_metadata=changed)).status_code == 200


@pytest.mark.parametrize("mode", [True, False])
async def test_new_id(client: httpx2.AsyncClient, simulator: Simulator, mode: bool) -> None:
    """The vendor may change the conv_id on a later reply; from then on only the new one is known."""
    old = (await legacy(client)).json()["conv_id"]
    simulator.quickchat_legacy.changes_id = mode
    if not mode:
        simulator.quickchat_legacy.fail("new-id")
    new = (await legacy(client, conv_id=old)).json()["conv_id"]
    assert new != old
    assert (await legacy(client, conv_id=old)).status_code == 400
    assert (await legacy(client, conv_id=new)).json()["ord_number"] == 6


async def test_hand_off(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """After a hand-off the AI pauses (documented): the message is taken in, the reply is null (inferred)."""
    simulator.quickchat.fail("hand-off")
    first = (await current(client)).json()
    assert first["reply"] is None
    assert (await current(client, conv_id=first["conv_id"])).json()["reply"] is None
    assert len(simulator.quickchat.conversations[first["conv_id"]].heard) == 2
