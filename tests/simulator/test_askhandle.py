"""AskHandle: tokens, rooms, messages, answers that come later, and what is refused."""

from typing import Any

import httpx2
import pytest

from proxy.simulator import Simulator
from proxy.simulator.askhandle import PASSWORD, TOKEN, USERNAME

from .callers import MESSAGES, ROOMS, room, write
from .callers import TOKEN as HEADER

LOGIN = "/askhandle/api/v1/auth/api-token"


async def test_token(client: httpx2.AsyncClient) -> None:
    """Username and password give a token of forty hexadecimal digits (documented)."""
    reply = await client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD})
    assert reply.json() == {"token": TOKEN}
    assert len(bytes.fromhex(TOKEN)) == 20


async def test_wrong_password(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """A wrong password is a violation, answered as the framework does (inferred)."""
    reply = await client.post(LOGIN, json={"username": USERNAME, "password": "x"})
    assert (reply.status_code, list(reply.json())) == (400, ["non_field_errors"])
    assert len(simulator.askhandle.violations) == 1


async def test_room(client: httpx2.AsyncClient) -> None:
    """A room has the documented fields, whether opened without a body (seen) or with one."""
    for body in (None, {"name": "Support", "is_bot_use": True}):
        reply = await client.post(ROOMS, headers=HEADER, json=body)
        assert reply.status_code == 201
        assert set(reply.json()) == {"uuid", "label", "name", "rating", "is_bot_use", "created_at", "messages"}


async def test_answers(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """The reply to a message holds the answer and the fields that clients read (documented, seen)."""
    reply = await write(client, "say Hi there", email="a@example.org", phone_number="+41")
    body = reply.json()
    assert reply.status_code == 201
    assert (body["support_answer"], body["email"], body["phone_number"]) == ("Hi there", "a@example.org", "+41")
    fields = "uuid body nickname email phone_number is_support_sender sent_at support_answer terminated"
    assert set(body) == set(fields.split())
    assert len(body["sent_at"]) == len("2021-09-15T12:08:50.676405Z")
    assert simulator.askhandle.violations == []
    (conversation,) = simulator.askhandle.conversations.values()
    assert conversation.entries[0].fields["nickname"] == "api"


async def test_answers_later(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """The answer may be empty at first and come after so many polls (seen)."""
    simulator.askhandle.answer_after = 2
    message = (await write(client, "say Hi there")).json()
    answers = [message["support_answer"]]
    for _ in range(3):
        answers.append((await client.get(f"{MESSAGES}{message['uuid']}/", headers=HEADER)).json()["support_answer"])
    assert answers == ["", "", "Hi there", "Hi there"]
    assert simulator.askhandle.violations == []


@pytest.mark.parametrize("fault", ["terminated", "hand-off", "null"])
async def test_never_answers(client: httpx2.AsyncClient, simulator: Simulator, fault: str) -> None:
    """A terminated or handed-over room takes messages in and answers none, a null is one message's affair."""
    handle = {"uuid": await room(client)}
    simulator.askhandle.fail(fault)
    first, second = [(await write(client, "say hi", room=handle)).json() for _ in range(2)]
    assert not first["support_answer"]
    assert first["terminated"] is second["terminated"] is (fault == "terminated")
    assert second["support_answer"] == ("hi" if fault == "null" else "")
    assert len(simulator.askhandle.conversations[handle["uuid"]].heard) == 2


async def test_bot_off(client: httpx2.AsyncClient) -> None:
    """A room without bot answers nothing (inferred)."""
    reply = await client.post(ROOMS, json={"is_bot_use": False}, headers=HEADER)
    assert (await write(client, room={"uuid": reply.json()["uuid"]})).json()["support_answer"] == ""


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"room": "uuid"}, "room"),
        ({"room": {"uuid": "unknown"}}, "room"),
        ({"room": {}}, "room"),
        ({"body": ""}, "body"),
        ({"nickname": None}, "nickname"),
        ({"user": "x"}, "user"),
    ],
)
async def test_refuses(client: httpx2.AsyncClient, simulator: Simulator, fields: dict[str, Any], named: str) -> None:
    """What the documents forbid is refused under the field's name (inferred), nothing is taken in."""
    reply = await write(client, **fields)
    assert (reply.status_code, list(reply.json())) == (400, [named])
    assert len(simulator.askhandle.violations) == 1
    assert all(not conversation.entries for conversation in simulator.askhandle.conversations.values())


@pytest.mark.parametrize("headers", [{}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}])
async def test_credential(client: httpx2.AsyncClient, simulator: Simulator, headers: dict[str, str]) -> None:
    """Only `Token <token>` is accepted (documented)."""
    reply = await client.post(ROOMS, headers=headers)
    assert (reply.status_code, list(reply.json())) == (401, ["detail"])
    assert len(simulator.askhandle.violations) == 1


@pytest.mark.parametrize(("mode", "shape"), [(400, "room"), (404, "detail")])
async def test_forgets(client: httpx2.AsyncClient, simulator: Simulator, mode: int, shape: str) -> None:
    """A forgotten room is an error of its field, or not found."""
    handle = {"uuid": await room(client)}
    simulator.askhandle.lost_room = mode
    simulator.askhandle.forget()
    reply = await write(client, room=handle)
    assert (reply.status_code, list(reply.json())) == (mode, [shape])
    assert simulator.askhandle.violations == []


async def test_unknown_message(client: httpx2.AsyncClient) -> None:
    """An unknown message cannot be polled."""
    assert (await client.get(f"{MESSAGES}unknown/", headers=HEADER)).status_code == 404


@pytest.mark.parametrize("path", [ROOMS, MESSAGES])
async def test_needs_the_slash(client: httpx2.AsyncClient, simulator: Simulator, path: str) -> None:
    """Without its slash a path is none (inferred), which is a violation."""
    reply = await client.post(path.rstrip("/"), json={}, headers=HEADER)
    assert reply.status_code == 404
    assert len(simulator.askhandle.violations) == 1


async def test_login_has_no_slash(client: httpx2.AsyncClient) -> None:
    """The token's path is documented without a slash."""
    assert (await client.post(LOGIN + "/", json={})).status_code == 404
